"""Policies without learning per input: what any learned policy must beat at equal compute."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod

import torch
from torch import Tensor
from tqdm import tqdm

from ..data import Part
from ..envs.choice import Soft
from ..envs.outcomes import Path, outcomes
from ..envs.rollout import Run, relax, rollout
from ..envs.task import Task
from ..names import unknown
from .budget import lowest
from .policy import Decider, RandomPolicy, StaticPolicy, random_weights

EXHAUSTIVE = 10
"""Up to so many binary pieces all subsets are tried; of other decisions up to as many paths."""


RULE = "fixed-"
"""What a task's rule is called as a method: `fixed-uniform`."""


SEARCHED = 24
"""Of more pieces no subsets are searched for where the task has fixed rules: the ways of those take their place."""

DRAWN = 512
"""Random ways whose mean cost tells what a rate costs, where that is no sum over decisions."""


def rule_policy(task: Task, name: str, compute: float) -> StaticPolicy:
    """Return the dearest way of one of the task's fixed rules that stays within a share of the full network's MACs.

    Raises:
        ValueError: If the task has no such rule, or its cheapest way costs more.
    """
    costs = rule_costs(task, name)
    if (policy := dearest(task, costs, compute)) is None:
        raise ValueError(f"compute: expected at least {costs[0][1]:.3f}, the cheapest way of {name}, got {compute}.")
    return policy


def rule_costs(task: Task, name: str) -> list[tuple[Path, float]]:
    """Return the ways of one of the task's fixed rules, from the cheapest on, each with its compute (`way_compute`).

    Raises:
        ValueError: If the task has no such rule.
    """
    known = {f"{RULE}{rule}": ways for rule, ways in task.rules.items()}
    if name not in known:
        raise ValueError(unknown(f"rule of {task.name}", name, known))
    return [(way, way_compute(task, way)) for way in known[name]]


def dearest(task: Task, costs: Sequence[tuple[Path, float]], compute: float) -> StaticPolicy | None:
    """Return the last way of `rule_costs` that stays within a share of the full network's MACs; None if none does."""
    within = [way for way, cost in costs if cost <= compute]
    return StaticPolicy(within[-1], len(task.decisions)) if within else None


@torch.inference_mode()
def way_compute(task: Task, way: Path) -> float:
    """Return what a fixed way costs an input of no content, as a share of the full network's MACs."""
    policy, inputs = StaticPolicy(way, len(task.decisions)), task.prepare(task.blank())
    run = rollout(task, inputs, Decider(task, policy, torch.zeros(1, device=inputs.device)))
    return float(run.macs[0]) / task.full_macs


def full_accuracy(task: Task, part: Part, *, batch_size: int = 512) -> float:
    """Return the accuracy of the untouched network, outside any task."""
    right = 0
    with torch.inference_mode():
        for images, labels, _ in part.batches(batch_size):
            right += int((task.untouched(images).argmax(1).cpu() == labels).sum())
    return right / len(part)


def random_rate(task: Task, compute: float) -> float:
    """Return the rate at which a random policy spends a given share of the full network's MACs.

    Raises:
        ValueError: If even leaving everything out costs more.
    """
    check_budget(task, compute)
    task = task.underlying  # costs are the same, and mixtures tell what chance would cost
    least, most = (macs / task.full_macs for macs in (task.least_macs, task.most_macs))
    if not task.adds_up:
        return 1 - lowest(partial(_drawn, task), compute, 0.0, 1.0)
    if not task.has_exits and set(task.decisions) == {2}:  # every piece is decided about: cost is linear in the rate
        return min(1.0, (compute - least) / (most - least))
    start = task.begin(task.prepare(task.blank()))

    def spent(out: float) -> float:
        """Return the expected compute at a rate of 1 - `out`."""
        shares = [random_weights(1 - out, options, alike=task.alike) for options in task.decisions]
        weights = [torch.tensor([one], device=task.device) for one in shares]
        return float(relax(task, start, lambda _: Soft(weights)).macs) / task.full_macs

    with torch.inference_mode():
        return 1 - lowest(spent, compute, 0.0, 1.0, steps=20)


@torch.inference_mode()
def _drawn(task: Task, out: float) -> float:
    """Return the mean compute of random ways at a rate of 1 - `out`, as a share; the same coins for every rate."""
    policy = RandomPolicy(1 - out, task.decisions, alike=task.alike)
    inputs = task.prepare(task.blank()).expand(DRAWN, -1, -1, -1)
    run = rollout(task, inputs, Decider(task, policy, torch.zeros(DRAWN, device=inputs.device)))
    return float(run.macs.mean()) / task.full_macs


def random_policy(task: Task, compute: float, *, seed: int = 0) -> RandomPolicy:
    """Return the random policy of a given compute."""
    rate, coordinates = random_rate(task, compute), task.coordinates
    return RandomPolicy(rate, task.decisions, alike=task.alike, coordinates=coordinates, seed=seed)


def best_static(task: Task, part: Part, compute: float, *, images: int = 1000) -> StaticPolicy:
    """Return the fixed set of pieces with the best accuracy at no more than the given compute.

    All subsets are tried where there are at most `EXHAUSTIVE` pieces; otherwise pieces are removed one at a time, each
    time the one whose loss hurts least, and then swapped while that helps.

    Args:
        task: With decisions of two options, with exits, with options that are alike, or with few paths.
        part: Where accuracy is measured: never the test part.
        compute: Share of the full network's MACs.
        images: At most so many are looked at.

    Raises:
        ValueError: If there are many paths of more than two options, or the budget is below the cheapest way.
    """
    part = part.subset(images)
    check_budget(task, compute)
    points = _known_points(task, part)
    keep = _best_of(points, compute) if points else _Search(task, part, compute).greedy()
    return StaticPolicy(keep, len(task.decisions))


@dataclass(frozen=True)
class StaticPoint:
    """A fixed subset: what it costs as a share of the full MACs, and its accuracy where it was chosen."""

    path: Path
    compute: float
    accuracy: float


def static_frontier(task: Task, part: Part, *, images: int = 1000) -> list[StaticPoint]:
    """Return the fixed subsets on the convex frontier of accuracy over compute, from the cheapest to the most accurate.

    A mixture of two neighbours, drawn by coin for each input, is what a static network reaches at a compute between
    theirs. All subsets are looked at where there are at most `EXHAUSTIVE` pieces; otherwise those that removing the
    least missed piece, again and again, passes by. Of decisions with more options every path is one.

    Args:
        task: With decisions of two options, with exits, with options that are alike, or with few paths.
        part: Where accuracy is measured: never the test part.
        images: At most so many are looked at.

    Raises:
        ValueError: If there are many paths of more than two options.
    """
    part = part.subset(images)
    if points := _known_points(task, part):
        return _hull(points)
    keep, seen = (1,) * len(task.pieces), []
    while any(keep):
        tried = _points(task, part, _removals(keep) if seen else [keep, *_removals(keep)])
        seen += tried
        keep = max((p for p in tried if sum(p.path) < sum(keep)), key=lambda p: (p.accuracy, -p.compute)).path
    return _hull(seen)


def _known_points(task: Task, part: Part) -> list[StaticPoint]:
    """Return what fixed paths come to, where they need not be searched for by leaving out."""
    if task.paths is None and (task.alike or task.has_exits):
        return _growing(task, part)
    if len(task.pieces) > SEARCHED and task.rules:
        return _points(task, part, sorted({way for ways in task.rules.values() for way in ways}))
    paths = _all_paths(task)
    return _points(task, part, paths) if paths else []


def _growing(task: Task, part: Part) -> list[StaticPoint]:
    """Return the beginnings of the task's own way, and of one that each time takes the option that helps most."""
    none = (0,) * len(task.pieces)
    points = _points(task, part, [(*task.onward[:count], *none[count:]) for count in range(len(none) + 1)])
    taken = none
    for index in range(len(none)):
        tried = _points(task, part, [_with(taken, index, option) for option in range(1, task.decisions[0])])
        taken = max(tried, key=lambda p: (p.accuracy, -p.compute)).path
        points += tried
    return points


def _points(task: Task, part: Part, paths: list[Path]) -> list[StaticPoint]:
    """Return what fixed paths come to, in batches that leave room for wide tables."""
    right, macs = torch.zeros(len(paths), dtype=torch.double), torch.empty(0)
    for images, labels, _ in part.batches(250):
        table = outcomes(task, images, labels, paths)
        right, macs = right + table.correct.double().sum(0).cpu(), table.macs
    compute = (macs / task.full_macs).tolist()
    return [StaticPoint(*of) for of in zip(paths, compute, (right / len(part)).tolist(), strict=True)]


def _hull(points: list[StaticPoint]) -> list[StaticPoint]:
    """Return the points on the upper convex hull, up to the most accurate, by rising compute."""
    hull: list[StaticPoint] = []
    for point in sorted(points, key=lambda p: (p.compute, -p.accuracy)):
        if hull and point.accuracy <= hull[-1].accuracy:
            continue
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: StaticPoint, b: StaticPoint) -> float:
    return (b.accuracy - a.accuracy) / (b.compute - a.compute)


def _all_paths(task: Task) -> list[Path]:
    """Return every path where they are few, none where subsets of binary pieces are to be searched for."""
    if task.paths is not None:
        return task.paths
    options = list(task.decisions) * task.horizon
    if prod(options) <= 2**EXHAUSTIVE:
        return list(product(*map(range, options)))
    if set(options) != {2}:
        raise ValueError(
            f"static: expected decisions of two options, or at most {2**EXHAUSTIVE:,} paths, got {prod(options):,} "
            f"paths of decisions with options {task.decisions}. Make the task smaller."
        )
    return []


def check_budget(task: Task, compute: float) -> None:
    """Raise a ValueError if a share of the full network's MACs cannot be reached."""
    least, most = (macs / task.full_macs for macs in (task.least_macs, task.most_macs))
    if not least <= compute <= most:
        raise ValueError(
            f"compute: expected between {least:.3f} (everything left out) and {most:.4g}, got {compute}. "
            "Choose one in between."
        )


def _best_of(points: list[StaticPoint], compute: float) -> Path:
    """Return the best of the paths that fit; of equals the cheapest."""
    return max((p for p in points if p.compute <= compute), key=lambda p: (p.accuracy, -p.compute)).path


class _Search:
    """Accuracy of fixed subsets, each measured once."""

    def __init__(self, task: Task, part: Part, compute: float):
        self.task, self.limit = task, compute * task.full_macs
        self.inputs, self.labels = task.prepare(part.images), part.labels.to(task.device)
        self.known: dict[tuple[int, ...], tuple[float, float]] = {}
        self.progress = tqdm(desc="static subsets", unit="subset", leave=False)

    @torch.inference_mode()
    def score(self, keep: tuple[int, ...]) -> tuple[float, float]:
        """Return accuracy and MACs of a subset."""
        if keep not in self.known:
            policy = StaticPolicy(keep, len(self.task.decisions))
            right, macs = 0, 0.0
            for inputs, labels in zip(self.inputs.split(512), self.labels.split(512), strict=True):
                run = self._run(policy, inputs)
                right += int((run.logits.argmax(1) == labels).sum())
                macs = float(run.macs[0])
            self.known[keep] = (right / len(self.labels), macs)
            self.progress.update()
        return self.known[keep]

    def fits(self, keep: tuple[int, ...]) -> bool:
        return self.cost(keep) <= self.limit

    @torch.inference_mode()
    def cost(self, keep: tuple[int, ...]) -> float:
        return float(self._run(StaticPolicy(keep, len(self.task.decisions)), self.inputs[:1]).macs[0])

    def _run(self, policy: StaticPolicy, inputs: Tensor) -> Run:
        return rollout(self.task, inputs, Decider(self.task, policy, torch.zeros(len(inputs), device=inputs.device)))

    def greedy(self) -> tuple[int, ...]:
        """Return the subset that backward elimination, then swapping, finds."""
        keep = (1,) * len(self.task.pieces)
        while not self.fits(keep):
            keep = max(_removals(keep), key=lambda one: self.score(one)[0])
        while better := [s for s in _swaps(keep) if self.fits(s) and self.score(s)[0] > self.score(keep)[0]]:
            keep = max(better, key=lambda one: self.score(one)[0])
        return keep


def _removals(keep: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [_with(keep, i, 0) for i, bit in enumerate(keep) if bit]


def _swaps(keep: tuple[int, ...]) -> list[tuple[int, ...]]:
    gone = [i for i, bit in enumerate(keep) if not bit]
    return [_with(removed, i, 1) for removed in _removals(keep) for i in gone]


def _with(keep: tuple[int, ...], index: int, bit: int) -> tuple[int, ...]:
    return (*keep[:index], bit, *keep[index + 1 :])
