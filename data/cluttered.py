"""Cluttered digits: a digit somewhere on a canvas, sometimes amid pieces of others. Easy and hard images by design."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .digits import digits
from .images import PART_NAMES, Part
from .registry import register_data
from .splits import Shares, Source, assemble

COPIES = {"train": 40, "policy": 64, "val": 16, "test": 8}
"""Canvases made of each digit."""

SHARES = Shares(test=0.25, val=0.2, policy=0.28)
"""How the digits are split."""


@dataclass(frozen=True, kw_only=True)
class Clutter:
    """How a digit is drawn on a canvas, and what lies beside it.

    Raises:
        ValueError: If digit or pieces do not fit.
    """

    size: int = 12
    """Height and width of the canvas, in pixels; a digit has 8."""
    share: float = 0.25
    """Of the images that have any clutter."""
    fewest: int = 2
    """Pieces on a cluttered canvas, at least."""
    most: int = 5
    """Likewise, at most."""
    piece: int = 4
    """Height and width of a piece, cut out of another digit of the same part."""
    turn: float = 12.0
    """Largest angle by which a digit is turned, in degrees."""
    stretch: float = 0.1
    """Largest share by which it is stretched or shrunk, in height and width apart."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        fits = self.size >= 8 and 1 <= self.piece <= 8
        bent = 0 <= self.turn <= 180 and 0 <= self.stretch < 1
        if not (fits and bent and 0 <= self.share <= 1 and 0 <= self.fewest <= self.most):
            raise ValueError(
                "clutter: expected a canvas of at least 8 pixels, pieces of 1 … 8, a share within 0 … 1, fewest <= "
                f"most, a turn of 0 … 180 and a stretch from 0 to below 1, got {self}."
            )


@register_data("cluttered-digits", description="a digit on a 12x12 canvas, one in four amid clutter, grey, embedded")
def cluttered_digits() -> Source:
    """Return scikit-learn's digits, a little turned and stretched, on canvases of 12 x 12.

    A quarter of them lie amid two to five pieces of other digits.

    The digits are split first, so that no part holds a digit, or a piece of one, of another.
    """
    split = assemble(replace(digits(), shares=SHARES), policy_from="held-out", image_size=None)
    parts = {}
    for seed, name in enumerate(PART_NAMES):
        digit = split.part(name)
        several = Part(digit.images.repeat(COPIES[name], 1, 1, 1), digit.labels.repeat(COPIES[name]))
        parts[name], _, _ = canvases(several, Clutter(), torch.Generator().manual_seed(seed))
    return Source(name="cluttered-digits", parts=parts, class_names=split.class_names, flip=False)


def canvases(part: Part, clutter: Clutter, generator: torch.Generator) -> tuple[Part, Tensor, Tensor]:
    """Put each image somewhere on a canvas of its own, above the clutter.

    Where things overlap the brighter pixel stays.

    Args:
        part: Images of 8 x 8, the source of the pieces too.
        clutter: How much of it there is.
        generator: Of places and pieces.

    Returns:
        The canvases with the images' labels; row and column of each image's upper left corner, shape (N, 2); and the
        number of pieces on each, shape (N,).
    """
    count, size = len(part), clutter.size
    canvas = part.images.new_zeros(count, size, size)
    pieces = torch.randint(clutter.fewest, clutter.most + 1, (count,), generator=generator)
    pieces *= torch.rand(count, generator=generator) < clutter.share
    for number in range(clutter.most):
        rows = (pieces > number).nonzero().squeeze(1)
        others = part.images[torch.randint(count, (len(rows),), generator=generator), 0]
        cut = _places(len(rows), 8 - clutter.piece + 1, generator)
        put = _places(len(rows), size - clutter.piece + 1, generator)
        _lay(canvas, rows, put, others[_window(torch.arange(len(rows)), cut, clutter.piece)])
    places = _places(count, size - 8 + 1, generator)
    _lay(canvas, torch.arange(count), places, bent(part.images, clutter, generator)[:, 0])
    return Part(canvas.unsqueeze(1), part.labels), places, pieces


def bent(images: Tensor, clutter: Clutter, generator: torch.Generator) -> Tensor:
    """Turn and stretch images at random, each by its own amount. Shape (N, 1, H, W), uint8."""
    angle, *stretch = (2 * torch.rand(len(images), generator=generator) - 1 for _ in range(3))
    angle = angle * math.radians(clutter.turn)
    height, width = (1 / (1 + clutter.stretch * amount) for amount in stretch)
    zero = torch.zeros_like(angle)
    rows = (angle.cos() * width, -angle.sin() * width, zero), (angle.sin() * height, angle.cos() * height, zero)
    theta = torch.stack([torch.stack(row, 1) for row in rows], 1)  # (N, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round().to(torch.uint8)


def _places(count: int, options: int, generator: torch.Generator) -> Tensor:
    """Draw upper left corners. Shape (count, 2)."""
    return torch.randint(options, (count, 2), generator=generator)


def _window(rows: Tensor, corner: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the index of a square of pixels in each of some images (N, H, W)."""
    reach = torch.arange(side)
    return rows[:, None, None], corner[:, 0, None, None] + reach[:, None], corner[:, 1, None, None] + reach


def _lay(canvas: Tensor, rows: Tensor, corner: Tensor, patches: Tensor) -> None:
    """Lay square patches (N, S, S) onto some rows of the canvas; the brighter pixel stays."""
    window = _window(rows, corner, patches.shape[-1])
    canvas[window] = torch.maximum(canvas[window], patches)
