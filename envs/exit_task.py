"""Answer now, or spend more: what early exits and cascades share."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from .choice import Choice
from .pooling import pool, pooled_size
from .state import State
from .task import Task

SIGNS = 4
"""How many numbers an answer is observed by: confidence, entropy, margin, agreement."""


class ExitTask(Task):
    """Stages, each of which ends in an answer; before the next a row may leave with the answer that it has.

    A subclass says what runs in a stage (`run`, then `head`), calls `set_stages` with what they cost, and what the
    first stage starts from (`enter`). The last stage ends in the untouched network's answer.

    Attributes:
        stage_macs: Cost of each stage, its head included, in MACs of one input.
        stage_shapes: Of one row of what each stage leaves for the next.
    """

    has_exits = True
    stage_macs: tuple[int, ...]
    stage_shapes: tuple[tuple[int, ...], ...]

    def __init__(self, backbone: Backbone, *, pooled: int = 0):
        super().__init__(backbone)
        if pooled not in (0, 1):
            raise ValueError(f"pooled: expected 0 or 1, got {pooled!r}. 1 shows the policy pooled features too.")
        self.pooled, self.decisions = bool(pooled), (2,)

    def set_stages(
        self, macs: Sequence[int], shapes: Sequence[tuple[int, ...]], seen: Sequence[tuple[int, ...]] | None = None
    ) -> None:
        """Take what stages cost and leave; from this follows all that a task declares.

        Args:
            macs: Of each stage, its head included.
            shapes: Of one row of what each leaves for the next.
            seen: Of one row of `seen` at each stage but the last, where it is not what the stage leaves.
        """
        self.stage_macs, self.stage_shapes = tuple(macs), tuple(shapes)
        self.horizon, self.least_macs = len(macs) - 1, self.before_macs + macs[0]
        self.width = max(map(pooled_size, seen or shapes[:-1])) if self.pooled else 0
        self.observation_shape = (SIGNS + self.width,)

    @abstractmethod
    def enter(self, inputs: Tensor) -> Tensor:
        """Return what the first stage starts from."""

    @abstractmethod
    def run(self, stage: int, x: Tensor) -> Tensor:
        """Return what a stage makes of rows, for its head and for the next stage."""

    @abstractmethod
    def head(self, stage: int, x: Tensor) -> Tensor:
        """Return the logits of a stage, from what it has made of rows. Shape (N, classes)."""

    def seen(self, stage: int, x: Tensor) -> Tensor:
        """Return the features that a policy may see pooled, of what a stage has made of rows."""
        return x

    @property
    def before_macs(self) -> int:
        """Cost of `enter`, in MACs of one input."""
        return 0

    @property
    def most_macs(self) -> int:
        return self.before_macs + sum(self.stage_macs)

    @property
    def paths(self) -> list[tuple[int, ...]]:
        """Leave at the first exit, at the second, …, never."""
        return [(1,) * count + (0,) * (self.horizon - count) for count in range(self.horizon + 1)]

    def begin(self, inputs: Tensor) -> State:
        """Run the first stage."""
        x = self.run(0, self.enter(inputs))
        logits = self.head(0, x)
        return State.start(x, macs=self.least_macs, logits=logits, votes=torch.zeros_like(logits))

    def answer_now(self, state: State) -> Tensor:
        """Return the logits of the stage that rows have come through."""
        return state.memory["logits"]

    def observe(self, state: State) -> Tensor:
        """Return what the last answer looks like, and with `pooled` the features behind it."""
        seen = signs(state.memory["logits"], state.memory["votes"], state.position)
        if not self.pooled:
            return seen
        return torch.cat([seen, pool(self.seen(state.position, state.features), self.width)], 1)

    def step(self, state: State, choice: Choice) -> State:
        """Let rows leave with the answer that they have, and run the next stage on the others."""
        stage, before = state.position + 1, state.memory["logits"]
        votes = state.memory["votes"] + F.one_hot(before.argmax(1), before.shape[1])
        x = choice.only(1, partial(self.run, stage), state.features, self.stage_shapes[stage])
        logits = choice.only(1, partial(self.head, stage), x, before.shape[1:])
        state = state.advance(x, macs=choice.cost([0, self.stage_macs[stage]]), logits=logits, votes=votes)
        state = state.finish(before, when=choice.weight(0))
        return state if stage < self.horizon else state.finish(logits)


def signs(logits: Tensor, votes: Tensor, earlier: int) -> Tensor:
    """Return how sure an answer looks.

    Args:
        logits: Shape (N, classes).
        votes: How many earlier answers named each class. Shape (N, classes).
        earlier: How many earlier answers there were.

    Returns:
        Largest probability; entropy as a share of the largest possible; margin between the two largest probabilities;
        share of the earlier answers that named the same class, 0 where there were none. Shape (N, 4).
    """
    log = F.log_softmax(logits, 1)
    probability = log.exp()
    first, second = probability.topk(2, 1).values.unbind(1)
    entropy = -(probability * log).sum(1) / torch.tensor(logits.shape[1], device=logits.device).log()
    agreement = votes.gather(1, logits.argmax(1, keepdim=True))[:, 0] / max(1, earlier)
    return torch.stack([first, entropy, first - second, agreement], 1)
