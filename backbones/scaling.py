"""A network on images of several sizes: how they are scaled, which sizes it takes, and what it costs on each."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .backbone import Backbone
from .cost import count_macs

Scales = str | Sequence[int]
"""As given, or as the command line has them: "64 96 128"."""


def scaled_size(shape: Sequence[int], scale: int) -> tuple[int, int]:
    """Return height and width of images (…, H, W) when their longer side is brought to `scale` pixels."""
    height, width = shape[-2:]
    ratio = scale / max(height, width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def scaled(x: Tensor, scale: int) -> Tensor:
    """Return images with their longer side brought to `scale` pixels: bilinear, antialiased; untouched if it is that.

    Args:
        x: Shape (N, C, H, W), floats.
        scale: At least 1.
    """
    size = scaled_size(x.shape, scale)
    if size == tuple(x.shape[-2:]):
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)


def read_scales(scales: Scales) -> tuple[int, ...]:
    """Return scales as numbers.

    Raises:
        ValueError: If they are no whole numbers, fewer than two, or do not rise from 1 on.
    """
    words = scales.replace(",", " ").split() if isinstance(scales, str) else scales
    try:
        found = tuple(int(str(word)) for word in words)
    except (TypeError, ValueError) as error:
        raise ValueError(f'scales: expected whole numbers of pixels, as in "64 96 128", got {scales!r}.') from error
    if len(found) < 2 or list(found) != sorted(set(found)) or found[0] < 1:
        raise ValueError(
            f"scales: expected two or more rising numbers of pixels from 1 on, each once, got {_told(found)}. "
            "Give them from small to large; the last is the images' own size."
        )
    return found


def default_scales(shape: Sequence[int]) -> tuple[int, ...]:
    """Return half of the longer side of images (…, H, W), three quarters, and all of it."""
    side = max(shape[-2:])
    return tuple(sorted({max(1, side // 2), max(1, 3 * side // 4), side}))


def check_scales(scales: Sequence[int], shape: Sequence[int]) -> None:
    """Raise a ValueError unless the largest scale is the own size of images (…, H, W)."""
    side = max(shape[-2:])
    if scales[-1] != side:
        wrong = "more than there is" if scales[-1] > side else "less"
        raise ValueError(
            f"scales: expected the last to be {side}, the longer side of the images, got {scales[-1]}, {wrong}. "
            f"End with {side}, or bring the images to another size."
        )


def scale_macs(backbone: Backbone, scales: Sequence[int]) -> list[int]:
    """Return what a network costs at each scale, in MACs of one image, counted on images of that size.

    Raises:
        ValueError: If the scales do not end with the images' own size, the network does not run at one of them, or
            two cost the same.
    """
    check_scales(scales, backbone.input_shape)
    macs = []
    for scale in scales:
        try:
            macs.append(_macs_at(backbone, scale))
        except (RuntimeError, AssertionError) as error:  # whatever torch raises of maps that have run out of pixels
            raise ValueError(_too_small(backbone, scale, str(error))) from error
    if macs != sorted(set(macs)):
        costs = ", ".join(f"{one:,} at {scale}" for one, scale in zip(macs, scales, strict=True))
        raise ValueError(f"scales: expected each to cost more than the one before, got {costs} MACs. Leave some out.")
    return macs


def _macs_at(backbone: Backbone, scale: int) -> int:
    """Return the cost of one image at a scale; the network's statistics are left alone."""
    device = next(backbone.network.parameters()).device
    x = torch.zeros((1, backbone.input_shape[0], *scaled_size(backbone.input_shape, scale)), device=device)
    was_training = backbone.training
    backbone.eval()
    try:
        return count_macs(backbone, x)
    finally:
        backbone.train(was_training)


def _too_small(backbone: Backbone, scale: int, reason: str) -> str:
    """Return what to say of a scale at which a network does not run, with the smallest at which it does."""
    first = reason.strip().splitlines()[0].rstrip(".!") if reason.strip() else "an error"
    least = next(one for one in range(scale + 1, max(backbone.input_shape[1:]) + 1) if _runs(backbone, one))
    if least == max(backbone.input_shape[1:]):
        remedy = "It runs at its own size only, as networks with fixed positions do; take a convolutional one."
    else:
        remedy = f"Use {least} or more."
    return f"scales: expected sizes at which {backbone.name} runs, got {scale} ({first}). {remedy}"


def _runs(backbone: Backbone, scale: int) -> bool:
    try:
        _macs_at(backbone, scale)
    except (RuntimeError, AssertionError):
        return False
    return True


def _told(scales: Sequence[int]) -> str:
    return " ".join(map(str, scales)) or "none"
