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
    return _scatter([(rows, branch(x.index_select(0, rows))) for branch, rows in groups], len(x))


def _scatter(results: list[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """Assemble rows computed apart. Each result is (rows, values)."""
    values = results[0][1]
    layout = torch.channels_last if values.dim() == 4 else torch.contiguous_format
    out = torch.empty((count, *values.shape[1:]), dtype=values.dtype, device=values.device, memory_format=layout)
    for rows, value in results:
        out.index_copy_(0, rows, value)
    return out
