"""A controller as one straight computation, in which decisions are marked: what an exporter writes down.

`Traced` is the interpreter's choice. Where a task asks it for one of several branches, every branch is traced between
two markers, `Enter` and `Choose`; who writes the file makes control flow of what lies between them. Rows that have
answered take no further part: what they would decide is -1, and neither policy nor branches run for them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..backbones.routing import Branch
from ..envs.choice import Choice, cost_dtype
from ..envs.state import State
from ..envs.task import Task
from .policy import Policy

DOMAIN = "skipgym"
"""Of the markers, in the ONNX graph before they are made control flow."""

_numbers = itertools.count()  # no two entrances are alike, or the exporter would make them one


class Bill:
    """What options and decisions cost, noted while they are traced, and summed up in one step when all are known."""

    def __init__(self):
        self.entries: list[tuple[int, list[float]]] = []
        self.decisions: list[tuple[int, float]] = []

    def note(self, column: int, costs: Sequence[float]) -> None:
        """Note what the options of a column of the actions cost; those beyond the last cost as much as that."""
        self.entries.append((column, [float(cost) for cost in costs]))

    def note_decision(self, column: int, macs: float) -> None:
        """Note what the policy spends on the decision whose first part is a column of the actions."""
        self.decisions.append((column, macs))

    def total(self, actions: Tensor, options: int) -> tuple[Tensor, Tensor]:
        """Return the MACs of what was chosen, and the policy's, nothing where actions are -1. Each of shape (N,).

        Args:
            actions: Below `options`. Shape (N, columns).
            options: As many as a decision has at most.
        """
        columns, dtype = actions.shape[1], cost_dtype(actions.device)
        table = torch.zeros(columns, 1 + options, 2, dtype=dtype)  # the first for -1
        for column, costs in self.entries:
            table[column, 1:, 0] += torch.tensor([*costs, *costs[-1:] * (options - len(costs))], dtype=dtype)
        for column, macs in self.decisions:
            table[column, 1:, 1] += macs
        first = torch.arange(columns) * (1 + options) + 1
        found = table.flatten(0, 1)[actions + first].sum(1)
        return found[:, 0], found[:, 1]


class Traced(Choice):
    """Actions that are known only when the file runs.

    Args:
        actions: Shape (N, parts), integers; -1 of rows that have answered.
        bill: Notes what options cost.
        column: Where among all actions these stand.
    """

    def __init__(self, actions: Tensor, bill: Bill, column: int = 0):
        self.actions, self.bill, self.column = actions, bill, column
        self._parts: Sequence[Tensor] = ()

    def among(self, branches: Sequence[Branch], x: Tensor) -> Tensor:
        """Trace every branch; one of them will run."""
        return fork(self.actions, branches, x)

    def only(self, option: int, branch: Branch, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Trace the branch; it will run for rows that chose the option."""
        return fork((self.actions == option).long(), [partial(_zeros, shape), branch], x)

    def weight(self, option: int) -> Tensor:
        """Return 1 where the option was chosen, else 0."""
        return (self.actions[:, 0] == option).float()

    def cost(self, costs: Sequence[float]) -> Tensor:
        """Note what options cost, and return 0 for now."""
        self.bill.note(self.column, costs)
        return torch.zeros(1, dtype=cost_dtype(self.actions.device))

    def part(self, index: int) -> "Traced":
        """Return the actions of one part."""
        self._parts = self._parts or self.actions.split(1, 1)
        return Traced(self._parts[index], self.bill, self.column + index)

    def merged(self, groups: Sequence[int]) -> "Traced":
        """Return the groups of the chosen options; -1 of rows that have answered stays."""
        of_option = torch.tensor([-1, *groups], device=self.actions.device)
        return Traced(of_option[self.actions.long() + 1], self.bill, self.column)


def fork(option: Tensor, branches: Sequence[Branch], x: Tensor) -> Tensor:
    """Mark branches of which one is to run: each lies between an `Enter` of its own and the `Choose` they share."""
    results = [branch(_mark("Enter", [x], like=x, number=next(_numbers))) for branch in branches]
    return _mark("Choose", [option, *results], like=results[-1])


def _mark(name: str, values: list[Tensor], *, like: Tensor, **attributes: int) -> Tensor:
    """Trace a node of ours, which gives a tensor like another."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}", values, {**attributes}, dtype=like.dtype, shape=like.shape, version=1
    )


def _zeros(shape: Sequence[int], x: Tensor) -> Tensor:
    return x.new_zeros((x.shape[0], *shape))


@dataclass
class _Way:
    """What the tracer knows on its way: where it stands, what the policy remembers, what was decided."""

    state: State
    memory: Tensor | None
    actions: dict[int, Tensor]


class TracedController(nn.Module):
    """Task and policy from images and price to logits, actions, MACs and the policy's MACs, decisions marked.

    Args:
        task: What can be decided.
        policy: Who decides.
        before_macs: What the task has spent before the first decision.

    Attributes:
        bill: What options cost, known when this has been traced.
    """

    def __init__(self, task: Task, policy: Policy, *, before_macs: float):
        super().__init__()
        self.task, self.policy, self.before_macs, self.bill = task, policy, before_macs, Bill()

    def forward(self, image: Tensor, price: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Trace. `image` has shape (N, C, H, W), `price` (N,).

        Raises:
            ValueError: If the task parts its rows.
        """
        dtype, parts = cost_dtype(image.device), len(self.task.decisions)
        self.bill.entries.clear()  # in place: what is set anew while tracing is lost
        self.bill.decisions.clear()
        # One row of constants in place of N: they broadcast, and what is known is folded when the file is written.
        alive, macs = torch.ones(1), torch.full((1,), float(self.before_macs), dtype=dtype)
        start = replace(self.task.begin(self.task.prepare(image)), alive=alive, macs=macs)
        way = _Way(start, None, {})
        while way.state.position < self.task.horizon:
            self._decide(way, price, always=way.state.alive is alive)
        state, nothing = way.state, price.new_full((price.shape[0], parts), -1, dtype=torch.long)
        if state.answer is None:
            raise ValueError(
                f"export: expected an answer from {self.task.name} at its end, got none. Finish the state."
            )
        actions = torch.cat([way.actions.get(position, nothing) for position in range(self.task.horizon)], 1)
        chosen, policy_macs = self.bill.total(actions, max(self.task.decisions))
        return state.answer, actions, state.macs + chosen + policy_macs, policy_macs

    def _decide(self, way: _Way, price: Tensor, *, always: bool) -> None:
        """Let the policy decide once, unless a row has answered, and follow."""
        state, column = way.state, way.state.position * len(self.task.decisions)
        seen = self.task.answer_now(state) if self.policy.sees_answer else self.task.observe(state)
        self.bill.note_decision(column, float(self.policy.macs_at(state.position)))
        if always:
            actions, way.memory = self.policy.act(seen, state, price, way.memory)
        else:
            actions, way.memory = self._if_alive(way, seen, price)
        way.actions[state.position] = actions
        after = self.task.step(state, Traced(actions, self.bill, column))
        if isinstance(after, list):
            raise ValueError(
                f"export: expected {self.task.name} to keep its rows together, got {len(after)} cohorts after decision "
                f"{state.position + 1}. Serve it by skipgym.Controller."
            )
        way.state = after

    def _if_alive(self, way: _Way, seen: Tensor, price: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the policy as a branch of its own; actions and memory leave it side by side."""
        parts = len(self.task.decisions)

        def act(seen: Tensor) -> Tensor:
            actions, memory = self.policy.act(seen, way.state, price, way.memory)
            return actions if memory is None else torch.cat([actions.to(memory.dtype), memory], 1)

        def nothing(seen: Tensor) -> Tensor:
            like = act(seen)  # for its width and type; what nobody uses is not written
            return torch.full((seen.shape[0], like.shape[1]), -1, dtype=like.dtype, device=like.device)

        alive = (way.state.alive > 0).long().expand(price.shape[0])
        found = fork(alive, [nothing, act], seen)
        return found[:, :parts].long(), found[:, parts:] if found.shape[1] > parts else None


def before_macs(task: Task) -> float:
    """Return what a task spends before its first decision."""
    with torch.inference_mode():
        state = task.begin(torch.zeros(1, *task.backbone.input_shape, device=task.device))
    return float(state.macs[0])
