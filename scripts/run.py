"""`skipgym run`: answers for image, video or text files, with what was executed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from ..agents.controller import Controller
from ..agents.pictures import check_drawable, check_format, save_story
from ..data import read_image
from ..data.clips import evenly, joined
from ..data.text import read_text
from ..data.video import SUFFIXES as VIDEOS
from ..data.video import Video
from ..data.video_folder import MOST
from ..data.words import as_clips, split_words


@dataclass(frozen=True, kw_only=True)
class Config:
    """Answer for image, video or text files, and tell what was executed."""

    controller: Annotated[Path, tyro.conf.Positional]
    """Directory of a controller."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files, which are resized and cropped to the backbone's size; videos, for a controller of clips: only frames
    that the task can look at are decoded; or plain text, for a controller of texts."""
    price: float | None = None
    """Told to a controller that knows several budgets."""
    picture: Path | None = None
    """Write where on the image was looked, or which words were read, in order, and how the answer grew surer; for
    controllers of patch-crop and of texts. For those of token-skip and pixel-mask, what was left out. With several
    files a number is put before the suffix."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    config = tyro.cli(Config, args=arguments, prog="skipgym run")
    if not config.images:
        raise ValueError("images: expected at least one file, got none.")
    controller = Controller.load(config.controller)
    backbone, pieces = controller.task.backbone, controller.task.pieces
    if config.picture:
        check_drawable(controller.task)
        check_format(config.picture)
    images, frames = _inputs(controller, config.images)
    decision = controller(images, price=config.price)
    confidence = decision.logits.softmax(1).amax(1)
    for i, path in enumerate(config.images):
        label = int(decision.labels[i])
        places = None if decision.places is None else decision.places[i]
        kept = controller.task.executed(images[i], decision.actions[i].tolist(), places=places, frames=frames[i])
        told = (", " if any(" " in name for name in kept) else " ").join(kept) or "nothing"
        print(
            f"{path}: {backbone.class_names[label]} ({float(confidence[i]):.1%}), {float(decision.compute[i]):.1%} of "
            f"the full network's MACs, executed {len(kept)} of {len(pieces)}: {told}"
        )
        if config.picture:
            save_story(controller, images[i], _numbered(config.picture, i, len(images)), price=config.price)
    return 0


def _inputs(controller: Controller, paths: Sequence[Path]) -> tuple[Tensor, list[list[int]]]:
    """Return what files hold, as the controller takes it, and of videos the numbers of the frames, from 0."""
    none: list[list[int]] = [[] for _ in paths]
    if controller.task.backbone.vocabulary:
        return _texts(controller, paths), none
    channels, height, width = controller.task.backbone.input_shape
    if height != width:
        raise ValueError(f"run: expected a backbone of square images, got {height} x {width}. Call the controller.")
    if controller.task.takes_clips:
        clips, numbers = zip(*(_clip(controller, path, height, channels) for path in paths), strict=True)
        return joined(clips), list(numbers)
    return torch.stack([read_image(path, image_size=height, channels=channels) for path in paths]), none


def _clip(controller: Controller, path: Path, size: int, channels: int) -> tuple[Tensor, list[int]]:
    """Return the frames of a video that the task can look at, of those a directory's are read to; their numbers."""
    if path.suffix.lower() not in VIDEOS:
        raise ValueError(
            f"run: expected videos ({', '.join(sorted(VIDEOS))}) for a controller of {controller.task.name}, which "
            f"takes clips, got {path}. For clips in an .npz use skipgym evaluate --data FILE.npz."
        )
    video = Video(path)
    kept = evenly(len(video), MOST)
    numbers = [kept[i] for i in controller.task.offered(len(kept))]
    return video.frames(numbers, image_size=size, channels=channels), numbers


def _texts(controller: Controller, paths: Sequence[Path]) -> Tensor:
    texts = [split_words(read_text(path)) for path in paths]
    return as_clips(texts, controller.task.backbone.vocabulary, controller.task.blank().shape[1])


def _numbered(path: Path, index: int, count: int) -> Path:
    """Return the name of one of several pictures."""
    return path if count == 1 else path.with_stem(f"{path.stem}-{index + 1}")
