"""Sequences of words or frames: how they are prepared, how long each is, and what a frozen network makes of a step."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.clips import clip_lengths
from .backbone import Backbone
from .glimpses import encode


def prepare_steps(backbone: Backbone, clips: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the steps of sequences as `step_features` takes them, and which of them are real.

    Where the network's stem costs nothing, since it looks up words, it has been applied.

    Args:
        backbone: The network.
        clips: Shape (N, T, C, H, W), T at most `steps`; of a short one the last frame repeats.
        steps: How many there are to be.

    Returns:
        Shapes (N, steps, ...) and (N, steps), 1 where a step is real.
    """
    frames = backbone.prepare(clips.flatten(0, 1)).contiguous()
    frames = (backbone.stem(frames) if looks_up(backbone) else frames).unflatten(0, clips.shape[:2])
    short = steps - clips.shape[1]
    frames = torch.cat([frames, frames[:, -1:].expand(-1, short, *frames.shape[2:])], 1) if short else frames
    real = torch.arange(steps, device=clips.device) < clip_lengths(clips)[:, None]
    return frames.contiguous(), real.to(frames.dtype)


def looks_up(backbone: Backbone) -> bool:
    """Return whether the stem costs nothing, as the look-up of a word's vector."""
    return backbone.stem_macs == 0


def step_shape(backbone: Backbone) -> tuple[int, ...]:
    """Return the shape of one step as `prepare_steps` gives it."""
    return backbone.blocks[0].in_shape if looks_up(backbone) else backbone.input_shape


def step_features(backbone: Backbone, x: Tensor) -> Tensor:
    """Return what a network makes of steps, averaged over places. Shape (N, *step_shape) to (N, D)."""
    if not looks_up(backbone):
        return encode(backbone, x).mean((2, 3))
    for block in backbone.blocks:
        x = block.run(x)
    return x.mean((2, 3))


def glimpse_of_step(backbone: Backbone, x: Tensor, side: int) -> Tensor:
    """Return what is seen of a step before it is read: a word's vector, or a frame scaled down, without colour.

    Shape (N, *step_shape) to (N, numbers).
    """
    return x.flatten(1) if looks_up(backbone) else F.adaptive_avg_pool2d(x.mean(1), side).flatten(1)
