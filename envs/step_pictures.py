"""Sequences as pictures: frames side by side, words as they are written."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..data.words import spell

CELL = 60, 14
"""Width and height of a word's picture, in pixels."""


def draw_steps(images: Tensor, vocabulary: tuple[str, ...]) -> Tensor:
    """Return the steps of sequences side by side.

    Args:
        images: Shape (N, T, C, H, W), uint8.
        vocabulary: Of texts; empty for frames.

    Returns:
        Shape (N, C, H, T x W), uint8.
    """
    if not vocabulary:
        return torch.cat(images.unbind(1), 3)
    return torch.stack([_written(spell(clip, vocabulary), len(clip)) for clip in images])


def _written(words: Sequence[str], steps: int) -> Tensor:
    """Return words in cells, black on white. Shape (1, height, steps x width)."""
    width, height = CELL
    page = Image.new("L", (steps * width, height), 255)
    draw = ImageDraw.Draw(page)
    for place, word in enumerate(words):
        draw.text((place * width + 2, 1), word[:10], fill=0)
    return torch.from_numpy(np.asarray(page).copy())[None]
