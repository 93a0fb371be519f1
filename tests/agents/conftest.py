import pytest
import torch

from skipgym.backbones import make_backbone
from skipgym.data import Augment, ImageData, Part
from skipgym.envs import ExitTask, State, Task


class Tell(Task):
    """A task with a known optimum: execute the first decision for bright images, the second for dark ones.

    The answer is right only if both decisions are; each execution costs a tenth of the full network.
    """

    name = "tell"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.horizon, self.decisions, self.observation_shape = 2, (2,), (2,)
        self.least_macs = 0

    def begin(self, inputs):
        brightness = inputs.mean((1, 2, 3)).unsqueeze(1)
        return State.start(brightness, right=torch.ones(len(inputs)))

    def observe(self, state):
        return torch.cat([state.features, state.memory["right"].unsqueeze(1)], 1)

    def step(self, state, choice):
        bright = (state.features[:, 0] > 0).float()
        wanted = bright if state.position == 0 else 1 - bright
        executed = choice.weight(1)
        right = state.memory["right"] * (wanted * executed + (1 - wanted) * (1 - executed))
        state = state.advance(state.features, macs=choice.cost([0, self.full_macs / 10]), right=right)
        if state.position < 2:
            return state
        sign = (2 * right - 1) * (2 * bright - 1)
        return state.finish(torch.stack([-sign, sign], 1))


class TellAtOnce(Tell):
    """The same with both decisions made together, from an image."""

    name = "tell-at-once"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.horizon, self.decisions, self.observation_shape = 1, (2, 2), (1, 8, 8)

    def begin(self, inputs):
        return State.start(inputs)

    def observe(self, state):
        return state.features

    def step(self, state, choice):
        bright = (state.features.mean((1, 2, 3)) > 0).float()
        first, second = choice.part(0).weight(1), choice.part(1).weight(1)
        right = bright * first * (1 - second) + (1 - bright) * (1 - first) * second
        sign = (2 * right - 1) * (2 * bright - 1)
        macs = (first + second) * self.full_macs / 10
        return state.advance(state.features, macs=macs).finish(torch.stack([-sign, sign], 1))


class Enough(ExitTask):
    """An early exit with a known optimum: the first answer is sure and right of bright images, of dark ones neither.

    The second is right of all and costs a tenth of the full network more.
    """

    name = "enough"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.set_stages([0, self.full_macs // 10], [(1,), (1,)])

    def enter(self, inputs):
        return inputs.mean((1, 2, 3)).unsqueeze(1)

    def run(self, stage, x):
        return x

    def head(self, stage, x):
        bright = (x[:, 0] > 0).float()
        sign = 2 * bright - 1 if stage else 0.2 + 3 * bright
        return torch.stack([-sign, sign], 1)


def part(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = (labels.view(-1, 1, 1, 1) * 150 + torch.randint(0, 100, (count, 1, 8, 8), generator=generator)).byte()
    return Part(images, labels)


@pytest.fixture(scope="session")
def dark_or_bright():
    """Images whose class is their brightness."""
    return ImageData(
        name="dark-or-bright",
        train=part(64, 0),
        policy=part(256, 1),
        val=part(128, 2),
        test=part(128, 3),
        class_names=("dark", "bright"),
        mean=(0.5,),
        std=(0.25,),
        augment=Augment(),
        fingerprint="0" * 16,
        note="made for tests",
    )


@pytest.fixture(scope="session")
def small_backbone():
    """A random network of 3 blocks for two classes."""
    torch.manual_seed(0)
    return make_backbone("resnet8-w4", num_classes=2, input_shape=(1, 8, 8), mean=(0.5,), std=(0.25,))


@pytest.fixture
def tell(small_backbone):
    return Tell(small_backbone)


@pytest.fixture
def enough(small_backbone):
    return Enough(small_backbone)


@pytest.fixture
def tell_at_once(small_backbone):
    return TellAtOnce(small_backbone)
