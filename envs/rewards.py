"""Rewards: how accuracy is weighed against compute."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..names import unknown

GainOver = Literal["", "before", "random"]
RewardName = Literal["accuracy", "cross-entropy", "skipnet", "block-drop", "confidence-gain", "gain-over-random"]


@dataclass(frozen=True)
class Spent:
    """What one decision did, for N rows.

    Attributes:
        kept: Number of pieces that it executed. Shape (N,).
        decided: Number of pieces that it was about.
        compute: MACs that it spent, as a share of the full network's; the first also carries what ran before it.
        price: Price of compute. Shape (N,).
        pieces: Number of pieces in a whole episode that could be executed.
        gain: By how much the probability of the right class rose over what the reward names in `gain_over`; 0 where a
            row answered without more. Shape (N,).
    """

    kept: Tensor
    decided: int
    compute: Tensor
    price: Tensor
    pieces: int
    gain: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """What an episode came to, for N rows.

    Attributes:
        logits: The answer. Shape (N, classes).
        labels: The truth. Shape (N,).
        kept: Number of pieces executed in the episode. Shape (N,).
        price: Price of compute. Shape (N,).
        pieces: Number of pieces that could be executed.
    """

    logits: Tensor
    labels: Tensor
    kept: Tensor
    price: Tensor
    pieces: int

    @property
    def correct(self) -> Tensor:
        """1 where the answer is right, else 0. Shape (N,)."""
        return (self.logits.argmax(1) == self.labels).float()


class Reward(ABC):
    """A reward in two places: after each decision, and when the answer is known.

    Attributes:
        gain_over: What a gain in probability is reckoned from, for rewards that pay for it on tasks with exits:
            `before`, the answer there was before the decision; `random`, that after a random other option.
    """

    gain_over: ClassVar[GainOver] = ""

    @abstractmethod
    def step(self, spent: Spent) -> Tensor:
        """Return the reward of one decision. Shape (N,)."""

    @abstractmethod
    def end(self, outcome: Outcome) -> Tensor:
        """Return the reward of the answer. Shape (N,)."""

    def config(self) -> dict[str, Any]:
        """Return name and parameters (JSON)."""
        name = next(name for name, kind in REWARDS.items() if kind is type(self))
        return {"name": name, **asdict(self)}  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class AccuracyMinusPrice(Reward):
    """1 if right, minus price x compute. The compute is charged as it is spent."""

    def step(self, spent: Spent) -> Tensor:
        return -spent.price * spent.compute

    def end(self, outcome: Outcome) -> Tensor:
        return outcome.correct


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Reward):
    """Minus the cross-entropy of the answer, at most `clip`, minus price x compute.

    It tells how wrong, where accuracy only tells that.
    """

    clip: float = 4.0

    def step(self, spent: Spent) -> Tensor:
        return -spent.price * spent.compute

    def end(self, outcome: Outcome) -> Tensor:
        return -F.cross_entropy(outcome.logits, outcome.labels, reduction="none").clamp(max=self.clip)


@dataclass(frozen=True, kw_only=True)
class SkipNet(Reward):
    """SkipNet's hybrid reward: `alpha`/N for each of N blocks that is skipped, minus the cross-entropy at the end.

    All blocks count alike and the gate is free, as in the authors' release. The price is not used.
    """

    alpha: float = 0.1

    def step(self, spent: Spent) -> Tensor:
        return self.alpha / spent.pieces * (spent.decided - spent.kept)

    def end(self, outcome: Outcome) -> Tensor:
        return -F.cross_entropy(outcome.logits, outcome.labels, reduction="none")


@dataclass(frozen=True, kw_only=True)
class BlockDrop(Reward):
    """BlockDrop's reward: 1 - (kept / pieces)² if right, else -`gamma`. The price is not used."""

    gamma: float = 5.0

    def step(self, spent: Spent) -> Tensor:
        return torch.zeros_like(spent.kept)

    def end(self, outcome: Outcome) -> Tensor:
        saved = 1 - (outcome.kept / outcome.pieces) ** 2
        return torch.where(outcome.correct > 0, saved, torch.full_like(saved, -self.gamma))


@dataclass(frozen=True, kw_only=True)
class ConfidenceGain(Reward):
    """p_t(y) - p_(t-1)(y), the gain in probability of the right class, minus price x compute (Glance and Focus, 2020).

    In a whole episode the gains add up to the probability at the end, less that at the beginning.
    """

    gain_over: ClassVar[GainOver] = "before"

    def step(self, spent: Spent) -> Tensor:
        assert spent.gain is not None
        return spent.gain - spent.price * spent.compute

    def end(self, outcome: Outcome) -> Tensor:
        return torch.zeros_like(outcome.price)


@dataclass(frozen=True, kw_only=True)
class GainOverRandom(ConfidenceGain):
    """p(y) after the decision minus p(y) after a random one instead, minus price x compute (AdaFocus, 2021).

    What the image gives by itself falls out, and with it variance. Each decision runs twice in training. It pays for
    looking in the right place, not for looking at all: with a price it is best soon to stop. Take price 0, and
    let thresholds decide when it is enough.
    """

    gain_over: ClassVar[GainOver] = "random"


REWARDS: dict[str, type[Reward]] = {
    "accuracy": AccuracyMinusPrice,
    "cross-entropy": CrossEntropy,
    "skipnet": SkipNet,
    "block-drop": BlockDrop,
    "confidence-gain": ConfidenceGain,
    "gain-over-random": GainOverRandom,
}


def make_reward(reward: str | Reward) -> Reward:
    """Return a reward by name, with its defaults, or the object itself.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(reward, Reward):
        return reward
    if reward not in REWARDS:
        raise ValueError(unknown("reward", reward, REWARDS))
    return REWARDS[reward]()
