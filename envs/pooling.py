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
    if x.dim() == 3:
        pooled = x[:, 0]
    else:
        pooled = torch.flatten(x.mean((2, 3)) if grid == 1 else F.adaptive_avg_pool2d(x, grid), 1)
    return F.pad(pooled, (0, width - pooled.shape[1]))
