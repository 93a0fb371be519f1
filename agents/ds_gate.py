"""DS-Net's gate: besides the task's loss, each image names the way that it should have gone (Li et al. 2021)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..envs.outcomes import Path, outcomes_from
from ..envs.task import Task
from .gumbel import Gumbel, GumbelOptions
from .learner import Setting, read_options, register_agent
from .oracle import cheapest, paths_to_follow
from .relaxed import Trial

Target = Literal["sandwich", "cheapest"]


@dataclass(frozen=True, kw_only=True)
class DSGateOptions(GumbelOptions):
    """What DS-Net's gate can be told; straight-through at temperature 1 and without a leash, as in its release."""

    start: float = 1.0
    end: float = 1.0
    hard: int = 1
    leash: float = 0.0
    target: Target = "sandwich"
    """What an image asks for: the smallest way where that answers right, else the largest, and nothing between
    (sandwich, the paper's); or the cheapest of all ways that answers right, the largest where none does (cheapest)."""
    weight: float = 1.0
    """Of the cross-entropy of the gates to what the images ask for; the paper's is 1."""
    limit: int = 64
    """Ways at most that cheapest follows for each image."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.target not in get_args(Target) or self.weight < 0 or self.limit < 1:
            raise ValueError(
                "ds-gate: expected target sandwich or cheapest, weight >= 0 and a limit of at least 1, "
                f"got {self.target!r}, {self.weight}, {self.limit}."
            )


@register_agent("ds-gate", "Gumbel gates that each image also tells which way it should have gone (DS-Net)")
class DSGate(Gumbel):
    """Minimises cross-entropy + price x compute² + weight x cross-entropy of the gates to the images' targets.

    Compute is the batch's mean, squared as in the authors' release. Several decisions all have the target's option at
    their place as target, as the gates of DS-Net's stages have. What following the targets' ways takes is counted as
    backbone MACs. The gate is that of all learners: pooled features, two layers with ReLU, and the logits.

    The paper's gate shares its first layer with squeeze-and-excitation, which reweights the network's features: left
    out, since a frozen network stays bit-identical.
    """

    agent = "ds-gate"
    options: DSGateOptions = DSGateOptions()  # pyright: ignore[reportIncompatibleVariableOverride]

    def begin(self, setting: Setting) -> None:
        super().begin(setting)
        self.tried = ways_to_try(setting.task, self.options)

    def loss(self, trial: Trial, progress: float) -> Tensor:
        target, spent = targets(trial, self.tried)
        trial.aside.append(spent)
        squared = trial.compute.mean().square()
        asked = gate_loss(trial.decider.drawn_from, target, ends=trial.decider.task.has_exits)
        return trial.error.mean() + trial.price.mean() * squared + self.options.weight * asked + self.leash(trial)

    def check(self, task: Task, options: Mapping[str, Any]) -> None:
        super().check(task, options)
        ways_to_try(task, read_options(DSGateOptions(), options, self.agent))


def ways_to_try(task: Task, options: DSGateOptions) -> list[Path]:
    """Return the ways that are followed to know an image's target: all that may be one but the largest.

    Raises:
        ValueError: If there is no smallest way, or there are too many.
    """
    if task.alike:
        raise ValueError(
            f"ds-gate: expected options that rise from less to more, got {task.name}, whose options are alike, so that "
            "none of them is the largest. Use gumbel, ppo or reinforce."
        )
    if options.target == "sandwich":
        return [(0,) * len(task.pieces)]
    count = len(task.paths) if task.paths is not None else prod(task.decisions) ** task.horizon
    if count > options.limit:
        raise ValueError(
            f"ds-gate: expected at most {options.limit} ways through with target cheapest, since each image tries all, "
            f"got {count:,} of {task.name}. Use --agent-options target sandwich, a higher limit, or gumbel."
        )
    return [path for path in paths_to_follow(task, options.limit)[0] if path != task.onward]


def targets(trial: Trial, tried: Sequence[Path]) -> tuple[Tensor, float]:
    """Return the cheapest of the tried ways that answers each row right, else the largest, and the MACs that took.

    Returns:
        One option for each piece, shape (N, pieces); and MACs of all rows together.
    """
    task = trial.decider.task
    found = outcomes_from(task, trial.start, trial.labels, tried)
    ways = torch.tensor([*tried, task.onward], device=task.device)
    return ways[cheapest(found.correct, found.macs)], found.spent  # of none it says -1, where the largest is


def gate_loss(logits: Sequence[Tensor], target: Tensor, *, ends: bool = False) -> Tensor:
    """Return the cross-entropy of the gates' logits to a target, averaged over rows and decisions.

    Args:
        logits: Of each piece that was decided, each (N, options).
        target: An option for each piece. Shape (N, pieces).
        ends: Whether option 0 ends the way, so that what the target says after it is not asked for.
    """
    losses = torch.stack([F.cross_entropy(one, target[:, i], reduction="none") for i, one in enumerate(logits)], 1)
    if not ends:
        return losses.mean()
    on = (target[:, : losses.shape[1]] > 0).long().cumprod(1)
    asked = torch.cat([torch.ones_like(on[:, :1]), on[:, :-1]], 1)
    return (asked * losses).sum() / asked.sum()
