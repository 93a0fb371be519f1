"""Clips: several frames of one thing. A clip shorter than others repeats its last frame; so lengths travel with it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def padded(clips: Tensor, lengths: Tensor) -> Tensor:
    """Return clips whose frames beyond their length repeat the last real one.

    Args:
        clips: Shape (N, T, ...).
        lengths: Number of real frames, 1 … T. Shape (N,), integers.
    """
    last = torch.arange(clips.shape[1]).minimum(lengths[:, None] - 1)  # (N, T): which frame stands there
    return clips[torch.arange(len(clips))[:, None], last]


def joined(clips: Sequence[Tensor]) -> Tensor:
    """Return clips of different length as one batch; the short ones repeat their last frame.

    Args:
        clips: Each of shape (frames, ...), 1 frame or more.

    Returns:
        Shape (N, T, ...).
    """
    return padded(pad_sequence(list(clips), batch_first=True), torch.tensor([len(clip) for clip in clips]))


def clip_lengths(clips: Tensor) -> Tensor:
    """Return how many frames each clip has before nothing but its last frame is repeated. Shape (N, T, ...) to (N,)."""
    changed = (clips != clips[:, -1:]).flatten(2).any(2)  # (N, T)
    number = torch.arange(1, clips.shape[1] + 1, device=clips.device)
    return (changed * number).amax(1) + 1


def at_moments(clips: Tensor, moments: int) -> Tensor:
    """Return frames spread evenly over each clip's real length, first and last included.

    Clips of fewer frames than moments show some of them at several moments.

    Args:
        clips: Shape (N, T, C, H, W).
        moments: How many; a single one is in the middle.

    Returns:
        Shape (N, moments, C, H, W).
    """
    return clips[torch.arange(len(clips), device=clips.device)[:, None], moment_numbers(clips, moments)]


def moment_numbers(clips: Tensor, moments: int) -> Tensor:
    """Return the numbers, from 0, of the frames that `at_moments` shows. Shape (N, moments)."""
    first, last = (0.0, 1.0) if moments > 1 else (0.5, 0.5)
    share = torch.linspace(first, last, moments, device=clips.device)
    return (share * (clip_lengths(clips)[:, None] - 1)).round().long()


def evenly(length: int, count: int) -> list[int]:
    """Return numbers of so many frames spread evenly over a length, first and last included; of fewer frames all."""
    if length <= count:
        return list(range(length))
    ends = (0.0, 1.0) if count > 1 else (0.5, 0.5)
    return (torch.linspace(*ends, count) * (length - 1)).round().long().tolist()


def real_frames(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Return all frames of all clips but for those that only fill up, and the number of each one's clip.

    Returns:
        Shapes (F, C, H, W) and (F,).
    """
    real = torch.arange(clips.shape[1]) < clip_lengths(clips)[:, None]
    return clips[real], real.nonzero()[:, 0]
