"""What rows showed last: those that stayed as they were need not be looked at again."""

import torch
from torch import Tensor

from ..backbones.routing import stretch
from .choice import Hard
from .state import State
from .task import Task


class View:
    """Observes cohorts for an interpreter, each row once for each change of it.

    To average feature maps takes a way through memory, which costs about what a tenth of a small convolution does.

    Args:
        task: Says what is observed, and where it stays the same.
        count: Number of inputs, or of slots.
    """

    def __init__(self, task: Task, count: int):
        self.task = task
        self.known = torch.zeros(count, dtype=torch.bool, device=task.device)
        self.seen: Tensor | None = None
        self.pays = any(task.stays_in_view(position) for position in range(task.horizon))

    def look(self, state: State) -> Tensor:
        """Return what the task observes. Shape (N, ...)."""
        if not self.pays:
            return self.task.observe(state)
        new = (~self.known[state.rows]).nonzero(as_tuple=True)[0]
        together = stretch(new) if len(new) else None
        if self.seen is None or len(new) == len(state) or (len(new) and together is None):
            shown = self.task.observe(state)
        else:
            shown = self.seen[state.rows]
            if together is not None:
                shown[together] = self.task.observe(state.between(together))
        if self.seen is None:
            self.seen = shown.new_zeros((len(self.known), *shown.shape[1:]))
        self.seen[state.rows] = shown
        return shown

    def decided(self, state: State, choice: Hard) -> None:
        """Take note of what becomes of rows next. `choice` has one part, or the task stays nowhere."""
        if self.pays:
            stays = self.task.stays_in_view(state.position)
            self.known[state.rows] = choice.actions == 0 if stays else torch.zeros_like(state.rows, dtype=torch.bool)

    def copy(self, rows: Tensor, others: Tensor) -> None:
        """Know of other rows what is known of these: they have become the same. Each of shape (M,)."""
        self.known[others] = self.known[rows]
        if self.seen is not None:
            self.seen[others] = self.seen[rows]

    def forget(self, rows: Tensor) -> None:
        """Look anew at rows that have become others."""
        self.known[rows] = False
