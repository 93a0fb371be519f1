"""Clips in which few frames tell: a digit shows up among noise and other shapes, and it grows lighter towards it."""

from dataclasses import replace

import torch
from torch import Tensor

from ..names import unknown
from .clips import padded
from .digits import digits
from .images import PART_NAMES, Part
from .registry import register_data
from .splits import Shares, Source, assemble

COPIES = {"train": 2, "policy": 8, "val": 4, "test": 2}
"""Clips made of each digit."""

SHARES = Shares(test=0.25, val=0.1, policy=0.25)
"""How the digits are split."""

FRAMES, FEWEST, SIZE = 12, 9, 12
"""Frames of a clip, its real ones at least, and height and width of each in pixels; a digit has 8."""

GLOW, REACH, FLICKER, GRAIN = 20.0, 4, 8.0, 50.0
"""By how much the ground grows lighter with each frame nearer to the digit, from how many frames away, of 255; its
standard deviation from frame to frame; and the range of each pixel's noise."""

SHAPED = 0.6
"""Share of the other frames that show a shape."""


@register_data(
    "digit-clips", description="a digit in 2 or 3 of 9-12 frames of 12x12, amid other shapes, grey, embedded"
)
def digit_clips() -> Source:
    """Return clips of scikit-learn's digits: each in two or three consecutive frames among noise and other shapes.

    The ground of the frames grows lighter from four frames away on, unsteadily, so that small frames hint at where to
    look; `telling_frames` says where it is. Clips have 9 … 12 real frames, the rest repeats the last. The digits are
    split first, so that no part holds a digit of another.
    """
    return _made()[0]


def telling_frames(part: str) -> Tensor:
    """Return the number of the first frame that shows the digit, from 0, and how many do, in each clip of a part.

    Returns:
        Shape (N, 2).

    Raises:
        ValueError: If there is no such part.
    """
    if part not in PART_NAMES:
        raise ValueError(unknown("part", part, PART_NAMES))
    return _made()[1][part]


def _made() -> tuple[Source, dict[str, Tensor]]:
    split = assemble(replace(digits(), shares=SHARES), policy_from="held-out", image_size=None)
    parts, telling = {}, {}
    for seed, name in enumerate(PART_NAMES):
        digit, copies = split.part(name), COPIES[name]
        several = Part(digit.images.repeat(copies, 1, 1, 1), digit.labels.repeat(copies))
        parts[name], telling[name] = clips(several, torch.Generator().manual_seed(seed))
    return Source(name="digit-clips", parts=parts, class_names=split.class_names, flip=False), telling


def clips(part: Part, generator: torch.Generator) -> tuple[Part, Tensor]:
    """Make a clip of each image.

    Args:
        part: Images of 8 x 8.
        generator: Of all that is drawn.

    Returns:
        The clips with the images' labels; and the first frame that shows the image, and how many do, shape (N, 2).
    """
    count = len(part)
    lengths = _whole(FEWEST, FRAMES + 1, count, generator)
    shown = _whole(2, 4, count, generator)
    first = (torch.rand(count, generator=generator) * (lengths - shown + 1)).long()
    frames = torch.arange(FRAMES)
    before, after = first[:, None] - frames, frames - (first + shown - 1)[:, None]
    distance = before.maximum(after).clamp(min=0)  # (N, FRAMES), from the nearest frame that tells
    telling = distance == 0
    shapes = _shapes()[_whole(0, len(_shapes()), count * FRAMES, generator)].view(count, FRAMES, 8, 8)
    shapes = shapes * (torch.rand((count, FRAMES, 1, 1), generator=generator) < SHAPED)
    drawn = torch.where(telling[:, :, None, None], part.images[:, 0].float()[:, None], shapes)
    canvas = _placed(drawn.flatten(0, 1), generator).view(count, FRAMES, SIZE, SIZE)
    ground = GLOW * (REACH - distance).clamp(min=0) + FLICKER * torch.randn(distance.shape, generator=generator)
    grain = GRAIN * torch.rand(canvas.shape, generator=generator)
    pixels = canvas.maximum(ground[:, :, None, None] + grain).round().clamp(0, 255).to(torch.uint8)
    return Part(padded(pixels.unsqueeze(2), lengths), part.labels), torch.stack([first, shown], 1)


def _placed(drawn: Tensor, generator: torch.Generator) -> Tensor:
    """Put squares of 8 x 8 somewhere on frames. Shape (F, 8, 8) to (F, SIZE, SIZE)."""
    canvas, reach = drawn.new_zeros(len(drawn), SIZE, SIZE), torch.arange(8)
    row, column = (_whole(0, SIZE - 8 + 1, len(drawn), generator)[:, None] + reach for _ in range(2))
    canvas[torch.arange(len(drawn))[:, None, None], row[:, :, None], column[:, None, :]] = drawn
    return canvas


def _shapes() -> Tensor:
    """Return what is no digit: a frame, a cross, a saltire, two bars and a disc, of 8 x 8. Shape (6, 8, 8)."""
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    edge, middle = (y - 3.5).abs().maximum((x - 3.5).abs()), (y - 3.5).abs().minimum((x - 3.5).abs())
    made = [
        (edge > 2) & (edge < 3.5),
        (middle < 1) & (edge < 3.5),
        ((y - x).abs() < 1) | ((y + x - 7).abs() < 1),
        ((y - 1.5).abs() < 1) | ((y - 5.5).abs() < 1),
        ((x - 1.5).abs() < 1) | ((x - 5.5).abs() < 1),
        (y - 3.5) ** 2 + (x - 3.5) ** 2 < 6,
    ]
    return torch.stack(made).float() * 220


def _whole(low: int, high: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw whole numbers from low to below high. Shape (count,)."""
    return torch.randint(low, high, (count,), generator=generator)
