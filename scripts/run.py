"""`skipgym run`: answers for image files, with what was executed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ..agents.controller import Controller
from ..agents.pictures import check_drawable, check_format, save_story
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
    picture: Path | None = None
    """Write where on the image was looked, in order, and how the answer grew surer; for controllers of patch-crop. With
    several images a number is put before the suffix."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    config = tyro.cli(Config, args=arguments, prog="skipgym run")
    if not config.images:
        raise ValueError("images: expected at least one file, got none.")
    controller = Controller.load(config.controller)
    if controller.task.takes_clips:
        raise ValueError(
            f"run: expected the controller of a task on images, got one of {controller.task.name}, which takes clips. "
            "Use skipgym evaluate --data FILE.npz, or call the controller."
        )
    backbone, pieces = controller.task.backbone, controller.task.pieces
    channels, height, width = backbone.input_shape
    if height != width:
        raise ValueError(f"run: expected a backbone of square images, got {height} x {width}. Call the controller.")
    if config.picture:
        check_drawable(controller.task)
        check_format(config.picture)
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
        if config.picture:
            save_story(controller, images[i], _numbered(config.picture, i, len(images)), price=config.price)
    return 0


def _numbered(path: Path, index: int, count: int) -> Path:
    """Return the name of one of several pictures."""
    return path if count == 1 else path.with_stem(f"{path.stem}-{index + 1}")
