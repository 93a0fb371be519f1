"""Who decides: learned gates, and the trivial policies that they must beat."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from math import comb
from typing import Any

import torch
from torch import Tensor, nn

from ..envs.choice import Hard, cost_dtype, random_places
from ..envs.observation import Layout
from ..envs.state import State
from ..envs.task import Task
from ..envs.view import View
from .gate import Gate, shares_executed


class Policy(nn.Module, ABC):
    """Chooses an action for each row of a cohort.

    Attributes:
        macs: Cost of one decision, in MACs of one row.
        priced: Whether it must be told the price of compute.
        sees_answer: Whether it looks at the answer that a row would give now, not at what the task observes.
    """

    macs: int = 0
    priced: bool = False
    sees_answer: bool = False

    @abstractmethod
    def act(self, features: Tensor, state: State, price: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Decide.

        Args:
            features: What the task observes, or the logits that it would answer with. Shape (N, ...).
            state: The cohort.
            price: Of compute. Shape (N,).
            memory: What the last call returned for these rows; None at first.

        Returns:
            Actions, shape (N, parts), and memory, shape (N, ...) or None. Actions are options; where decisions have a
            place, they may be elements of the task's action space instead, shape (N, 1 + coordinates).
        """

    def macs_at(self, position: int) -> int:
        """Return the cost of the decision at a position, in MACs of one row."""
        return self.macs

    def config(self) -> dict[str, Any]:
        """Return how to build it again (JSON)."""
        raise NotImplementedError(f"{type(self).__name__} cannot be saved.")


class GatePolicy(Policy):
    """The most likely option of a gate.

    Args:
        gate: The network.
        shift: Added to the logit of a part's last option, and in proportion to those between; where options above 0 are
            alike, to all of those: moves the threshold, and with it the compute.
    """

    def __init__(self, gate: Gate, *, shift: float = 0.0):
        super().__init__()
        self.gate, self.shift = gate, shift
        self.macs, self.priced = gate.macs(), gate.layout.priced

    def act(self, features: Tensor, state: State, price: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the most likely options.

        Raises:
            ValueError: If the logits are not finite.
        """
        outputs, memory = self.gate.at(state.position, features, price, memory)
        check_logits(outputs)
        logits, place = self.gate.split(outputs)
        actions = greedy(logits, self.gate.decisions, shift=self.shift, alike=self.gate.alike)
        return actions if place is None else torch.cat([actions, place], 1), memory

    def config(self) -> dict[str, Any]:
        """Return how to build it again (JSON)."""
        gate = self.gate
        return {
            "kind": "gate",
            "layout": asdict(gate.layout),
            "decisions": list(gate.decisions),
            "hidden": gate.hidden,
            "recurrent": gate.recurrent,
            "alike": gate.alike,
            "shift": self.shift,
            **({"coordinates": gate.coordinates} if gate.coordinates else {}),
        }


class StaticPolicy(Policy):
    """The same actions for every input.

    Args:
        actions: One for each piece of the task.
        parts: Parts of one decision.
    """

    actions: Tensor

    def __init__(self, actions: Sequence[int], parts: int):
        super().__init__()
        self.parts = parts
        self.register_buffer("actions", torch.as_tensor(actions).view(-1, parts))

    def act(self, features: Tensor, state: State, price: Tensor, memory: Tensor | None) -> tuple[Tensor, None]:
        """Return the actions of the position."""
        return self.actions[state.position].to(features.device).expand(features.shape[0], -1), None

    def config(self) -> dict[str, Any]:
        """Return how to build it again (JSON)."""
        return {"kind": "static", "actions": self.actions.flatten().tolist(), "parts": self.parts}


def random_weights(rate: float, options: int, *, alike: bool = False) -> list[float]:
    """Return how likely each option is at a rate: that of so many heads among `options` - 1 coins.

    From option 0 only, at rate 0, to the last only, at 1; of two options the last comes with the rate itself. Options
    above 0 that are alike share the rate evenly instead.
    """
    if alike:
        return [1 - rate, *[rate / (options - 1)] * (options - 1)]
    coins = options - 1
    return [comb(coins, heads) * rate**heads * (1 - rate) ** (coins - heads) for heads in range(options)]


class RandomPolicy(Policy):
    """Each piece is executed with the same probability, by coin; of several options, see `random_weights`.

    Args:
        rate: 0 takes option 0 everywhere, 1 the last, or any other where they are alike.
        decisions: Options of each part.
        alike: Whether the options above 0 are alike, as places are.
        coordinates: Of the place that a decision has; any is as likely as another.
        seed: Of its generator.
    """

    def __init__(
        self, rate: float, decisions: Sequence[int], *, alike: bool = False, coordinates: int = 0, seed: int = 0
    ):
        super().__init__()
        self.coordinates = coordinates
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: expected 0 … 1, got {rate}.")
        self.rate, self.decisions = rate, tuple(decisions)
        self.weights = [random_weights(rate, options, alike=alike) for options in self.decisions]
        self.generator = torch.Generator().manual_seed(seed)

    def act(self, features: Tensor, state: State, price: Tensor, memory: Tensor | None) -> tuple[Tensor, None]:
        """Toss the coins."""
        shape = (len(features), len(self.decisions))
        any_at_all, which = (torch.rand(shape, generator=self.generator) for _ in range(2))
        parts = [
            (any_at_all[:, part] < 1 - weights[0])
            * (1 + torch.bucketize(which[:, part].contiguous(), _shares(weights[1:])))
            for part, weights in enumerate(self.weights)
        ]
        actions = torch.stack(parts, 1)
        if self.coordinates:
            place = random_places((len(features), self.coordinates), self.generator)
            actions = torch.cat([actions, place], 1)
        return actions.to(features.device), None


def _shares(weights: Sequence[float]) -> Tensor:
    """Return where 0…1 is to be cut so that its parts are as these weights. Shape (len(weights) - 1,)."""
    parts = torch.tensor(weights)
    return (parts.cumsum(0) / parts.sum().clamp(min=torch.finfo(parts.dtype).tiny))[:-1]


def make_policy(config: dict[str, Any]) -> Policy:
    """Build a saved policy, with random weights.

    Raises:
        ValueError: If its kind is unknown.
    """
    if config["kind"] == "path":
        from .path_policy import path_policy

        return path_policy(config)
    if config["kind"] == "threshold":
        from .threshold import ThresholdPolicy

        return ThresholdPolicy(config["score"], config["thresholds"], onward=config.get("onward", ()))
    if config["kind"] == "static":
        return StaticPolicy(config["actions"], config["parts"])
    if config["kind"] == "gate":
        layout = Layout(tuple(config["layout"]["shape"]), config["layout"]["positions"], config["layout"]["priced"])
        shape = {"hidden": config["hidden"], "recurrent": config["recurrent"], "alike": config.get("alike", False)}
        gate = Gate(layout, config["decisions"], coordinates=config.get("coordinates", 0), **shape)
        return GatePolicy(gate, shift=config.get("shift", 0.0))
    raise ValueError(
        f"policy: expected kind gate, path, static or threshold, got {config['kind']!r}. It needs a newer skipgym."
    )


def full_policy(task: Task) -> StaticPolicy:
    """Return the policy that leaves nothing out."""
    return StaticPolicy(task.onward, len(task.decisions))


class Decider:
    """A policy as `rollout` wants it: one choice for each cohort, memory and cost kept for each row.

    Args:
        task: Says what the policy sees.
        policy: Decides.
        price: Of compute, of each input. Shape (N,).

    Attributes:
        macs: What the policy has cost each input so far. Shape (N,).
    """

    def __init__(self, task: Task, policy: Policy, price: Tensor):
        self.task, self.policy, self.price = task, policy, price
        self.memory: Tensor | None = None
        self.view = View(task, len(price))
        self.macs = torch.zeros(len(price), dtype=cost_dtype(price.device), device=price.device)

    def __call__(self, state: State) -> Hard:
        """Decide for a cohort."""
        self.macs[state.rows] += self.policy.macs_at(state.position)
        memory = None if self.memory is None else self.memory[state.rows]
        seen = self.task.answer_now(state) if self.policy.sees_answer else self.view.look(state)
        actions, memory = self.policy.act(seen, state, self.price[state.rows], memory)
        if memory is not None:
            if self.memory is None:
                self.memory = memory.new_zeros(len(self.price), *memory.shape[1:])
            self.memory[state.rows] = memory
        choice = self.task.choice(actions)
        self.view.decided(state, choice)
        return choice


def greedy(logits: Tensor, decisions: Sequence[int], *, shift: float = 0.0, alike: bool = False) -> Tensor:
    """Return the likeliest option of each part, after a shift towards the last. (N, sum of decisions) to (N, parts)."""
    if shift:
        logits = logits + shift * torch.cat([shares_executed(count, alike=alike) for count in decisions]).to(logits)
    if len(set(decisions)) == 1:
        return logits.unflatten(1, (len(decisions), decisions[0])).argmax(2)
    return torch.stack([part.argmax(1) for part in logits.split(list(decisions), 1)], 1)


def check_logits(logits: Tensor) -> None:
    """Raise a ValueError unless all logits are finite; in a file that is exported nothing is raised."""
    if not torch.compiler.is_exporting() and not bool(torch.isfinite(logits).all()):
        raise ValueError(
            "policy: expected finite logits, got NaN or infinity. Training has diverged (lower the learning rate), "
            "or the input is not an image."
        )
