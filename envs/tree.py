"""The tree of a task's decisions: followed once with some images, every prefix computed once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from .outcomes import Memo, Shared
from .state import State, merge
from .task import Task

LARGEST = 4096
"""Ways through a task that are tabulated, at most."""


@dataclass(frozen=True, eq=False)
class Tree:
    """Where each decision leads and what it costs, the same for every image.

    Decisions are nodes, numbered depth first; answers are leaves. Options of a decision of several parts are counted
    with the last part running fastest.

    Attributes:
        positions: Of each node. Shape (nodes,).
        children: Where each option leads: a node's number, or -1 - a leaf's. Shape (nodes, options).
        macs: What each option costs. Shape (nodes, options).
        begun: What has been spent before the first decision.
        reaches_full: Whether the last option everywhere leads to the untouched network's answer.
    """

    positions: Tensor
    children: Tensor
    macs: Tensor
    begun: float
    reaches_full: bool = True

    @property
    def leaves(self) -> int:
        """Number of answers."""
        return int((self.children < 0).sum())

    @property
    def is_comb(self) -> bool:
        """Whether of the options of each decision at most one goes on, so that answers alone are ever mixed."""
        return bool(((self.children >= 0).sum(1) <= 1).all())

    def ahead(self) -> dict[int, tuple[list[int], bool]]:
        """Return for each position which come next, and whether an answer may."""
        found: dict[int, tuple[list[int], bool]] = {}
        for position in self.positions.unique().tolist():
            children = self.children[self.positions == position]
            found[position] = self.positions[children[children >= 0]].unique().tolist(), bool((children < 0).any())
        return found

    @property
    def answers(self) -> int:
        """Number of answers that are kept: of all leaves, and of the untouched network where that is none of them."""
        return self.leaves + (not self.reaches_full)

    @property
    def untouched(self) -> int:
        """Number of the untouched network's answer."""
        if not self.reaches_full:
            return self.leaves
        node = 0
        while node >= 0:
            node = int(self.children[node, -1])
        return -1 - node

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "positions": self.positions.tolist(),
            "children": self.children.tolist(),
            "macs": self.macs.tolist(),
            "begun": self.begun,
            "reaches_full": self.reaches_full,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tree":
        """Return the tree that `as_json` described."""
        positions, children = (torch.tensor(content[key], dtype=torch.long) for key in ("positions", "children"))
        macs = torch.tensor(content["macs"], dtype=torch.double)
        return cls(positions, children, macs, float(content["begun"]), bool(content["reaches_full"]))


@dataclass(frozen=True, eq=False)
class Seen:
    """What N images showed and were answered on every way through a tree.

    Attributes:
        tree: The same for every batch of a task.
        observations: At each node. Shape (N, nodes, *observation_shape).
        answers: At each leaf, and the untouched network's where that is none of them. Shape (N, answers, classes).
    """

    tree: Tree
    observations: Tensor
    answers: Tensor

    def flat(self) -> Tensor:
        """Return all of it, one row for each image. Shape (N, width)."""
        return torch.cat([self.observations.flatten(1), self.answers.flatten(1)], 1)


@torch.inference_mode()
def explore(task: Task, images: Tensor) -> Seen:
    """Follow every way through a task with images, as `Task.prepare` takes them.

    Raises:
        ValueError: If there are too many ways, or where a decision leads or what it costs differs between images.
    """
    check_small(task)
    start = task.begin(task.prepare(images))
    growth = _Growth(task, len(images))
    growth.grow(start)
    tree = Tree(
        torch.tensor(growth.positions),
        torch.tensor(growth.children),
        torch.tensor(growth.macs, dtype=torch.double),
        _uniform(task, start.macs, "the beginning"),
        task.reaches_full,
    )
    if not task.reaches_full:
        growth.answers.append(task.untouched(images))
    return Seen(tree, torch.stack(growth.observations, 1), torch.stack(growth.answers, 1))


def check_small(task: Task) -> None:
    """Raise a ValueError if a task has too many ways through to follow them all."""
    ways = len(task.paths) if task.paths is not None else prod(task.decisions) ** task.horizon
    if ways > LARGEST:
        count = f"{ways:,}" if ways < 10**9 else f"{float(ways):.0e}"
        raise ValueError(
            f"table: expected a task with at most {LARGEST:,} ways through, got {task.name} with {count}. "
            "Run it live (--table 0), or make the task smaller."
        )


@dataclass(eq=False)
class _Growth:
    """A tree while it is being followed, depth first."""

    task: Task
    count: int
    memo: Memo = field(default_factory=Memo)
    positions: list[int] = field(default_factory=list)
    children: list[list[int]] = field(default_factory=list)
    macs: list[list[float]] = field(default_factory=list)
    observations: list[Tensor] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)

    def grow(self, state: State) -> int:
        """Follow all options from a state; return its number, or -1 - that of the answer that it has."""
        if bool((state.alive == 0).all()):
            assert state.answer is not None
            self.answers.append(state.answer)
            return -len(self.answers)
        if not bool((state.alive == 1).all()):
            raise ValueError(
                f"table: expected {self.task.name} to let decisions alone say who answers, got rows that chose alike "
                "and of which some have answered. Run it live (--table 0)."
            )
        node = len(self.positions)
        self.positions.append(state.position)
        self.observations.append(self.task.observe(state))
        self.children.append([])
        self.macs.append([])
        for after in self._options(state):
            where = f"decision {state.position}"
            self.macs[node].append(_uniform(self.task, after.macs - state.macs, where))
            self.children[node].append(self.grow(after))
        return node

    def _options(self, state: State) -> Iterator[State]:
        """Yield what each option makes of a state; all rows choose alike, and so stay together."""
        first = state.position * len(self.task.decisions)
        for option in product(*map(range, self.task.decisions)):
            choice = Shared(option, self.count, self.memo, first, state.rows.device)
            after = self.task.step(state, choice)
            joined = merge(after if isinstance(after, list) else [after])
            if len(joined) != 1:
                raise ValueError(
                    f"table: expected rows of {self.task.name} that choose alike to stay together, got "
                    f"{len(joined)} cohorts after decision {state.position}. Run it live (--table 0)."
                )
            yield joined[0]


def _uniform(task: Task, macs: Tensor, where: str) -> float:
    """Return what all rows spent alike."""
    if bool((macs != macs[0]).any()):
        raise ValueError(
            f"table: expected every image to cost the same at {where} of {task.name}, got {float(macs.min()):,.0f} "
            f"to {float(macs.max()):,.0f} MACs. Run it live (--table 0)."
        )
    return float(macs[0])
