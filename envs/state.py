"""Where the rows of a batch stand between two decisions."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..backbones.routing import swap, take
from .choice import cost_dtype


@dataclass(frozen=True)
class State:
    """A cohort: N rows that stand at the same position.

    Attributes:
        features: What the next decision acts on. Shape (N, ...).
        macs: Spent so far, in MACs. Shape (N,).
        alive: Share of the row that has not answered: 1 before, 0 after; between them under soft choices. Shape (N,).
        answer: Logits given so far, weighted by the share that gave them; None before any. Shape (N, classes).
        rows: Which input each row belongs to; kept by the interpreter. Shape (N,), integers.
        position: Which decision comes next; shared by all rows.
        memory: Whatever else a task carries along, each with N rows.
    """

    features: Tensor
    macs: Tensor
    alive: Tensor
    rows: Tensor
    answer: Tensor | None = None
    position: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, features: Tensor, *, macs: float = 0, **memory: Tensor) -> "State":
        """Return the state before the first decision, when `macs` have been spent on each row."""
        count, device = features.shape[0], features.device  # not len(): exporters trace the shape
        return cls(
            features=features,
            macs=torch.full((count,), float(macs), dtype=cost_dtype(device), device=device),
            alive=torch.ones(count, device=device),
            rows=torch.arange(count, device=device),
            memory=memory,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def advance(
        self, features: Tensor, *, macs: Tensor | float, position: int | None = None, **memory: Tensor
    ) -> "State":
        """Return the state after a decision: new features, more spent, at the next position or the given one."""
        return replace(
            self,
            features=features,
            macs=self.macs + self.alive * macs,
            position=self.position + 1 if position is None else position,
            memory={**self.memory, **memory},
        )

    def finish(self, answer: Tensor, *, macs: Tensor | float = 0, when: Tensor | float = 1.0) -> "State":
        """Let rows answer.

        Args:
            answer: Logits. Shape (N, classes).
            macs: What the answer costs those who give it.
            when: Who answers now, as a weight 0…1. Shape (N,), or 1 for all.
        """
        share = self.alive * when
        given = share.unsqueeze(1) * answer
        return replace(
            self,
            answer=given if self.answer is None else self.answer + given,
            macs=self.macs + share * macs if isinstance(macs, Tensor) or macs else self.macs,
            alive=self.alive - share,
        )

    def select(self, index: Tensor) -> "State":
        """Return some of the rows. `index` holds positions within this cohort, or a mask."""
        numbers = index.nonzero(as_tuple=True)[0] if index.dtype == torch.bool else index
        return self._each(lambda value: take(value, numbers))

    def between(self, rows: slice) -> "State":
        """Return rows that follow each other, as views."""
        return self._each(lambda value: value[rows])

    def swapped(self, order: Tensor, first: Tensor, second: Tensor) -> "State":
        """Return the rows in another order; features are exchanged in their place.

        Args:
            order: What stands where afterwards. Shape (N,).
            first: One row of each pair that changes places. Shape (M,).
            second: The other. Shape (M,).
        """
        swap(self.features, first, second)
        others = replace(self, features=self.rows)
        return replace(others._each(lambda value: take(value, order)), features=self.features)

    def split_done(self) -> tuple["State", "State"]:
        """Return the rows that still decide, and those that have answered."""
        done = self.alive == 0
        count = int(done.count_nonzero())
        if count in (0, len(self)):
            nobody = self._each(lambda value: value[:0])
            return (nobody, self) if count else (self, nobody)
        return self.select(~done), self.select(done)

    def _each(self, function: Any) -> "State":
        changed = {f.name: function(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **changed, memory={key: function(value) for key, value in self.memory.items()})


def merge(states: Iterable[State]) -> list[State]:
    """Join cohorts that stand at the same position; the others stay apart. Empty ones disappear."""
    groups: dict[int, list[State]] = {}
    for state in states:
        if len(state):
            groups.setdefault(state.position, []).append(state)
    return [_join(group) for _, group in sorted(groups.items())]


def _join(group: list[State]) -> State:
    if len(group) == 1:
        return group[0]
    answers = [state.answer for state in group if state.answer is not None]
    if answers and len(answers) < len(group):  # some cohorts have had an exit on their way, others not
        classes = answers[0].shape[1]
        group = [
            state if state.answer is not None else replace(state, answer=answers[0].new_zeros((len(state), classes)))
            for state in group
        ]
    first = group[0]
    joined = {
        f.name: torch.cat([getattr(state, f.name) for state in group])
        for f in fields(first)
        if isinstance(getattr(first, f.name), Tensor)
    }
    memory = {key: torch.cat([state.memory[key] for state in group]) for key in first.memory}
    return replace(first, **joined, memory=memory)
