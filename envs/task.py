"""What can be decided about an input, and what each decision does to the computation."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.names import unknown
from ..ids import TASKS
from .choice import Choice
from .state import State


class Task(nn.Module, ABC):
    """A decision task over a frozen backbone, for a batch of inputs.

    A subclass says how the computation begins (`begin`), what a policy may look at (`observe`) and what a decision
    does (`step`), in terms of a `Choice`; environments, trainers and controllers interpret it. By convention option 0
    of a decision is the cheapest: it leaves out.

    Attributes:
        name: Registered name.
        options: How the task was configured (JSON).
        horizon: Number of decisions at most; positions are 0 … horizon-1.
        decisions: Options of each part of one decision: (2,) for one yes or no, (2, 2, 2) for three at once.
        observation_shape: Shape of one row of `observe`.
        least_macs: Cost of the cheapest way through, in MACs of one input, policy aside.
        full_macs: Cost of the backbone untouched.
    """

    name: ClassVar[str] = ""
    horizon: int
    decisions: tuple[int, ...]
    observation_shape: tuple[int, ...]
    least_macs: int

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone.frozen()
        self.options: dict[str, Any] = {}

    @abstractmethod
    def begin(self, inputs: Tensor) -> State:
        """Return the state before the first decision, from prepared inputs. Shape (N, C, H, W)."""

    @abstractmethod
    def observe(self, state: State) -> Tensor:
        """Return what a policy may look at. Shape (N, *observation_shape)."""

    @abstractmethod
    def step(self, state: State, choice: Choice) -> State | list[State]:
        """Return what one decision makes of each row; several cohorts where positions part."""

    @property
    def full_macs(self) -> int:
        return self.backbone.full_macs

    @property
    def action_space(self) -> spaces.Discrete | spaces.MultiDiscrete:
        """The space of one decision."""
        if len(self.decisions) == 1:
            return spaces.Discrete(self.decisions[0])
        return spaces.MultiDiscrete(list(self.decisions))

    @property
    def pieces(self) -> list[str]:
        """What is decided about, in order: one name for each part of each decision."""
        return [f"decision {i}" for i in range(self.horizon * len(self.decisions))]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def prepare(self, images: Tensor) -> Tensor:
        """Return images (uint8 or floats in 0…1) as `begin` takes them."""
        return self.backbone.prepare(images.to(self.device))


_TASKS: dict[str, type[Task]] = {}


def register_task(name: str) -> Callable[[type[Task]], type[Task]]:
    """Register a task class under a name.

    Raises:
        ValueError: If the name is taken.
    """

    def register(task: type[Task]) -> type[Task]:
        if name in _TASKS:
            raise ValueError(f"task name: expected a new one, got {name!r}, which is taken. Choose another.")
        task.name = name
        _TASKS[name] = task
        return task

    return register


def task_names() -> dict[str, str]:
    """Return the registered names with the first line of each task's docstring."""
    _import_ours()
    return {name: (task.__doc__ or "").strip().split("\n")[0] for name, task in _TASKS.items()}


def task_class(name: str) -> type[Task]:
    """Return a registered task class.

    Raises:
        ValueError: If the name is unknown.
    """
    _import_ours()
    if name not in _TASKS:
        raise ValueError(unknown("task", name, _TASKS))
    return _TASKS[name]


def _import_ours() -> None:
    for name in TASKS:
        import_module(f".{name.replace('-', '_')}", __package__)


def make_task(name: str, backbone: Backbone, **options: Any) -> Task:
    """Build a registered task around a backbone, which is frozen for it.

    Raises:
        ValueError: If the name or an option is unknown.
    """
    build = task_class(name)
    try:
        task = build(backbone, **options)
    except TypeError as error:
        raise ValueError(f"options of task {name}: {error}. See help(skipgym.envs.{build.__name__}).") from error
    task.options = options
    return task
