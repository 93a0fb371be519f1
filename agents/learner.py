"""What every learner is given, and how it is found by name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..data import Augment, ImageData
from ..envs.choice import random_places
from ..envs.engine import Engine, Price
from ..envs.observation import Layout
from ..envs.rewards import Reward
from ..envs.task import Task
from ..registry import Registry, first_line
from .budget import Lagrange
from .gate import Gate
from .monitor import Monitor
from .policy import Policy

Options = TypeVar("Options")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training run, as a learner sees it.

    Attributes:
        task: What is decided.
        data: Images; a learner trains on the policy part.
        reward: What is paid.
        price: Of compute, fixed or a range.
        augment: Of the training images.
        monitor: Logs, validates and knows when to stop.
        lagrange: Adapts the price to a compute target, where there is one.
        images: Episodes to train for.
        num_envs: Episodes at a time.
        hidden: Width of the gate.
        seed: Of everything random.
        out: Run directory for the learner's own logs; None for none.
        agent_options: Arguments of the learner that differ from its defaults.
    """

    task: Task
    data: ImageData
    reward: Reward
    price: Price
    augment: Augment
    monitor: Monitor
    lagrange: Lagrange | None
    images: int
    num_envs: int
    hidden: int
    seed: int
    out: Path | None
    agent_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """The layout of the observations."""
        return Layout.of(self.task, priced=isinstance(self.price, Sequence))

    def gate(self, *, recurrent: bool = False) -> Gate:
        """Return a new gate, the same architecture for every learner."""
        task = self.task
        shape = {"hidden": self.hidden, "recurrent": recurrent, "alike": task.alike, "coordinates": task.coordinates}
        return Gate(self.layout, task.decisions, **shape).to(task.device)

    def reprice(self, engine: Engine, compute: float) -> None:
        """Adapt the price to the compute target, where there is one.

        What counts is what the policy will spend, which takes the likelier option everywhere: what it spends while
        options are drawn is corrected by how much that was, at the last validation, beyond.

        Args:
            engine: Whose price it is.
            compute: Mean share of the full MACs spent since the last call.
        """
        if self.lagrange:
            monitor = self.monitor
            engine.set_price(self.lagrange.update(compute - monitor.beyond, monitor.done_share))

    def on(self, task: Task, most: int) -> "Setting":
        """Return the same for another task, with at most so many episodes at a time."""
        return replace(self, task=task, num_envs=min(self.num_envs, most))

    def engine(self, *, policy_macs: int) -> Engine:
        """Return the environment to train in, seeded."""
        engine = Engine(
            self.task,
            self.data.policy,
            reward=self.reward,
            price=self.price,
            num_envs=self.num_envs,
            augment=self.augment,
            policy_macs=policy_macs,
        )
        engine.seed(self.seed * 1_000_003)
        return engine

    def observations(self, engine: Engine) -> Tensor:
        """Return observations of one episode in each slot, mostly executing, to measure their scale."""
        generator = torch.Generator().manual_seed(self.seed)
        seen = [engine.reset()]
        decisions = torch.tensor(self.task.decisions)
        for _ in range(self.task.horizon - 1):
            keep = torch.rand((self.num_envs, len(decisions)), generator=generator) < 0.8
            taken = decisions - 1
            if self.task.alike:
                taken = 1 + (torch.rand(keep.shape, generator=generator) * taken).long()
            actions = keep * taken
            if self.task.coordinates:
                where = random_places((self.num_envs, self.task.coordinates), generator)
                actions = torch.cat([actions, where], 1)
            seen.append(engine.step(actions.squeeze(1) if actions.shape[1] == 1 else actions).observation)
        engine.drain()
        return torch.cat(seen)


class Learner(ABC):
    """Turns a setting into a policy.

    Attributes:
        trains_probabilities: Whether what it trains is a gate whose logits are those of probabilities, so that gate and
            network can be finetuned together.
    """

    trains_probabilities: ClassVar[bool] = True

    @abstractmethod
    def train(self, setting: Setting) -> Policy:
        """Train and return the last policy; `setting.monitor` keeps the best."""

    def check(self, task: Task, options: Mapping[str, Any]) -> None:
        """Raise a ValueError if this learner cannot take the task or its options, before any work starts."""
        return  # most can


Class = TypeVar("Class", bound=type[Learner])

_OURS = {
    "sb3": ("ppo", "a2c", "dqn", "recurrent-ppo"),
    "reinforce": ("reinforce",),
    "gumbel": ("gumbel", "convnet-aig"),
    "skipnet": ("skipnet",),
    "ds_gate": ("ds-gate",),
    "path_table": ("path-table",),
    "imitate": ("imitate",),
}
"""Our learners: module, and the names that it registers."""


def _adopt(name: str, found: Any) -> tuple[type[Learner], str]:
    """Take a plug-in's learner."""
    if not (isinstance(found, type) and issubclass(found, Learner)):
        raise TypeError(f"expected a subclass of skipgym.agents.learner.Learner, got {found!r}")
    return found, first_line(found)


REGISTRY: Registry[type[Learner]] = Registry(
    "agent",
    group="skipgym.agents",
    adopt=_adopt,
    ours={name: f"{__package__}.{module}" for module, names in _OURS.items() for name in names},
)


def register_agent(name: str, description: str) -> Callable[[Class], Class]:
    """Register a learner under a name.

    Raises:
        ValueError: If the name is taken.
    """

    def register(learner: Class) -> Class:
        REGISTRY.add(name, learner, description, module=learner.__module__)
        return learner

    return register


def agent_names() -> dict[str, str]:
    """Return the known names and their descriptions."""
    return REGISTRY.names()


def make_learner(name: str) -> Learner:
    """Return a learner by name.

    Raises:
        ValueError: If the name is unknown.
    """
    return REGISTRY.get(name)()


def read_options(defaults: Options, options: Mapping[str, Any], agent: str) -> Options:
    """Return a learner's options, a dataclass that checks itself, with some of its defaults replaced.

    Raises:
        ValueError: If one is unknown or out of range.
    """
    try:
        return replace(defaults, **options)  # pyright: ignore[reportArgumentType] - a dataclass
    except TypeError as error:
        raise ValueError(f"options of {agent}: {error}. Known are {defaults}.") from error
