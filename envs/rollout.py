"""Follow a batch of inputs through a task until every row has answered.

Controllers, evaluation and our own learners all run this loop.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones.routing import flat_rows
from .choice import Choice, Hard
from .state import State, merge
from .task import Task

Decide = Callable[[State], Choice]

WORTH_MOVING = 4 << 10
"""Bytes of a row's features from which on rows that choose alike are put next to each other."""


@dataclass(frozen=True)
class Run:
    """What became of N inputs.

    Attributes:
        logits: Answers. Shape (N, classes).
        macs: Spent by the task, policy aside. Shape (N,).
        actions: What was decided, in the order of the task's pieces; -1 where nothing was. Shape (N, pieces).
        places: Where, of tasks whose decisions have a place; NaN where none was said. Shape (N, horizon, coordinates).
    """

    logits: Tensor
    macs: Tensor
    actions: Tensor
    places: Tensor | None = None

    def decided(self, horizon: int) -> Tensor:
        """Return how many decisions each input took. Shape (N,)."""
        return (self.actions.view(len(self.actions), horizon, -1)[:, :, 0] >= 0).sum(1)

    @property
    def kept(self) -> Tensor:
        """Number of pieces executed. Shape (N,)."""
        return (self.actions > 0).sum(1)


def advance(
    task: Task, cohorts: list[State], decide: Decide, *, spare: bool = False
) -> tuple[list[State], list[State]]:
    """Let every cohort decide once.

    Args:
        task: The task.
        cohorts: Rows under way.
        decide: Gives the choice of a cohort.
        spare: Whether nobody needs the cohorts' features any more, so that they may be overwritten.

    Returns:
        The cohorts still under way, merged by position, and those that have answered.
    """
    moved: list[State] = []
    for state in cohorts:
        choice = decide(state)
        if spare and task.spares_features:
            state, choice = _tidied(task, state, choice.in_place())
        after = task.step(state, choice)
        moved.extend(after if isinstance(after, list) else [after])
    parted = [state.split_done() for state in moved]
    return merge(alive for alive, _ in parted), [done for _, done in parted if len(done)]


def _tidied(task: Task, state: State, choice: Choice) -> tuple[State, Choice]:
    """Put rows that choose alike next to each other: branches then run where the rows lie.

    What moves is half of what gathering them and putting them back would. Where more than two branches could be taken,
    or rows are too short for it to matter, everything is left as it is.
    """
    flat = flat_rows(state.features)
    if tuple(task.decisions) != (2,) or flat is None or flat.shape[1] * flat.itemsize < WORTH_MOVING:
        return state, choice
    pairs = choice.astray()
    if pairs is None:
        return state, choice
    order = torch.arange(len(state), device=state.rows.device)
    order[torch.cat(pairs)] = torch.cat(pairs[::-1])
    return state.swapped(order, *pairs), choice.select(order)


def rollout(task: Task, inputs: Tensor, decide: Decide) -> Run:
    """Run a task on prepared inputs (N, C, H, W) until all have answered; the choices must be `Hard`."""
    return follow(task, task.begin(inputs), decide)


def follow(task: Task, start: State, decide: Decide) -> Run:
    """Run a task from a state before the first decision, so that several runs can share what precedes it."""
    parts = len(task.decisions)
    actions = torch.full((len(start), task.horizon * parts), -1, dtype=torch.long, device=start.rows.device)
    places = actions.new_full((len(start), task.horizon, task.coordinates), float("nan"), dtype=torch.float32)

    def record(state: State) -> Choice:
        choice = decide(state)
        if not isinstance(choice, Hard):
            raise TypeError(f"rollout: expected Hard choices, got {type(choice).__name__}.")
        first = state.position * parts
        actions[state.rows, first : first + parts] = choice.actions.view(-1, parts)
        if choice.place is not None:
            places[state.rows, state.position] = choice.place
        return choice

    cohorts, answered = advance(task, [start], record)
    while cohorts:
        cohorts, done = advance(task, cohorts, record, spare=True)  # these states are this run's own
        answered += done
    return _collect(answered, actions, places if task.coordinates else None)


@dataclass(frozen=True)
class Relaxed:
    """What became of N inputs under soft choices; gradients reach the choices' weights.

    Attributes:
        logits: Answers. Shape (N, classes).
        macs: Spent by the task, policy aside. Shape (N,).
    """

    logits: Tensor
    macs: Tensor


def relax(task: Task, start: State, decide: Decide) -> Relaxed:
    """Run a task under soft choices, all rows together, until no share of any row is without an answer.

    Raises:
        TypeError: If the task parts its rows, which soft choices cannot.
    """
    state = start
    while state.position < task.horizon and bool((state.alive > 0).any()):
        after = task.step(state, decide(state))
        if isinstance(after, list):
            raise TypeError(
                f"relax: expected {task.name} to keep its rows together, got {len(after)} cohorts. "
                "Train it with a learner that samples: ppo, reinforce."
            )
        state = after
    if state.answer is None:
        raise ValueError(f"relax: expected an answer from {task.name} after {task.horizon} decisions, got none.")
    return Relaxed(state.answer, state.macs)


def _collect(answered: list[State], actions: Tensor, places: Tensor | None) -> Run:
    """Put the rows back in the order of the inputs."""
    order = torch.cat([state.rows for state in answered]).argsort()
    logits = torch.cat([state.answer for state in answered if state.answer is not None])
    return Run(logits[order], torch.cat([state.macs for state in answered])[order], actions, places)
