"""Rows of a batch take different branches, and each branch runs on its own rows only."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Branch = Callable[[Tensor], Tensor]

LONG_ROW = 32 << 10
"""Bytes from which on rows are exchanged one by one: that costs some calls, and spares a way through memory."""


def unchanged(x: Tensor) -> Tensor:
    """Return rows as they are; as a branch it tells `route` that nothing needs to move."""
    return x


def route(branches: Sequence[Branch], x: Tensor, chosen: Tensor, *, in_place: bool = False) -> Tensor:
    """Run each branch on the rows that chose it, and put the results back in their places.

    Args:
        branches: Functions of a batch; all that are chosen give the same shape.
        x: Input rows. Shape (N, ...).
        chosen: Index of the branch of each row. Shape (N,), integers.
        in_place: Whether `x` may be overwritten, as nobody else needs it: rows that are `unchanged` then stay where
            they are.

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
        branch = groups[0][0] if groups else branches[0]
        return _over(branch, x) if in_place else branch(x)
    moved = [(branch, rows) for branch, rows in groups if branch is not unchanged]
    out = None
    if len(moved) < len(groups):
        out = x if in_place else x.clone()
    for branch, rows in moved:
        together = stretch(rows)
        if together is None:
            values = branch(take(x, rows))
            out = room(values, len(x)) if out is None else out
            out.index_copy_(0, rows, values)
            continue
        mine = x[together]
        values = _over(branch, mine) if out is x else branch(mine)
        out = room(values, len(x)) if out is None else out
        if values is not mine or out is not x:
            out[together] = values
    assert out is not None
    return out


def _over(branch: Branch, x: Tensor) -> Tensor:
    """Run a branch on rows that nobody else needs: one that has a method `overwrite` puts its results over them."""
    return getattr(branch, "overwrite", branch)(x)


def stretch(rows: Tensor) -> slice | None:
    """Return rising row numbers as a slice where none is left out between them: such rows need not be gathered."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first == len(rows) - 1 else None


def flat_rows(x: Tensor) -> Tensor | None:
    """Return a view with one stretch of memory for each row; None where rows are not laid out so. Shape (N, D)."""
    if x.is_contiguous():
        return x.flatten(1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).flatten(1)
    return None


def swap(x: Tensor, first: Tensor, second: Tensor) -> None:
    """Exchange pairs of rows in their place.

    Args:
        x: Of which `flat_rows` can be had. Shape (N, ...).
        first: One row of each pair. Shape (M,); no row is named twice.
        second: The other. Shape (M,).
    """
    flat = flat_rows(x)
    assert flat is not None
    if x.device.type != "cpu" or flat[0].nbytes < LONG_ROW:
        both = torch.cat([first, second])
        flat.index_copy_(0, both, flat.index_select(0, both.roll(len(first))))
        return
    aside, rows = torch.empty_like(flat[0]), flat.unbind(0)
    for one, other in zip(first.tolist(), second.tolist(), strict=True):  # each pair while it is in the cache
        aside.copy_(rows[one])
        rows[one].copy_(rows[other])
        rows[other].copy_(aside)


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


def evenly(count: int, branches: int, device: torch.device) -> Tensor:
    """Draw a branch for each row, all equally often, from torch's global generator. Shape (count,)."""
    return torch.randperm(count, device=device) % branches


def room(values: Tensor, count: int) -> Tensor:
    """Return room for so many rows like these."""
    layout = torch.channels_last if values.dim() == 4 else torch.contiguous_format
    return torch.empty((count, *values.shape[1:]), dtype=values.dtype, device=values.device, memory_format=layout)
