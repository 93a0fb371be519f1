"""SkipNet's hybrid learning: a supervised warm-up, then REINFORCE on top of the supervised loss (Wang et al. 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..envs.task import Task
from .learner import Setting, read_options, register_agent
from .relaxed import Draw, RelaxedLearner, Trial, sampled, soft


@dataclass(frozen=True, kw_only=True)
class SkipNetOptions:
    """What the SkipNet learner can be told. The authors train the network too; ours is frozen."""

    learning_rate: float = 3e-3
    """Of Adam, at the start."""
    batch_size: int = 64
    """Images in a step, at most."""
    warm_up: float = 0.2
    """Share of training in which the gates are soft and only cross-entropy is minimised."""
    rl_weight: float = 1.0
    """Of REINFORCE beside the supervised loss; 0.01 in the authors' release, which trains the network as well."""
    baseline: Literal["mean", "none"] = "mean"
    """Subtracted from returns: the batch's mean at that position. None in the authors' release."""
    recurrent: int = 0
    """1: the gate is SkipNet's recurrent one, an LSTM shared by all positions."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        positive = min(self.learning_rate, self.batch_size) > 0
        if not positive or not 0 <= self.warm_up < 1 or self.rl_weight < 0:
            raise ValueError(
                "skipnet: expected positive learning_rate and batch_size, warm_up in [0, 1), rl_weight >= 0; "
                f"got {self}."
            )
        if self.baseline not in ("mean", "none") or self.recurrent not in (0, 1):
            raise ValueError(f"skipnet: expected baseline mean or none, recurrent 0 or 1; got {self}.")


@register_agent("skipnet", "soft supervised warm-up, then hybrid reinforcement learning (SkipNet)")
class SkipNet(RelaxedLearner):
    """After the warm-up actions are drawn from the gates.

    The loss is the cross-entropy, whose gradient goes straight through to the gates, plus `rl_weight` times
    REINFORCE's; the return of a decision is - cross-entropy - price x what is spent from there on.
    """

    def begin(self, setting: Setting) -> None:
        self.options = read_options(SkipNetOptions(), setting.agent_options, "skipnet")
        self.learning_rate, self.batch_size = self.options.learning_rate, self.options.batch_size
        self.recurrent = bool(self.options.recurrent)

    def draw(self, progress: float) -> Draw:
        return soft if progress < self.options.warm_up else sampled

    def loss(self, trial: Trial, progress: float) -> Tensor:
        supervised = trial.error.mean()
        if progress < self.options.warm_up:
            return supervised
        return supervised + self.options.rl_weight * reinforce_loss(trial, mean=self.options.baseline == "mean")

    def check(self, task: Task, options: Mapping[str, Any]) -> None:
        super().check(task, options)
        read_options(SkipNetOptions(), options, "skipnet")


def reinforce_loss(trial: Trial, *, mean: bool) -> Tensor:
    """Return the loss whose gradient is REINFORCE's, for choices that were drawn from the gates' probabilities.

    Args:
        trial: A batch.
        mean: Whether to subtract the batch's mean return at each position.
    """
    decider, parts = trial.decider, len(trial.decider.gate.decisions)
    total, loss = trial.compute.detach(), torch.zeros((), device=trial.error.device)
    for piece, (logits, weights) in enumerate(zip(decider.logits(), decider.weights, strict=True)):
        spent = (decider.before[piece // parts].detach() / decider.task.full_macs).float()
        returns = -trial.error.detach() - trial.price * (total - spent)
        advantage = returns - returns.mean() if mean else returns
        chosen = weights.detach().argmax(1, keepdim=True)
        loss = loss - (advantage * F.log_softmax(logits, 1).gather(1, chosen)[:, 0]).mean()
    return loss
