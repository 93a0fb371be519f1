"""Imitate an oracle: the gates learn where the outcome table says that each option leads (DAgger, Ross et al. 2011).

1. *Table*: follow many paths with augmented images; a path's score is its answer's minus price x compute.
2. *Imitate*: walk each image's best path, and note at each decision the best score that each option leads to.
3. *Correct*: walk the policy's own paths. Where it has strayed, the table still knows the best way on from there.

After 2 and after each round of 3 the gates are trained on all that was noted. An option is to be preferred as strongly
as it leads to more: the loss is cross-entropy weighted by the difference of the best scores (cost-sensitive
classification), so that where both ways are as good nothing needs to be learned.

The expert knows what comes of it, the policy does not: where some path is right by luck, the expert takes it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..envs.choice import Hard
from ..envs.observation import Layout
from ..envs.outcomes import Path, outcomes
from ..envs.rollout import follow
from ..envs.state import State
from ..envs.task import Task
from .budget import lowest_price
from .gate import Gate
from .learner import Learner, Setting, read_options, register_agent
from .monitor import Monitor
from .oracle import full_answers, paths_to_follow
from .path_table import augmented
from .policy import GatePolicy, Policy

Expert = Literal["right", "agree"]

PROBABILITY = 0.2
"""Its weight in the score of an answer: it tells apart paths that all hit, or all miss."""


@dataclass(frozen=True, kw_only=True)
class ImitateOptions:
    """What the imitating learner can be told."""

    expert: Expert = "right"
    """What a path must do to hit: answer right, or agree with the full network."""
    limit: int = 512
    """Up to so many paths all are followed; else, for decisions of two options, so many worth trying."""
    table_images: int = 4000
    """Images in the outcome table at most; they are walked again in each round."""
    record_share: float = 0.6
    """Share of the training that the table may take; the rounds share the rest."""
    rounds: int = 2
    """Of correction, after the first training."""
    epochs: int = 15
    """Passes over all that was noted, in each training."""
    batch_size: int = 256
    """Of the trainings."""
    learning_rate: float = 3e-3
    """Of Adam, at the start of each training; it falls to zero."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        counts = (self.limit, self.table_images, self.epochs, self.batch_size)
        ranges = min(counts) >= 1 and self.rounds >= 0 and 0 < self.record_share < 1 and self.learning_rate > 0
        if not ranges or self.expert not in get_args(Expert):
            raise ValueError(
                "imitate: expected expert right or agree, limit, table_images, epochs and batch_size of at least 1, "
                f"rounds >= 0, record_share in (0, 1) and learning_rate > 0; got {self}."
            )


@register_agent("imitate", "imitates an oracle's paths, gates trained by cross-entropy (DAgger)")
class Imitate(Learner):
    """Table, imitate, correct; see the module."""

    def train(self, setting: Setting) -> GatePolicy:
        options = read_options(ImitateOptions(), setting.agent_options, "imitate")
        if isinstance(setting.price, Sequence):
            raise ValueError(f"imitate: expected a single price, got the range {setting.price}. Train once for each.")
        torch.manual_seed(setting.seed)
        task, monitor, generator = setting.task, setting.monitor, torch.Generator().manual_seed(setting.seed)
        gate = setting.gate()
        policy, target = GatePolicy(gate), setting.lagrange.target if setting.lagrange else None
        table = tabulate(setting, options, generator)
        price = setting.price
        if target is not None:
            price = price_of(table, target - task.horizon * policy.macs / task.full_macs)
        monitor.advance(0, price=price, expert_compute=table.best_compute(price))
        lessons = walk(setting, table, price)
        gate.trunk.fit(torch.cat([lesson.observations for lesson in lessons]))
        began = monitor.done_share
        for index in range(options.rounds + 1):
            if index:
                lessons += walk(setting, table, price, policy, until=began + (1 - began) * index / options.rounds)
            fit(options, gate, lessons, generator, monitor, began + (1 - began) * (index + 1) / (options.rounds + 1))
            monitor.validate(policy, force=True)
        return policy

    def check(self, task: Task, options: Mapping[str, Any]) -> None:
        paths_to_follow(task, read_options(ImitateOptions(), options, "imitate").limit)


@dataclass(frozen=True)
class Table:
    """Outcomes of N images under P paths.

    Attributes:
        images: As they were followed. Shape (N, C, H, W), uint8.
        worth: Of each answer, 0…1: mostly whether it hits, partly its probability. Shape (N, P).
        compute: Of each path, as a share of the full network's MACs, policy aside. Shape (P,).
        paths: Shape (P, pieces).
    """

    images: Tensor
    worth: Tensor
    compute: Tensor
    paths: Tensor

    def best_compute(self, price: float) -> float:
        """Return what each image's best path at a price costs, on average."""
        return float(self.compute[(self.worth - price * self.compute).argmax(1)].mean())


def tabulate(setting: Setting, options: ImitateOptions, generator: torch.Generator) -> Table:
    """Follow the paths with augmented images, until there are enough or the share of the budget is used up."""
    data, task, monitor = setting.data.policy, setting.task, setting.monitor
    paths, _ = paths_to_follow(task, options.limit)
    images, worth, compute = [], [], torch.empty(0)
    count, step = 0, 0.0
    while not count or (count < options.table_images and monitor.done_share + step <= options.record_share):
        before = monitor.done_share
        rows = torch.randint(len(data), (min(64, options.table_images - count),), generator=generator)
        images.append(augmented(setting.augment, data.images[rows], generator))
        of, compute = _worth(setting, options, images[-1], data.labels[rows], paths)
        worth.append(of)
        count += len(rows)
        monitor.advance(len(rows))
        step = monitor.done_share - before  # the next batch is begun only if there is as much left
    return Table(torch.cat(images), torch.cat(worth), compute, torch.tensor(paths, device=task.device))


def _worth(
    setting: Setting, options: ImitateOptions, images: Tensor, labels: Tensor, paths: list[Path]
) -> tuple[Tensor, Tensor]:
    """Return what each path's answer is worth to the expert (N, P), and what it costs (P,); count what was spent."""
    task = setting.task
    if options.expert == "agree":
        labels = full_answers(task, images)
        setting.monitor.backbone_macs += len(images) * task.full_macs
    found = outcomes(task, images, labels, paths)
    setting.monitor.backbone_macs += found.spent
    worth = (1 - PROBABILITY) * found.correct.float() + PROBABILITY * found.probability
    return worth, (found.macs / task.full_macs).float()


def price_of(table: Table, target: float) -> float:
    """Return the lowest price at which the best paths cost no more than a target, on average."""
    return lowest_price(table.best_compute, target, steps=20)


@dataclass(frozen=True)
class Lesson:
    """What was noted at M decisions.

    Attributes:
        observations: What the gate sees. Shape (M, ...).
        values: The best score that each option leads to, -inf where the table does not know; the options of all
            parts side by side. Shape (M, sum of decisions).
    """

    observations: Tensor
    values: Tensor


class Guide:
    """Walks the best paths, or those of a policy, and notes at each decision where each option leads.

    Args:
        task: Says what is seen.
        layout: Of the observations.
        paths: Shape (P, pieces).
        scores: Of each row's paths. Shape (N, P).
        policy: Who walks; None for the expert.
    """

    def __init__(self, task: Task, layout: Layout, paths: Tensor, scores: Tensor, policy: Policy | None = None):
        self.task, self.layout, self.paths, self.scores, self.policy = task, layout, paths, scores, policy
        self.open = torch.ones_like(scores, dtype=torch.bool)  # the paths that begin as the row has walked
        self.lessons: list[Lesson] = []

    def __call__(self, state: State) -> Hard:
        """Decide for a cohort."""
        rows, parts = state.rows, len(self.task.decisions)
        here = self.paths[:, state.position * parts : (state.position + 1) * parts]
        scores = self.scores[rows].masked_fill(~self.open[rows], -torch.inf)
        features, price = self.task.observe(state), torch.zeros(len(rows), device=rows.device)
        observations = self.layout.join(features, state.position, price)
        self.lessons.append(Lesson(observations, option_values(scores, here, self.task.decisions)))
        if self.policy is None:
            actions = here[scores.argmax(1)]
        else:
            actions, _ = self.policy.act(features, state, price, None)
        self.open[rows] = self.open[rows] & (here == actions.unsqueeze(1)).all(2)
        return Hard(actions.squeeze(1) if parts == 1 else actions)


def option_values(scores: Tensor, here: Tensor, decisions: Sequence[int]) -> Tensor:
    """Return the best score among the paths that take each option, -inf where none does.

    Args:
        scores: Of each row's paths; -inf for those that it can no longer take. Shape (N, P).
        here: What each path does at this decision. Shape (P, parts).
        decisions: Options of each part.

    Returns:
        The options of all parts side by side. Shape (N, sum of decisions).
    """
    takes = [here[:, part] == option for part, count in enumerate(decisions) for option in range(count)]
    return torch.stack([scores.masked_fill(~take, -torch.inf).amax(1) for take in takes], 1)


@torch.no_grad()
def walk(
    setting: Setting, table: Table, price: float, policy: Policy | None = None, *, until: float = 1.0
) -> list[Lesson]:
    """Walk the images of the table, as a policy or, without one, as the expert does.

    Args:
        setting: The run.
        table: Says where each way leads.
        price: Of compute.
        policy: Who walks. The expert's walk belongs to the same episodes as the table; a policy's are new ones.
        until: A policy stops when such a share of the training is done.
    """
    task, monitor, lessons = setting.task, setting.monitor, []
    for images, worth in zip(table.images.split(256), table.worth.split(256), strict=True):
        if policy is not None and monitor.done_share >= until:
            break
        guide = Guide(task, setting.layout, table.paths, worth - price * table.compute, policy)
        run = follow(task, task.begin(task.prepare(images)), guide)
        monitor.backbone_macs += float(run.macs.sum())
        monitor.advance(0 if policy is None else len(images))
        lessons += guide.lessons
    return lessons


def regret(logits: Tensor, values: Tensor, decisions: Sequence[int]) -> Tensor:
    """Return the loss of each row: how much better the best option is, times the log-odds lost to each other one.

    For two options it is the cross-entropy to the better one, weighted by the difference of their values. Options of
    unknown value count for nothing.

    Args:
        logits: Options of all parts side by side. Shape (N, sum of decisions).
        values: Likewise; -inf where unknown.
        decisions: Options of each part.
    """
    losses = []
    for logit, value in zip(logits.split(list(decisions), 1), values.split(list(decisions), 1), strict=True):
        best = value.argmax(1, keepdim=True)
        losses.append((_gaps(value) * F.softplus(logit - logit.gather(1, best))).sum(1))
    return torch.stack(losses).sum(0)


def _gaps(value: Tensor) -> Tensor:
    """Return how much each option falls short of the best; 0 where that is unknown."""
    return torch.where(value.isfinite(), value.amax(1, keepdim=True) - value, 0.0)


def fit(
    options: ImitateOptions,
    gate: Gate,
    lessons: list[Lesson],
    generator: torch.Generator,
    monitor: Monitor,
    share: float,
) -> None:
    """Train the gate on all that was noted, at most until such a share of the time limit is over."""
    observations, values = (torch.cat([getattr(one, key) for one in lessons]) for key in ("observations", "values"))
    gaps = sum(_gaps(value).sum(1) for value in values.split(list(gate.decisions), 1))
    assert isinstance(gaps, Tensor)
    telling = gaps.nonzero()[:, 0]
    if not len(telling):  # all ways are as good
        return
    scale = gaps[telling].mean()
    optimizer = torch.optim.Adam(gate.parameters(), options.learning_rate)
    steps = options.epochs * math.ceil(len(telling) / options.batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(options.epochs):
        total = 0.0
        for picked in torch.randperm(len(telling), generator=generator).split(options.batch_size):
            if monitor.minutes and monitor.seconds > 60 * monitor.minutes * share:
                return
            rows = telling[picked.to(telling.device)]
            loss = regret(gate(observations[rows])[0], values[rows], gate.decisions).mean() / scale
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        monitor.advance(0, imitation_loss=total / len(telling))
