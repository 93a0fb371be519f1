"""Bounds: what choosing paths could come to at best, by somebody who has seen the outcomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ..data import Part
from ..envs.outcomes import Path, candidate_paths, looking_paths, outcomes
from ..envs.task import Task
from .baselines import check_budget

Kind = Literal["label", "agree"]

_MEANING: dict[Kind, str] = {
    "label": "It looked up the labels: no policy that chooses among these {paths} paths for these images does better "
    "at this compute. With many paths some path is right by luck, so a policy that sees only the image need not come "
    "near.",
    "agree": "It looked up, not the labels, but which of {paths} paths answers as the full network does, and took the "
    "cheapest of them. No policy agrees with the full network more often at this compute; as accuracy it is not a "
    "bound, since a path can be right where the full network is wrong, and some path agrees by luck.",
}
_SEARCHED = " Not all paths were looked at: this is a lower bound of that oracle, and proves no limit to any policy."


@dataclass(frozen=True, kw_only=True, eq=False)
class Bound:
    """The best choice of a path for each of N images, by an oracle; its own cost is nothing.

    Attributes:
        kind: What is maximised: `label`, right answers; `agree`, answers that are the full network's.
        target: Compute that the mean must not exceed, as a share of the full network's MACs.
        accuracy: Share of right answers, for both kinds.
        compute: Mean cost of an image, as a share of the full network's MACs.
        correct: Whether each image was answered right. Shape (N,).
        macs: Cost of each image. Shape (N,).
        actions: The path taken for each image. Shape (N, pieces).
        exact: Whether all of the task's paths were looked at.
        paths: How many were.
        spent: MACs that looking took, for all bounds of one call together.
    """

    kind: Kind
    target: float
    accuracy: float
    compute: float
    correct: Tensor
    macs: Tensor
    actions: Tensor
    exact: bool
    paths: int
    spent: float

    @property
    def meaning(self) -> str:
        """What this bound says, and what it does not."""
        return _MEANING[self.kind].format(paths=f"{self.paths:,}") + ("" if self.exact else _SEARCHED)


def bounds(
    task: Task, part: Part, targets: Sequence[float], *, limit: int = 4096, images: int = 1000, quiet: bool = True
) -> list[Bound]:
    """Return both bounds, `label` and `agree`, for each target of compute.

    Each image gets the cheapest path; then, by rising extra cost and while the mean stays within the target, images
    get the cheapest path that hits: that answers right, or agrees. Every such step gains exactly one hit, so no other
    choice of paths has more hits within the target.

    Args:
        task: One in which all rows stay together while they choose alike.
        part: Where outcomes are looked up.
        targets: Compute, as shares of the full network's MACs.
        limit: Up to so many paths all are followed; of more, for decisions of two options, those of `candidate_paths`,
            and where option 0 ends all those that end soonest.
        images: At most so many are looked at.
        quiet: Whether to draw no progress bar.

    Raises:
        ValueError: If a target cannot be reached, or there are too many paths of other than two options.
    """
    for target in targets:
        check_budget(task, target)
    paths, exact = paths_to_follow(task, limit)
    look = _look(task, part.subset(images), paths, quiet)
    return [look.bound(task, kind, target, exact) for target in targets for kind in ("label", "agree")]


def paths_to_follow(task: Task, limit: int) -> tuple[list[Path], bool]:
    """Return all of a task's paths, or those worth trying, and whether it is all of them.

    Raises:
        ValueError: If there are more than `limit`, of decisions that have not two options; or their places are numbers.
    """
    if task.coordinates:
        raise ValueError(
            f"paths: expected decisions among options, which can all be followed, got {task.name} whose places are "
            "numbers. Take places of a grid, --task-options places grid, or a learner that draws or descends: ppo, "
            "reinforce, gumbel."
        )
    if task.paths is not None and len(task.paths) <= limit:
        return task.paths, True
    pieces = list(task.decisions) * task.horizon
    count = prod(pieces)
    if count <= limit:
        return list(product(*map(range, pieces))), True
    if task.alike or task.has_exits:
        return looking_paths(task.decisions[0] - 1, task.horizon, limit)
    if set(pieces) != {2}:
        raise ValueError(
            f"paths: expected at most {limit:,} or decisions of two options, got {count:,} paths of {task.horizon} "
            f"decisions with options {task.decisions}. Raise the limit, or make the task smaller."
        )
    return candidate_paths(len(pieces), limit), False


def cheapest(hit: Tensor, macs: Tensor) -> Tensor:
    """Return the number of each row's cheapest path that hits; -1 where none does.

    Args:
        hit: Shape (N, P), booleans.
        macs: Shape (P,).
    """
    order = macs.argsort(stable=True)
    first = order[hit[:, order].int().argmax(1)]  # argmax is the first of equals
    return torch.where(hit.any(1), first, -1)


def upgraded(extra: Tensor, budget: float) -> Tensor:
    """Return who gets the upgrade, cheapest first, so that together they cost no more than the budget.

    Args:
        extra: What each upgrade costs, at least 0; infinite where there is none. Shape (N,).
        budget: For all together.
    """
    order = extra.argsort(stable=True)
    chosen = torch.zeros_like(extra, dtype=torch.bool)
    chosen[order] = extra[order].cumsum(0) <= budget
    return chosen


@dataclass(frozen=True, eq=False)
class _Look:
    """What the oracle remembers of N images.

    Attributes:
        paths: All that were followed. Shape (P, pieces).
        macs: Cost of each. Shape (P,).
        hits: For each kind, each image's cheapest path that hits, or -1. Shape (N,).
        right: For each kind, whether that path answers right. Shape (N,).
        least: Whether the cheapest path of all answers right. Shape (N,).
        spent: MACs.
    """

    paths: Tensor
    macs: Tensor
    hits: dict[Kind, Tensor]
    right: dict[Kind, Tensor]
    least: Tensor
    spent: float

    def bound(self, task: Task, kind: Kind, target: float, exact: bool) -> Bound:
        """Return the best choice within a target."""
        hits, least = self.hits[kind], int(self.macs.argmin())
        extra = torch.where(hits >= 0, self.macs[hits] - self.macs[least], float("inf"))
        chosen = upgraded(extra, max(0.0, len(hits) * (target * task.full_macs - float(self.macs[least]))))
        macs = self.macs[path := torch.where(chosen, hits, least)]
        correct = torch.where(chosen, self.right[kind], self.least)
        return Bound(
            kind=kind,
            target=target,
            accuracy=float(correct.double().mean()),
            compute=float(macs.mean()) / task.full_macs,
            correct=correct,
            macs=macs,
            actions=self.paths[path],
            exact=exact,
            paths=len(self.paths),
            spent=self.spent,
        )


def _look(task: Task, part: Part, paths: list[Path], quiet: bool) -> _Look:
    """Follow all paths, and keep of each batch's table what the bounds need."""
    rows: list[tuple[Tensor, ...]] = []
    macs, spent = torch.empty(0), 0.0
    for images, labels, _ in tqdm(part.batches(128), desc="oracle", unit="batch", disable=quiet, leave=False):
        found = outcomes(task, images, labels, paths)
        agrees = found.answers == full_answers(task, images).unsqueeze(1)
        macs, spent = found.macs, spent + found.spent + len(images) * task.full_macs
        hits = torch.stack([cheapest(found.correct, macs), cheapest(agrees, macs)], 1)
        right = found.correct.gather(1, hits.clamp(min=0))
        rows.append((*hits.unbind(1), *right.unbind(1), found.correct[:, macs.argmin()]))
    label, agree, right_label, right_agree, least = (torch.cat(column).cpu() for column in zip(*rows, strict=True))
    return _Look(
        torch.tensor(paths),
        macs.cpu(),
        hits={"label": label, "agree": agree},
        right={"label": right_label, "agree": right_agree},
        least=least,
        spent=spent,
    )


@torch.inference_mode()
def full_answers(task: Task, images: Tensor) -> Tensor:
    """Return the classes that the untouched network answers. Shape (N,)."""
    return task.untouched(images).argmax(1)
