from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from skipgym import Controller
from skipgym.agents.policy import StaticPolicy
from skipgym.backbones import Backbone
from skipgym.data import Augment, ImageData, Part
from skipgym.envs import Choice, Engine, Hard, Run, State, Task, make_reward, make_task, rollout
from skipgym.envs.rollout import advance
from skipgym.ids import TASKS

# (task, backbone) that every contract is tested on: each of ours, on feature maps and on tokens, or on its own kinds;
# tokens' positions are fixed to one size of the image, and readers want feature maps
OWN = {
    "channel-width": ("slim-resnet8-w4", "us-resnet8-w4"),
    "routing": ("supernet3-w4", "tree-resnet8-w4"),
    "experts": ("experts-resnet8-w4", "experts-resnet14-w4"),
    **dict.fromkeys(("resolution", "patch-crop", "frame-select"), ("resnet8-w4", "resnet14-w4")),
    "time-skip": ("words-w8", "resnet8-w4"),
    "pixel-mask": ("resnet8-w4", "resnet14-w4"),
    "token-skip": ("vit3-w16-p2", "vit4-w16-p4"),
}
CASES = [(name, OWN.get(name, ("resnet8-w4", "vit_tiny"))[kind]) for kind in (0, 1) for name in TASKS]
VARIANTS = {"patch-crop-anywhere": ("patch-crop", {"places": "continuous"})}  # decisions that have a place
CASES += [(name, "resnet8-w4") for name in VARIANTS]
SKIPPING = [case for case in CASES if case[0] in ("layer-skip", "block-drop")]  # what they execute has a hand formula
EXIT_MACS = 7


class Leave(Task):
    """A toy early exit: before each block 0 goes on, 1 answers; `visits` counts the blocks that a row has entered."""

    name = "leave"

    def __init__(self, backbone: Backbone):
        super().__init__(backbone)
        blocks = self.backbone.blocks
        self.horizon, self.decisions, self.observation_shape = len(blocks), (2,), (blocks[-1].in_shape[0],)
        self.least_macs = self.backbone.stem_macs + EXIT_MACS
        self.entered = [0] * len(blocks)  # rows that a block was executed on

    def exit(self, x: Tensor) -> Tensor:
        """Answer from pooled features."""
        pooled = x.mean((2, 3))
        return torch.stack([(k + 1) * pooled.sum(1) + pooled[:, k] for k in range(4)], 1)

    def begin(self, inputs: Tensor) -> State:
        visits = torch.zeros(len(inputs))
        return State.start(self.backbone.stem(inputs), macs=self.backbone.stem_macs, visits=visits)

    def observe(self, state: State) -> Tensor:
        pooled = state.features.mean((2, 3))
        return nn.functional.pad(pooled, (0, self.observation_shape[0] - pooled.shape[1]))

    def step(self, state: State, choice: Choice) -> State:
        index, block = state.position, self.backbone.blocks[state.position]

        def run(x: Tensor) -> Tensor:
            self.entered[index] += len(x)
            return block.run(x)

        state = state.finish(self.exit(state.features), macs=EXIT_MACS, when=choice.weight(1))
        x = choice.among([run, lambda x: x.new_zeros((len(x), *block.out_shape))], state.features)
        state = state.advance(x, macs=block.macs, visits=state.memory["visits"] + 1)
        return (
            state
            if state.position < self.horizon
            else state.finish(self.backbone.head(x), macs=self.backbone.head_macs)
        )


IMAGES = torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(0))


def run(task: Task, actions: Tensor) -> Run:
    """Take the given ways, one for each of the first images: rows of an option for each decision."""
    with torch.no_grad():
        return rollout(task, task.prepare(IMAGES[: len(actions)]), lambda s: Hard(actions[s.rows, s.position]))


def check_saved(task: Task, way: tuple[int, ...], path: Path) -> None:
    """Assert that a controller that takes a way takes it again, for the same answers and costs, when it was saved."""
    controller = Controller(task, StaticPolicy(way, 1))
    controller.save(path)
    before, after = controller(IMAGES), Controller.load(path)(IMAGES)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.macs, after.macs)
    assert after.actions.tolist() == [list(way)] * len(IMAGES)


@dataclass(frozen=True)
class Recorded:
    """What became of N inputs, in their order."""

    logits: Tensor
    macs: Tensor


def follow(task: Task, inputs: Tensor, decide: Callable[[State], Choice]) -> Recorded:
    """Run a task under any kind of choice."""
    cohorts, answered = [task.begin(inputs)], []
    while cohorts:
        cohorts, done = advance(task, cohorts, decide)
        answered += done
    order = torch.cat([state.rows for state in answered]).argsort()
    logits, macs = (torch.cat([getattr(state, key) for state in answered])[order] for key in ("answer", "macs"))
    return Recorded(logits, macs)


class World(NamedTuple):
    """A task, inputs, and random decisions about them."""

    task: Task
    inputs: Tensor

    def actions(self, seed: int, count: int | None = None) -> Tensor:
        """Return decisions at every position. Shape (N, horizon, parts)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (count or len(self.inputs), self.task.horizon)
        return torch.stack([torch.randint(n, shape, generator=generator) for n in self.task.decisions], 2)

    def at(self, state: State, actions: Tensor) -> Tensor:
        """Return the decisions (N,) or (N, parts) that a cohort takes."""
        chosen = actions[state.rows, state.position]
        return chosen[:, 0] if len(self.task.decisions) == 1 else chosen

    def follow(
        self, actions: Tensor, kind: Callable[[Tensor], Choice] = Hard, inputs: Tensor | None = None
    ) -> Recorded:
        """Run the decisions, as the given kind of choice."""
        with torch.no_grad():
            return follow(self.task, self.inputs if inputs is None else inputs, lambda s: kind(self.at(s, actions)))


@pytest.fixture(scope="session")
def make_world(random_backbone) -> Callable[[str, str], World]:
    """Return a function that makes the world of a case: 7 random images."""
    worlds = {}

    def make(name: str, backbone: str) -> World:
        if (name, backbone) not in worlds:
            kind = {"frame-select": "frames", "time-skip": "steps"}.get(name, "crops")
            registered, options = VARIANTS.get(name, (name, {}))
            task = make_task(registered, random_backbone(backbone, reader=kind), **options)
            images = torch.rand((7, *task.blank().shape[1:]), generator=torch.Generator().manual_seed(0))
            worlds[name, backbone] = World(task, task.prepare(images))
        return worlds[name, backbone]

    return make


@pytest.fixture(scope="session", params=CASES, ids="-".join)
def world(request, make_world) -> World:
    return make_world(*request.param)


@pytest.fixture(scope="session", params=SKIPPING, ids="-".join)
def skipping_world(request, make_world) -> World:
    return make_world(*request.param)


@pytest.fixture
def leave(tiny_backbone: Backbone) -> Leave:
    return Leave(tiny_backbone)


@pytest.fixture
def make_engine(tiny_images: ImageData) -> Callable[..., Engine]:
    """Return a function that builds an engine on noise images."""

    def make(task: Task, *, num_envs: int = 1, reward="accuracy", price=0.3, augment=False, policy_macs=0) -> Engine:
        part = tiny_images.policy
        if task.takes_clips:
            frames = [part.images.roll(shift, 0) for shift in range(task.blank().shape[1])]
            part = Part(torch.stack(frames, 1), part.labels)
        return Engine(
            task,
            part,
            reward=make_reward(reward),
            price=price,
            num_envs=num_envs,
            augment=Augment.strong(tiny_images) if augment else None,
            policy_macs=policy_macs,
        )

    return make


@pytest.fixture
def killed_at_second_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Task], list[int]]:
    """Return a function that interrupts a task once, in the second batch that begins, and tells rows of each call."""

    def arrange(task: Task) -> list[int]:
        begin, seen = task.begin, []

        def stop_at_second_batch(inputs: Tensor) -> State:
            seen.append(len(inputs))
            if len(seen) == 3:  # the probe, a batch, then
                raise KeyboardInterrupt
            return begin(inputs)

        monkeypatch.setattr(task, "begin", stop_at_second_batch)
        return seen

    return arrange
