"""Rows of a batch take different branches, and each branch runs on its own rows only."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Branch = Callable[[Tensor], Tensor]


def route(branches: Sequence[Branch], x: Tensor, chosen: Tensor) -> Tensor:
    """Run each branch on the rows that chose it, and put the results back in their places.

    Args:
        branches: Functions of a batch; all that are chosen give the same shape.
        x: Input rows. Shape (N, ...).
        chosen: Index of the branch of each row. Shape (N,), integers.

    Returns:
        Output rows in the order of `x`. Shape (N, ...).

    Raises:
        ValueError: If a row chose none of the branches.
    """
    groups = [(branch, (chosen == i).nonzero(as_tuple=True)[0]) for i, branch in enumerate(branches)]
    groups = [(branch, rows) for branch, rows in groups if len(rows)]
    if sum(len(rows) for _, rows in groups) != len(x):
        raise ValueError(f"route: expected each of {len(x)} rows to choose 0 … {len(branches) - 1}, got {chosen}.")
    if len(groups) <= 1:  # all rows agree (or there are none): nothing to move
        return groups[0][0](x) if groups else branches[0](x)
    return _scatter([(rows, branch(take(x, rows))) for branch, rows in groups], len(x))


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Return some rows of a batch, in its memory layout.

    `index_select` would lay feature maps in channels_last out anew, and slow down every convolution after it.

    Args:
        x: Shape (N, ...).
        rows: Numbers of rows. Shape (M,).
    """
    if x.dim() != 4 or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x.index_select(0, rows)
    _, channels, height, width = x.shape
    flat = x.permute(0, 2, 3, 1).flatten(1).index_select(0, rows)
    return flat.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)


def _scatter(results: list[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """Assemble rows computed apart. Each result is (rows, values)."""
    values = results[0][1]
    layout = torch.channels_last if values.dim() == 4 else torch.contiguous_format
    out = torch.empty((count, *values.shape[1:]), dtype=values.dtype, device=values.device, memory_format=layout)
    for rows, value in results:
        out.index_copy_(0, rows, value)
    return out
