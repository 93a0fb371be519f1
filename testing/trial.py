"""A task, some inputs, and decisions about them: what the rules look at."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..envs.choice import Choice, Hard, Soft, one_hot, random_places
from ..envs.state import State, merge
from ..envs.task import Task

Kind = Callable[[Tensor], Choice]

NAMES = {"macs": "cost", "logits": "answer", "observed": "observation"}


class Step(NamedTuple):
    """One decision of one cohort: the state before, what was observed there, the cohorts after, whether it may part."""

    before: State
    observed: Tensor
    after: list[State]
    parted: bool


@dataclass(frozen=True)
class Trace:
    """What became of N inputs, in their order.

    Attributes:
        logits: Answers. Shape (N, classes).
        macs: Spent. Shape (N,).
        observed: What a policy saw before each decision; zero where there was none. Shape (N, horizon, …).
    """

    logits: Tensor
    macs: Tensor
    observed: Tensor


class Trial:
    """Follows decisions through a task.

    Args:
        task: The task.
        images: Shape (N, C, H, W), uint8 or floats in 0…1.
        seed: Of the decisions.
        tables: How many tables of random decisions, beside leaving out everything and executing everything.

    Attributes:
        inputs: Prepared images.
        tables: Tables of decisions, each (N, horizon, parts), and where decisions have a place
            (N, horizon, 1 + coordinates).
    """

    def __init__(self, task: Task, images: Tensor, *, seed: int, tables: int):
        self.task, self.images, self.inputs = task, images, task.prepare(images)
        self.generator = torch.Generator().manual_seed(seed)
        self._random = tables

    @cached_property
    def tables(self) -> list[Tensor]:
        last = torch.tensor(self.task.decisions) - 1
        shape = (len(self.inputs), self.task.horizon)
        everything = last.expand(*shape, -1)
        tables = [torch.zeros_like(everything), everything, *(self._draw(shape) for _ in range(self._random))]
        if not self.task.coordinates:
            return tables
        size = (*shape, self.task.coordinates)
        return [torch.cat([of, random_places(size, self.generator)], 2) for of in tables]

    @property
    def mixed(self) -> Tensor:
        """Decisions that differ between rows."""
        return self.tables[-1]

    def on(self, task: Task) -> "Trial":
        """Return the same decisions about the same inputs for another task."""
        other = copy.copy(self)
        other.task = task
        other.__dict__.pop("routed", None)
        return other

    def _draw(self, shape: tuple[int, int]) -> Tensor:
        return torch.stack([torch.randint(n, shape, generator=self.generator) for n in self.task.decisions], 2)

    def at(self, state: State, actions: Tensor) -> Tensor:
        """Return the options (N,) or (N, parts) that a cohort takes at its position."""
        parts = len(self.task.decisions)
        chosen = actions.to(state.rows.device)[state.rows, state.position, :parts].long()
        return chosen[:, 0] if parts == 1 else chosen

    def choice(self, state: State, actions: Tensor, kind: Kind = Hard) -> Choice:
        """Return the decisions that a cohort takes at its position, and where."""
        choice = kind(self.at(state, actions))
        if not self.task.coordinates:
            return choice
        return choice.placed(actions.to(state.rows.device)[state.rows, state.position, len(self.task.decisions) :])

    def soft(self, actions: Tensor) -> Soft:
        """Return decisions as one-hot weights."""
        return one_hot(actions, self.task.decisions)

    def walk(self, actions: Tensor, kind: Kind = Hard, inputs: Tensor | None = None) -> Iterator[Step]:
        """Follow decisions step by step, at most `horizon` of them."""
        cohorts = [self.task.begin(self.inputs if inputs is None else inputs)]
        for _ in range(self.task.horizon):
            moved = []
            for state in cohorts:
                observed = self.task.observe(state)
                after = self.task.step(state, self.choice(state, actions, kind))
                parted = isinstance(after, list)
                moved += after if parted else [after]
                yield Step(state, observed, after if parted else [after], parted)
            cohorts = merge(state.split_done()[0] for state in moved)
            if not cohorts:
                return

    def follow(self, actions: Tensor, kind: Kind = Hard, inputs: Tensor | None = None) -> Trace:
        """Return what comes of decisions, without gradients."""
        count, device = len(self.inputs if inputs is None else inputs), self.inputs.device
        seen = torch.zeros((count, self.task.horizon, *self.task.observation_shape), device=device)
        done: list[State] = []
        with torch.no_grad():
            for step in self.walk(actions, kind, inputs):
                seen[step.before.rows, step.before.position] = step.observed
                done += [state.split_done()[1] for state in step.after]
        order = torch.cat([state.rows for state in done]).argsort()
        answers = torch.cat([state.answer for state in done if state.answer is not None])
        return Trace(answers[order], torch.cat([state.macs for state in done])[order], seen)

    @cached_property
    def routed(self) -> list[Trace]:
        """What comes of each table, each branch on its own rows."""
        return [self.follow(actions) for actions in self.tables]

    @cached_property
    def parts_rows(self) -> bool:
        """Whether rows part, which soft choices cannot follow."""
        with torch.no_grad():
            return any(step.parted for actions in self.tables for step in self.walk(actions))


def close(got: Tensor, expected: Tensor) -> bool:
    """Return whether values agree but for the rounding of another batch size or order of sums."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return bool(torch.allclose(got, expected, rtol=1e-3, atol=1e-4 * largest))


def same_cost(got: Tensor, expected: Tensor | float) -> bool:
    """Return whether MACs agree; half of one may be lost by summing."""
    expected = torch.as_tensor(expected, dtype=got.dtype, device=got.device)
    return bool(((got - expected).abs() <= (1e-6 * expected.abs()).clamp(min=0.5)).all())


def difference(got: Trace, expected: Trace) -> tuple[str, int, float] | None:
    """Return what differs most basically, in which row, by how much; None if nothing does."""
    for name, agree in (("macs", same_cost), ("logits", close), ("observed", close)):
        mine, other = getattr(got, name), getattr(expected, name)
        if not agree(mine, other):
            gaps = (mine - other).abs().reshape(len(mine), -1).amax(1)
            return NAMES[name], int(gaps.argmax()), float(gaps.max())
    return None


def said(values: Tensor) -> str:
    """Return a few numbers legibly."""
    listed = values.flatten().tolist()
    return ", ".join(f"{value:,.6g}" for value in listed[:4]) + (", …" if len(listed) > 4 else "")
