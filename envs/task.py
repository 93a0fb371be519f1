"""What can be decided about an input, and what each decision does to the computation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..data import ImageData
from ..ids import PLUGINS, TASKS, register_env
from ..registry import Registry, first_line
from .choice import Choice, Hard
from .state import State
from .tally import count_options

if TYPE_CHECKING:
    from .recorded import Record

Box = tuple[float, float, float, float]
"""Top, left, height and width of a piece of an image, in pixels."""


class Task(nn.Module, ABC):
    """A decision task over a frozen backbone, for a batch of inputs.

    A subclass says how the computation begins (`begin`), what a policy may look at (`observe`) and what a decision
    does (`step`), in terms of a `Choice`; environments, trainers and controllers interpret it. By convention option 0
    of a decision is the cheapest: it leaves out.

    Attributes:
        name: Registered name.
        options: The keyword arguments that it was built with (JSON), so that a saved controller can build it again.
        horizon: Number of decisions at most; positions are 0 … horizon-1.
        decisions: Options of each part of one decision: (2,) for one yes or no, (2, 2, 2) for three at once.
        coordinates: How many numbers, each in -1 … 1, a decision has beside its one part, of two options: where, if at
            all. A choice that says no place takes the task's own.
        observation_shape: Shape of one row of `observe`.
        least_macs: Cost of the cheapest way through, in MACs of one input, policy aside.
        full_macs: Cost of the backbone untouched.
        most_macs: Cost of the last option everywhere; more than `full_macs` where to decide costs something, as heads
            that are passed do.
        has_exits: Whether each decision has one part, whose option 0 answers now with `answer_now`; the others go on.
        alike: Whether the options above 0 are alike, as places are; otherwise they rise from less to more.
        reaches_full: Whether the last option everywhere gives the untouched network's answer.
        takes_clips: Whether inputs are clips of several frames, (N, T, C, H, W), rather than images.
        has_masks: Whether decisions leave out places within the image, which `masks` tells.
        adds_up: Whether a way through costs the sum of what its options cost, whatever else is chosen.
        spares_features: Whether `step` gives a state's features to its choice and then has no more use for them; an
            interpreter that has none either may let them be overwritten.
        takes_words: Whether those may be texts, whose frames are numbers of words.
        default_data: Embedded data that an environment is made on where none is named.
        default_backbone: Likewise, the backbone.
    """

    name: str = ""
    has_exits: bool = False
    alike: bool = False
    reaches_full: bool = True
    takes_clips: bool = False
    has_masks: bool = False
    adds_up: bool = True
    spares_features: bool = False
    takes_words: bool = False
    coordinates: int = 0
    default_data: str = "digits"
    default_backbone: str = "resnet20"
    horizon: int
    decisions: tuple[int, ...]
    observation_shape: tuple[int, ...]
    least_macs: int

    options: dict[str, Any]

    def __new__(cls, *_: Any, **options: Any) -> Self:
        """Keep the options, however the subclass reads them."""
        task = super().__new__(cls)
        kept = {key: value for key, value in options.items() if key != "backbone"}
        object.__setattr__(task, "options", kept)  # a Module takes no attributes before its own __init__
        return task

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone.frozen()

    @abstractmethod
    def begin(self, inputs: Tensor) -> State:
        """Return the state before the first decision, from prepared inputs, (N, C, H, W) or clips (N, T, C, H, W)."""

    @abstractmethod
    def observe(self, state: State) -> Tensor:
        """Return what a policy may look at. Shape (N, *observation_shape)."""

    @abstractmethod
    def step(self, state: State, choice: Choice) -> State | list[State]:
        """Return what one decision makes of each row; several cohorts where positions part."""

    def answer_now(self, state: State) -> Tensor:
        """Return the logits that rows would answer with now, for nothing more. Shape (N, classes).

        Raises:
            NotImplementedError: If the task has no exits.
        """
        raise NotImplementedError(f"{self.name} answers only at the end.")

    @classmethod
    def architecture(cls, name: str) -> str:
        """Return the backbone to build where a user names one: itself, or its variant that this task is about.

        Called where a task is made by its name.
        """
        return name

    @classmethod
    def furnish(cls, backbone: Backbone, data: ImageData, **options: Any) -> Backbone:
        """Return the backbone with what this task needs it to carry, such as exits, found or trained for the data.

        Called where a task is made by its name, with the options that it will be given.
        """
        return backbone

    @classmethod
    def recipe(cls, data: ImageData, **options: Any) -> Mapping[str, Any]:
        """Return what this task wants changed where embedded data's backbone is trained on first use.

        Fields of `backbones.recipe.Recipe`. Called where a task is made by its name, with its options.
        """
        return {}

    @property
    def full_macs(self) -> int:
        return self.backbone.full_macs

    @property
    def most_macs(self) -> int:
        return self.full_macs

    @property
    def paths(self) -> list[tuple[int, ...]] | None:
        """Every way through, an option for each piece, where they are not all combinations of options."""
        return None

    @property
    def onward(self) -> tuple[int, ...]:
        """The fixed way that leaves nothing out, an option for each piece; where options are alike, in a good order.

        Who only decides when to stop goes this way.
        """
        return tuple(count - 1 for _ in range(self.horizon) for count in self.decisions)

    @property
    def rules(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        """Fixed ways that people would try first, by the name of the rule, each from the cheapest to the dearest.

        They are compared as `fixed-NAME`: what is learned must beat them at equal compute.
        """
        return {}

    def offered(self, length: int) -> list[int]:
        """Return the numbers of the frames of a clip of so many that can be looked at; others need not be decoded."""
        return list(range(length))

    def stays_in_view(self, position: int) -> bool:
        """Return whether rows that choose option 0 at a position show at the next what they show there."""
        return False

    def region(self, piece: int, option: int) -> Box | None:
        """Return what an option looks at, in pixels: top, left, height, width; None where it is no part of an image.

        It may reach beyond the image. For pictures.
        """
        return None

    def regions(self, actions: Sequence[int], places: Tensor | None = None) -> list[Box]:
        """Return what was looked at on a way through, in order; what was not decided is -1. For pictures.

        `places` are those of each decision, where it has one. Shape (horizon, coordinates).
        """
        boxes = [self.region(piece, action) for piece, action in enumerate(actions) if action > 0]
        return [box for box in boxes if box is not None]

    def masks(self, image: Tensor, actions: Sequence[int]) -> dict[str, Tensor]:
        """Return where an image was computed on a way through, by the name of each stage, in order. For pictures.

        Args:
            image: Shape (C, H, W).
            actions: One for each piece.

        Returns:
            1 where it was, else 0, on a raster over the image. Each of shape (rows, columns).
        """
        return {}

    def executed(
        self, image: Tensor, actions: Sequence[int], *, places: Tensor | None = None, frames: Sequence[int] = ()
    ) -> list[str]:
        """Return what was executed on a way through, for people: the pieces' names.

        Args:
            image: What went through, (C, H, W) or a clip (T, C, H, W).
            actions: One for each piece; -1 where nothing was decided.
            places: Of each decision, where it has one. Shape (horizon, coordinates).
            frames: Numbers, from 0, of a clip's frames in what they were taken from; as they are where none are given.
        """
        return [name for name, action in zip(self.pieces, actions, strict=True) if action > 0]

    def called(self, actions: Tensor) -> dict[str, list[int]]:
        """Return how often each of the branches of each fork was called: one that never is, is dead.

        Forks are the pieces of more than two options, unless the task knows better: to execute always, or never, is no
        fault.

        Args:
            actions: -1 where nothing was decided. Shape (N, pieces).
        """
        options = list(self.decisions) * self.horizon
        columns = zip(self.pieces, options, actions.unbind(1), strict=True)
        return {piece: count_options(column, count) for piece, count, column in columns if count > 2}

    @property
    def action_space(self) -> spaces.Discrete | spaces.MultiDiscrete | spaces.Box:
        """The space of one decision; where that has a place, numbers: above 0 takes option 1, the others say where."""
        if self.coordinates:
            return spaces.Box(-1, 1, (1 + self.coordinates,), np.float32)
        if len(self.decisions) == 1:
            return spaces.Discrete(self.decisions[0])
        return spaces.MultiDiscrete(list(self.decisions))

    def choice(self, actions: Tensor, kind: type[Hard] = Hard) -> Hard:
        """Return actions as a choice.

        Args:
            actions: Elements of `action_space`, or options alone. Shape (N,), or (N, parts) and where decisions have a
                place (N, 1 + coordinates).
            kind: Of the choice.
        """
        parts, flat = len(self.decisions), actions.dim() == 1
        if self.coordinates and not flat and actions.shape[1] > parts:
            return kind((actions[:, 0] > 0).long()).placed(actions[:, 1:].float().clamp(-1, 1))
        return kind(actions[:, 0] if parts == 1 and not flat else actions)

    @property
    def pieces(self) -> list[str]:
        """What is decided about, in order: one name for each part of each decision."""
        return [f"decision {i}" for i in range(self.horizon * len(self.decisions))]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def check_images(self, images: Tensor) -> None:
        """Raise a ValueError unless `prepare` can take these images."""
        self.backbone.check_images(images)

    def prepare(self, images: Tensor) -> Tensor:
        """Return images (uint8 or floats in 0…1) as `begin` takes them."""
        return self.backbone.prepare(images.to(self.device))

    @property
    def underlying(self) -> "Task":
        """What this looks up where it is a table, else itself: the task that runs, and whose options can be mixed."""
        return self

    def blank(self) -> Tensor:
        """Return one image of no content, for `prepare`: what a way through costs can be read from it."""
        return torch.zeros((1, *self.backbone.input_shape))

    def untouched(self, images: Tensor) -> Tensor:
        """Return the logits of the untouched network, outside any decision. Shape (N, classes)."""
        return self.backbone(self.prepare(images))

    def record(self) -> "Record":
        """Return what a table keeps of this task's images: every way through, which must be few.

        Raises:
            ValueError: If they are too many.
        """
        from .tabulated import Ways

        return Ways(self)

    def pictures(self, images: Tensor) -> Tensor:
        """Return images, or clips, as people are to see them, uint8. Shape (N, C, H, W)."""
        return images


def _adopt(name: str, found: Any) -> tuple[type[Task], str]:
    """Take a plug-in's task under the name of its entry point."""
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise TypeError(f"expected a subclass of skipgym.Task, got {found!r}")
    if vars(found).get("name", name) != name:
        raise ValueError(f"expected a task named as its entry point, got {found.__name__} named {found.name!r}")
    found.name = name
    return found, first_line(found)


Class = TypeVar("Class", bound=type[Task])

REGISTRY: Registry[type[Task]] = Registry(
    "task",
    group=PLUGINS,
    adopt=_adopt,
    ours={name: f"{__package__}.{name.replace('-', '_')}" for name in TASKS},
)


def register_task(name: str) -> Callable[[Class], Class]:
    """Register a task class under a name, and its Gymnasium id.

    Raises:
        ValueError: If the name is taken, or cannot be made an id.
    """

    def register(task: Class) -> Class:
        register_env(name)
        REGISTRY.add(name, task, first_line(task), module=task.__module__)
        task.name = name
        return task

    return register


def task_names() -> dict[str, str]:
    """Return the known names with the first line of each task's docstring."""
    return REGISTRY.names()


def task_class(name: str) -> type[Task]:
    """Return a task class by name.

    Raises:
        ValueError: If the name is unknown.
    """
    return REGISTRY.get(name)


def make_task(name: str, backbone: Backbone, **options: Any) -> Task:
    """Build a registered task around a backbone, which is frozen for it.

    Raises:
        ValueError: If the name or an option is unknown.
    """
    build = task_class(name)
    try:
        return build(backbone, **options)
    except TypeError as error:
        raise ValueError(f"options of task {name}: {error}. See help({_home(build)}.{build.__name__}).") from error


def _home(task: type[Task]) -> str:
    """Return where users import a task from."""
    return task.__module__.rpartition(".")[0] if task.name in TASKS else task.__module__
