"""`skipgym run`: answers for image files, with what was executed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ..agents.controller import Controller
from ..data import read_image


@dataclass(frozen=True, kw_only=True)
class Config:
    """Answer for image files, and tell what was executed."""

    controller: Annotated[Path, tyro.conf.Positional]
    """Directory of a controller."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files; they are resized and cropped to the backbone's size."""
    price: float | None = None
    """Told to a controller that knows several budgets."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    config = tyro.cli(Config, args=arguments, prog="skipgym run")
    if not config.images:
        raise ValueError("images: expected at least one file, got none.")
    controller = Controller.load(config.controller)
    backbone, pieces = controller.task.backbone, controller.task.pieces
    channels, height, width = backbone.input_shape
    if height != width:
        raise ValueError(f"run: expected a backbone of square images, got {height} x {width}. Call the controller.")
    images = [read_image(path, image_size=height, channels=channels) for path in config.images]
    decision = controller(torch.stack(images), price=config.price)
    confidence = decision.logits.softmax(1).amax(1)
    for i, path in enumerate(config.images):
        label = int(decision.labels[i])
        kept = [name for name, action in zip(pieces, decision.actions[i].tolist(), strict=True) if action > 0]
        print(
            f"{path}: {backbone.class_names[label]} ({float(confidence[i]):.1%}), {float(decision.compute[i]):.1%} of "
            f"the full network's MACs, executed {len(kept)} of {len(pieces)}: {' '.join(kept) or 'nothing'}"
        )
    return 0
