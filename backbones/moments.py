"""Frames of clips at a few moments, tiny ones that hint at which to look at, and what tells a reader when one was."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.clips import at_moments
from .backbone import Backbone
from .glimpses import encode_macs
from .reader import Reader


def check_clips(backbone: Backbone, clips: Tensor) -> None:
    """Raise a ValueError unless these are clips whose frames a network can take."""
    if clips.dim() != 5 or not clips.shape[1]:
        expected = " x ".join(map(str, backbone.input_shape))
        raise ValueError(
            f"clips: expected shape (N, T, C, H, W) with C x H x W = {expected} and T >= 1, got {tuple(clips.shape)}. "
            "Put the frames second and the channels third; an image is a clip of one frame."
        )
    backbone.check_images(clips.flatten(0, 1))


def prepare_frames(backbone: Backbone, clips: Tensor, moments: int) -> Tensor:
    """Return a clip's frames at evenly spread moments, normalised as the network was trained on images.

    Args:
        backbone: The network.
        clips: Shape (N, T, C, H, W), uint8 or floats in 0…1; of a short one the last frame repeats.
        moments: How many.

    Returns:
        Shape (N, moments, C', H, W).
    """
    frames = at_moments(clips, moments)
    return backbone.prepare(frames.flatten(0, 1)).contiguous().view(len(clips), moments, *backbone.input_shape)


def preview(frames: Tensor, side: int) -> Tensor:
    """Return frames scaled down by averaging, without colour, one after the other.

    Shape (N, moments, C, H, W) to (N, moments x side x side).
    """
    return F.adaptive_avg_pool2d(frames.mean(2), side).flatten(1)


def time_code(moment: Tensor, moments: int) -> Tensor:
    """Return when frames are as numbers for a reader, -1 … 1. Shape (N,), numbers from 0, to (N, 1)."""
    return (2 * moment.float() / max(1, moments - 1) - 1).unsqueeze(1)


def frame_code(moment: Tensor, size: Tensor | int, reader: Reader) -> Tensor:
    """Return when frames are as numbers for a reader, and how often they were halved where that differs.

    Shape (N,), numbers from 0, to (N, 1) or (N, 2).
    """
    when = time_code(moment, reader.moments)
    if reader.sizes == 1:
        return when
    halved = torch.as_tensor(size, dtype=when.dtype, device=when.device).expand(len(when))
    return torch.cat([when, halved.unsqueeze(1)], 1)


def frame_macs(backbone: Backbone, size: int = 0) -> int:
    """Return the cost of encoding a frame: stem and blocks, in MACs.

    Args:
        backbone: The network.
        size: How often frames are halved before.

    Raises:
        ValueError: If the network gives no feature maps, or takes no frames of that size.
    """
    if len(backbone.blocks[-1].out_shape) != 3:
        raise ValueError(
            f"backbone {backbone.name}: expected one whose blocks give feature maps, got rows of shape "
            f"{backbone.blocks[-1].out_shape}. Use a convolutional network."
        )
    if not size:
        return backbone.stem_macs + sum(backbone.block_macs)
    return encode_macs(backbone, *(-(-side // 2**size) for side in backbone.input_shape[1:]))
