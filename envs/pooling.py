"""Features as a policy sees them: averaged, and as wide at every position."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def pooled_size(shape: Sequence[int], grid: int = 1) -> int:
    """Return how many numbers `pool` makes of features of this shape, (C, H, W) or (T, D)."""
    return shape[0] * grid * grid if len(shape) == 3 else shape[-1]


def pool(x: Tensor, width: int, grid: int = 1) -> Tensor:
    """Average feature maps (N, C, H, W) to (N, C·grid²), take the first of tokens (N, T, D); padded to `width`."""
    pooled = x[:, 0] if x.dim() == 3 else _averaged(x, grid)
    return F.pad(pooled, (0, width - pooled.shape[1]))


def _averaged(x: Tensor, grid: int) -> Tensor:
    """Average feature maps over each cell of a raster. Shape (N, C, H, W) to (N, C·grid²)."""
    if grid > 1:
        return F.adaptive_avg_pool2d(x, grid).flatten(1)
    if torch.compiler.is_exporting() or x.is_contiguous():
        return x.mean((2, 3))
    places = x.permute(0, 2, 3, 1).flatten(1, 2)  # of channels_last a view, whose sum goes straight through memory
    return places.sum(1) / places.shape[1]
