"""What is measured on: a task around an untrained network, and noise for images; speed does not ask what is right."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from ..agents.policy import RandomPolicy
from ..backbones import Backbone, make_backbone
from ..backbones.reader import Reader
from ..data import Augment, ImageData, Part
from ..envs.build import choose_augment, find_task
from ..envs.choice import Hard
from ..envs.engine import Engine
from ..envs.look_task import LookTask
from ..envs.rewards import make_reward
from ..envs.state import State
from ..envs.task import Task, task_class
from .race import Timer

CLASSES = 10
FRAMES = 16
"""Of a clip, where the task takes clips."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What is measured on, and how often."""

    task: str = "layer-skip"
    """Registered name; see `skipgym list`."""
    backbone: str = "resnet20"
    """Registered name; its weights are random."""
    shape: tuple[int, int, int] = (3, 32, 32)
    """Channels, height and width of the images, which are noise."""
    task_options: dict[str, int | float | str] = field(default_factory=dict)
    """Options of the task."""
    num_envs: int = 256
    """Slots of our environment."""
    rate: float = 0.5
    """How often the random policy executes."""
    rounds: int = 9
    """How often everything is repeated, in turn; medians are told."""
    threads: int = 1
    """Of torch. Where others use the machine, one is least disturbed."""
    timer: Timer = "wall"
    """Time that passes, or that our processes compute; where others use the machine, the second tells more."""
    seed: int = 0
    """Of weights, images and actions."""

    def __post_init__(self) -> None:
        """Check what needs no network."""
        task_class(self.task)
        for name in ("num_envs", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate: expected 0 … 1, got {self.rate}. 0.5 executes every other piece.")
        if min(self.shape) < 1 or self.shape[0] not in (1, 3):
            raise ValueError(f"shape: expected 1 or 3 channels, height and width, got {self.shape}. Try 3 32 32.")

    def data(self, images: int = 2048) -> ImageData:
        """Return noise as a data set; each part has so many images."""
        generator = torch.Generator().manual_seed(self.seed)
        size = (images // FRAMES, FRAMES) if task_class(self.task).takes_clips else (images,)
        pixels = torch.randint(256, (*size, *self.shape), dtype=torch.uint8, generator=generator)
        part = Part(pixels, torch.arange(len(pixels)) % CLASSES)
        few = Part(part.images[:64], part.labels[:64])
        names, scale = tuple(map(str, range(CLASSES))), (0.5,) * self.shape[0]
        return ImageData(
            name="noise",
            train=part,
            policy=part,
            val=few,
            test=few,
            class_names=names,
            mean=scale,
            std=scale,
            augment=Augment(pad=4, flip=True),  # as CIFAR-10 declares
            fingerprint=f"noise-{images}-{self.seed}",
            note="noise",
        )

    def made(self, data: ImageData) -> Task:
        """Return the task around a network with random weights.

        Raises:
            ValueError: If it cannot be built, or reads texts.
        """
        kind = task_class(self.task)
        if kind.takes_words:
            raise ValueError(
                f"task: expected one of images or clips, got {self.task}, which reads texts. Take another."
            )
        torch.manual_seed(self.seed)
        name = kind.architecture(self.backbone)
        backbone = make_backbone(name, num_classes=CLASSES, input_shape=self.shape)
        if issubclass(kind, LookTask):
            sizes = kind.reader_sizes(backbone, **self.task_options)
            backbone = backbone.with_reader(Reader(backbone.blocks[-1].out_shape[0], CLASSES, **sizes))
        return find_task(self.task, backbone, data, **self.task_options)

    def engine(self, task: Task, data: ImageData, num_envs: int | None = None, choose: type[Hard] = Hard) -> Engine:
        """Return an environment, varied images and all."""
        engine = Engine(
            task,
            data.policy,
            reward=make_reward("accuracy"),
            price=0.3,
            num_envs=num_envs or self.num_envs,
            augment=choose_augment("auto", data),
            choose=choose,
        )
        engine.seed(self.seed)
        return engine

    def actions(self, task: Task, num_envs: int | None = None) -> list[np.ndarray]:
        """Return what a random policy does in as many decisions as an episode has at most."""
        policy = RandomPolicy(self.rate, task.decisions, alike=task.alike, seed=self.seed)
        nobody = torch.zeros(num_envs or self.num_envs, 1)
        drawn = [policy.act(nobody, State.start(nobody), nobody[:, 0], None)[0] for _ in range(task.horizon)]
        return [(one.squeeze(1) if one.shape[1] == 1 else one).numpy() for one in drawn]


def pieces(backbone: Backbone) -> list[nn.Module]:
    """Return the modules that a network's work is done in: stem, blocks or what takes their place, head, exits.

    Of smaller networks likewise. The identity in a block's place is no work.
    """
    own = [backbone.stem, backbone.head, *(block.body for block in backbone.blocks), *backbone.exits]
    shortcuts = [block.shortcut for block in backbone.blocks]
    own += [one for one in shortcuts if one is not None and not isinstance(one, nn.Identity)]
    return own + [piece for one in backbone.smaller for piece in pieces(one)]


def networks(task: Task) -> list[nn.Module]:
    """Return the pieces of every network in a task, each once: its backbone's, and of what was sliced from it."""
    found = [piece for one in task.modules() if isinstance(one, Backbone) for piece in pieces(one)]
    return list(dict.fromkeys(found))
