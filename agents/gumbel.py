"""Gates by Gumbel-softmax: to a price or a compute target, and to a rate for each block (ConvNet-AIG)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..envs.task import Task
from .baselines import random_rate
from .gate import shares_executed
from .learner import Setting, read_options, register_agent
from .relaxed import Draw, RelaxedLearner, Trial, gumbel


@dataclass(frozen=True, kw_only=True)
class GumbelOptions:
    """What the Gumbel learners can be told."""

    learning_rate: float = 1e-2
    """Of Adam, at the start."""
    batch_size: int = 64
    """Images in a step, at most."""
    start: float = 2.0
    """Temperature at the start; it falls (or rises) exponentially to `end`."""
    end: float = 0.2
    """Temperature at the end."""
    hard: int = 0
    """0: mixtures forward, which come close to one option as the temperature falls. 1: straight-through, one option
    forward; its gradient is biased, and on cluttered digits at temperature 1 some trainings gave up the hard images."""
    leash: float = 0.01
    """Of the mean square of the logits, added to the loss. A gate that is sure before the price has risen has no
    gradient left to change its mind by."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        positive = min(self.learning_rate, self.batch_size, self.start, self.end) > 0
        if not positive or self.hard not in (0, 1) or self.leash < 0:
            raise ValueError(
                "gumbel: expected positive learning_rate, batch_size, start, end, hard 0 or 1, and leash >= 0; "
                f"got {self}."
            )


@dataclass(frozen=True, kw_only=True)
class AIGOptions(GumbelOptions):
    """What ConvNet-AIG's learner can be told; straight-through at temperature 1 as in the authors' release."""

    learning_rate: float = 3e-3
    start: float = 1.0
    end: float = 1.0
    hard: int = 1
    leash: float = 0.0
    rate: float = 0.6
    """How often each block is to be executed, where there is no compute target."""
    weight: float = 2.0
    """Of the squared distance between rates and targets."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0 <= self.rate <= 1 or self.weight < 0:
            raise ValueError(f"convnet-aig: expected rate in 0 … 1 and weight >= 0, got {self}.")


@register_agent("gumbel", "gates by Gumbel-softmax, annealed or straight-through, to a price or a compute target")
class Gumbel(RelaxedLearner):
    """Minimises cross-entropy + price x compute, both differentiable in the gates, + leash x mean square of the logits.

    The noise is off at evaluation.
    """

    agent = "gumbel"
    options: GumbelOptions = GumbelOptions()

    def begin(self, setting: Setting) -> None:
        self.options = read_options(type(self).options, setting.agent_options, self.agent)
        self.learning_rate, self.batch_size = self.options.learning_rate, self.options.batch_size

    def draw(self, progress: float) -> Draw:
        options = self.options
        return gumbel(options.start * (options.end / options.start) ** progress, hard=bool(options.hard))

    def loss(self, trial: Trial, progress: float) -> Tensor:
        return (trial.error + trial.price * trial.compute).mean() + self.leash(trial)

    def leash(self, trial: Trial) -> Tensor:
        """Return the mean square of the logits times its weight."""
        return self.options.leash * torch.cat(trial.decider.drawn_from, 1).square().mean()

    def check(self, task: Task, options: Mapping[str, Any]) -> None:
        super().check(task, options)
        read_options(type(self).options, options, self.agent)


@register_agent("convnet-aig", "Gumbel gates with a target rate for each block (ConvNet-AIG)")
class ConvNetAIG(Gumbel):
    """Minimises cross-entropy + weight x mean over blocks of (target - rate in the batch)² (Veit and Belongie 2018).

    With a compute target all blocks are asked for the rate at which a random policy spends it; the price is not used.
    """

    agent = "convnet-aig"
    options: AIGOptions = AIGOptions()  # pyright: ignore[reportIncompatibleVariableOverride]

    def begin(self, setting: Setting) -> None:
        super().begin(setting)
        self.target = self.options.rate
        if setting.lagrange:
            self.target = random_rate(setting.task, setting.lagrange.target)

    def loss(self, trial: Trial, progress: float) -> Tensor:
        rates = rate_loss(trial.decider.weights, self.target, alike=trial.decider.task.alike)
        return trial.error.mean() + self.options.weight * rates + self.leash(trial)


def rate_loss(weights: list[Tensor], target: float, *, alike: bool = False) -> Tensor:
    """Return the mean over pieces of (target - share executed in the batch)². Weights of shape (N, options) each.

    Of several options each counts as `shares_executed` says.
    """
    shares = [shares_executed(piece.shape[1], alike=alike).to(piece) for piece in weights]
    executed = torch.stack([(piece.mean(0) * share).sum() for piece, share in zip(weights, shares, strict=True)])
    return (target - executed).square().mean()
