"""Learn from the outcome table: which path answers right, by supervised learning instead of trial.

A frozen network tells everything about itself for the asking, so nothing needs to be explored:

1. *Search*: on a few images, follow many paths (prefixes shared); follow the best ones again on more images. For each
   class keep the paths on the frontier of its accuracy over compute, and the full network.
2. *Classify*: train the policy's own small network to guess the class. The backbone is not needed for this.
3. *Record*: on fresh, augmented images, follow the kept paths, and learn to foresee which are right.

The policy then takes, for any price, the path with the best probability minus price x compute.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ..data import Augment
from ..envs.observation import Layout
from ..envs.outcomes import Path, outcomes
from ..envs.task import Task
from .learner import Learner, Setting, read_options, register_agent
from .oracle import paths_to_follow
from .path_policy import PathNet, PathPolicy

PRICES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""At which each class keeps its best path."""

SHORTLIST, RECHECK = 6, 4
"""So many paths of each class and price are followed again, on so many times more images."""


@dataclass(frozen=True, kw_only=True)
class PathTableOptions:
    """What the path-table learner can be told."""

    width: int = 32
    """Of the policy's network."""
    search_images: int = 120
    """Images on which all candidate paths are followed."""
    search_paths: int = 10_000
    """Candidate paths at most."""
    record_images: int = 40_000
    """Images at most on which the kept paths are followed."""
    record_share: float = 0.35
    """Share of the time limit, where there is one, that search and recording may take."""
    search_share: float = 0.3
    """Share of the backbone MACs, where they are limited, that each pass of the search may take."""
    batch_size: int = 128
    """Of all stages."""
    learning_rate: float = 0.2
    """Peak rate of SGD in the classification stage."""
    head_epochs: int = 12
    """Passes over the recorded outcomes."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        counts = (self.width, self.search_images, self.search_paths, self.record_images, self.batch_size)
        shares = (self.record_share, self.search_share)
        if min(counts) < 4 or not 0 < min(shares) <= max(shares) < 1 or self.learning_rate <= 0 or self.head_epochs < 1:
            raise ValueError(
                "path-table: expected counts of at least 4, record_share and search_share in (0, 1), a positive "
                f"learning_rate and head_epochs; got {self}."
            )


@register_agent("path-table", "supervised learning from the outcome table of paths; one policy for every price")
class PathTable(Learner):
    """Search, classify, record; see the module."""

    trains_probabilities = False

    def train(self, setting: Setting) -> PathPolicy:
        options = read_options(PathTableOptions(), setting.agent_options, "path-table")
        torch.manual_seed(setting.seed)
        generator = torch.Generator().manual_seed(setting.seed)
        paths = search(setting, options, generator)
        task = setting.task
        layout = Layout.of(task, priced=False)
        net = PathNet(layout, setting.data.num_classes, len(paths), width=options.width).to(task.device)
        recorded = record(setting, options, paths, generator)
        net = classify(setting, options, net, generator)
        fit_values(options, net, recorded, generator)
        policy = PathPolicy(net.eval(), paths, (recorded.macs / task.full_macs).tolist(), len(task.decisions))
        return policy

    def check(self, task: Task, options: Mapping[str, Any]) -> None:
        paths_to_follow(task, read_options(PathTableOptions(), options, "path-table").search_paths)


def search(setting: Setting, options: PathTableOptions, generator: torch.Generator) -> list[Path]:
    """Return the paths on each class's frontier, and the full one.

    The best of many on few images are partly lucky; so several of each class are looked at again on other images.
    """
    full = tuple(count - 1 for count in setting.task.decisions) * setting.task.horizon
    paths, _ = paths_to_follow(setting.task, options.search_paths)
    paths = _best(setting, options, paths, options.search_images, SHORTLIST, generator)
    paths = _best(setting, options, paths, RECHECK * options.search_images, 1, generator)
    return sorted({*paths, full})


def _best(
    setting: Setting, options: PathTableOptions, paths: list[Path], images: int, top: int, generator: torch.Generator
) -> list[Path]:
    """Return for each class and price the best paths on augmented images, as many as the budget allows."""
    if setting.monitor.macs:
        likely = len(paths) * setting.task.full_macs / 4  # half of the blocks on average, half of that shared
        images = max(16, min(images, int(options.search_share * setting.monitor.macs / likely)))
    part = setting.data.policy.subset(images)
    scores, macs = [], torch.zeros(len(paths))
    for rows in tqdm(torch.arange(len(part)).split(128), desc="search", unit="batch", disable=setting.monitor.quiet):
        varied = augmented(setting.augment, part.images[rows], generator)
        found = outcomes(setting.task, varied, part.labels[rows], paths, quiet=setting.monitor.quiet)
        setting.monitor.backbone_macs += found.spent
        scores.append(0.8 * found.correct.float() + 0.2 * found.probability)  # the probability tells equals apart
        macs = found.macs
    chosen = frontier(torch.cat(scores).cpu(), (macs / setting.task.full_macs).float().cpu(), part.labels, top=top)
    return [paths[i] for i in sorted(chosen)]


def frontier(score: Tensor, compute: Tensor, labels: Tensor, *, top: int = 1) -> set[int]:
    """Return for each class and each of `PRICES` the paths with the best mean score minus price x compute.

    Args:
        score: Of each image under each path. Shape (N, P).
        compute: Of each path, as a share of the full network's. Shape (P,).
        labels: Shape (N,).
        top: How many.
    """
    means = torch.stack([score[labels == c].mean(0) for c in labels.unique()])
    top = min(top, len(compute))
    return {int(i) for mean in means for price in PRICES for i in (mean - price * compute).topk(top).indices}


@dataclass
class Recorded:
    """Outcomes of the kept paths: observations (M, ...), labels (M,), correctness (M, P), and macs (P,)."""

    observations: Tensor
    labels: Tensor
    correct: Tensor
    macs: Tensor


def record(setting: Setting, options: PathTableOptions, paths: list[Path], generator: torch.Generator) -> Recorded:
    """Follow the kept paths on augmented images, until there are enough or time share or budget are used up."""
    data, task, monitor = setting.data.policy, setting.task, setting.monitor
    layout = Layout.of(task, priced=False)
    order = torch.randperm(len(data), generator=generator)[: options.record_images]
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    macs = torch.zeros(len(paths))
    for rows in tqdm(order.split(options.batch_size), desc="record", unit="batch", disable=monitor.quiet):
        late = monitor.minutes and monitor.seconds > 60 * monitor.minutes * options.record_share
        if kept and (late or (monitor.macs and monitor.backbone_macs > monitor.macs)):
            break
        images = augmented(setting.augment, data.images[rows], generator)
        found = outcomes(task, images, data.labels[rows], paths)
        monitor.backbone_macs += found.spent
        kept.append((first_observation(task, layout, images), data.labels[rows].to(task.device), found.correct))
        macs = found.macs
    observations, labels, correct = (torch.cat(list(column)) for column in zip(*kept, strict=True))
    return Recorded(observations, labels, correct.float(), macs)


def classify(setting: Setting, options: PathTableOptions, net: PathNet, generator: torch.Generator) -> PathNet:
    """Train the policy's network to guess the class, for `images` images or what is left of the time.

    The backbone is not asked (only for what precedes the first observation), so its MACs are no limit here. SGD with a
    linear warm-up and decay; the weights are averaged over the last part.
    """
    data, task, monitor = setting.data.policy, setting.task, setting.monitor
    layout, seen, began = Layout.of(task, priced=False), monitor.seen, monitor.seconds
    left = 60 * monitor.minutes - began if monitor.minutes else math.inf
    net.body.fit(first_observation(task, layout, data.images[:2048]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    net.train()
    while (progress := max((monitor.seen - seen) / setting.images, (monitor.seconds - began) / max(left, 1))) < 1:
        rows = torch.randint(len(data), (options.batch_size,), generator=generator)
        observations = first_observation(task, layout, augmented(setting.augment, data.images[rows], generator))
        _, logits = net.features(observations)
        loss = F.cross_entropy(logits, data.labels[rows].to(task.device))
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(progress / 0.15, (1 - progress) / 0.85 + 1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress > 0.6:
            average.update_parameters(net)
        guessed = (logits.argmax(1).cpu() == data.labels[rows]).float().mean()
        monitor.advance(len(rows), classify_loss=loss.item(), classify_accuracy=float(guessed))
    averaged = average.module
    assert isinstance(averaged, PathNet)
    return averaged.eval()


def fit_values(options: PathTableOptions, net: PathNet, recorded: Recorded, generator: torch.Generator) -> None:
    """Fill the table of classes, and train the correction on the recorded outcomes."""
    with torch.no_grad():
        for c in range(net.table.shape[1]):
            rows = recorded.correct[recorded.labels == c]
            net.table[:, c] = (rows.sum(0) + 0.5) / (len(rows) + 1)
        batches = [net.features(batch) for batch in recorded.observations.split(512)]
        features, classes = (torch.cat(list(column)) for column in zip(*batches, strict=True))
    parameters = [*net.hidden.parameters(), *net.correct.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-2)
    steps = options.head_epochs * math.ceil(len(features) / 256)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(options.head_epochs):
        for rows in torch.randperm(len(features), generator=generator).split(256):
            net.train()  # for the dropout in `values`; the body is not run
            loss = F.binary_cross_entropy_with_logits(net.values(features[rows], classes[rows]), recorded.correct[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


@torch.no_grad()
def first_observation(task: Task, layout: Layout, images: Tensor) -> Tensor:
    """Return what a policy sees before the first decision."""
    state = task.begin(task.prepare(images))
    return layout.join(task.observe(state), 0, torch.zeros(len(state), device=task.device))


def augmented(augment: Augment, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images varied at random."""
    return augment.apply(images, torch.rand((len(images), Augment.draws), generator=generator))
