"""Cluttered digits: a digit somewhere on a canvas, sometimes amid pieces of others. Easy and hard images by design."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..names import unknown
from .digits import digits
from .images import PART_NAMES, Part
from .registry import register_data
from .splits import Shares, Source, assemble

COPIES = {"train": 40, "policy": 64, "val": 16, "test": 8}
"""Canvases made of each digit."""

CANVAS_COPIES = {"train": 24, "policy": 32, "val": 4, "test": 8}
"""Likewise, of the larger canvases."""

SHARES = Shares(test=0.25, val=0.2, policy=0.28)
"""How the digits are split."""


@dataclass(frozen=True, kw_only=True)
class Clutter:
    """What lies on a canvas beside the digit.

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

    def __post_init__(self) -> None:
        """Check the ranges."""
        fits = self.size >= 8 and 1 <= self.piece <= 8
        if not (fits and 0 <= self.share <= 1 and 0 <= self.fewest <= self.most):
            raise ValueError(
                "clutter: expected a canvas of at least 8 pixels, pieces of 1 … 8, a share within 0 … 1 and "
                f"fewest <= most, got {self}."
            )


LARGE = Clutter(size=32, share=1.0, fewest=4, most=8)
"""What lies on the canvases of `cluttered-canvas`."""


@register_data("cluttered-digits", description="a digit on a 12x12 canvas, one in four amid clutter, grey, embedded")
def cluttered_digits() -> Source:
    """Return scikit-learn's digits on canvases of 12 x 12, a quarter of them amid two to five pieces of other digits.

    The digits are split first, so that no part holds a digit, or a piece of one, of another.
    """
    return scattered("cluttered-digits", Clutter(), COPIES)[0]


@register_data("cluttered-canvas", description="a digit on a 32x32 canvas amid four to eight pieces, grey, embedded")
def cluttered_canvas() -> Source:
    """Return scikit-learn's digits on canvases of 32 x 32, each amid four to eight pieces of other digits.

    The digit fills a sixteenth of the canvas: it pays to look in the right place, which `canvas_places` tells.
    """
    return scattered("cluttered-canvas", LARGE, CANVAS_COPIES)[0]


def canvas_places(part: str) -> Tensor:
    """Return row and column of the upper left corner of each digit of a part of `cluttered-canvas`. Shape (N, 2).

    Raises:
        ValueError: If there is no such part.
    """
    if part not in PART_NAMES:
        raise ValueError(unknown("part", part, PART_NAMES))
    return scattered("cluttered-canvas", LARGE, CANVAS_COPIES)[1][part]


def scattered(name: str, clutter: Clutter, copies: Mapping[str, int]) -> tuple[Source, dict[str, Tensor]]:
    """Scatter the digits over canvases.

    Args:
        name: Of the data.
        clutter: Of the canvases.
        copies: Of each part, how many canvases are made of a digit.

    Returns:
        The data, split; and for each part the upper left corners of its digits, shape (N, 2).
    """
    split = assemble(replace(digits(), shares=SHARES), policy_from="held-out", image_size=None)
    parts, places = {}, {}
    for seed, part in enumerate(PART_NAMES):
        digit = split.part(part)
        several = Part(digit.images.repeat(copies[part], 1, 1, 1), digit.labels.repeat(copies[part]))
        parts[part], places[part], _ = canvases(several, clutter, torch.Generator().manual_seed(seed))
    return Source(name=name, parts=parts, class_names=split.class_names, flip=False), places


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
    _lay(canvas, torch.arange(count), places, part.images[:, 0])
    return Part(canvas.unsqueeze(1), part.labels), places, pieces


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
