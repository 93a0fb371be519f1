"""Measure a controller: accuracy, compute, and what was executed."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Part
from ..envs.tally import count_options
from ..envs.task import Task
from .controller import Controller
from .policy import full_policy


@dataclass(frozen=True)
class Measured:
    """Figures of one controller on one part of the data.

    Attributes:
        accuracy: Share of right answers.
        macs: Mean cost of an image, policy included.
        policy_macs: The policy's share of it.
        compute: `macs` as a share of the full network's.
        execution: How often each of the task's pieces was executed, of those that were decided.
        unique_paths: Number of different ways through the network.
        correct: Of each image. Shape (N,), bool.
        actions: What was decided, -1 where nothing was. Shape (N, pieces).
        answers: Predicted class. Shape (N,).
        compute_of: Compute of each image. Shape (N,).
        count: Number of images.
    """

    accuracy: float
    macs: float
    policy_macs: float
    compute: float
    execution: list[float]
    unique_paths: int
    correct: Tensor
    actions: Tensor
    answers: Tensor
    compute_of: Tensor
    count: int

    @property
    def error(self) -> float:
        """Standard error of the accuracy."""
        return (self.accuracy * (1 - self.accuracy) / self.count) ** 0.5


def measure(controller: Controller, part: Part, *, price: float | None = None, batch_size: int = 512) -> Measured:
    """Run a controller over images."""
    decisions = [controller(images, price=price, batch_size=batch_size) for images, _, _ in part.batches(batch_size)]
    actions = torch.cat([d.actions for d in decisions])
    answers = torch.cat([d.labels for d in decisions]).cpu()
    correct = answers == part.labels
    decided = (actions >= 0).sum(0).clamp(min=1)
    macs = torch.cat([d.macs for d in decisions])
    return Measured(
        accuracy=int(correct.sum()) / len(part),
        macs=float(macs.mean()),
        policy_macs=float(torch.cat([d.policy_macs for d in decisions]).float().mean()),
        compute=float(macs.mean()) / controller.task.full_macs,
        execution=((actions > 0).sum(0) / decided).tolist(),
        unique_paths=len(actions.unique(dim=0)),
        correct=correct,
        actions=actions.cpu(),
        answers=answers,
        compute_of=(macs / controller.task.full_macs).float().cpu(),
        count=len(part),
    )


def measure_full(task: Task, part: Part, *, batch_size: int = 512) -> Measured:
    """Measure the full network: the task with nothing left out where that is it, else the network outside the task."""
    if task.reaches_full:
        return measure(Controller(task, full_policy(task)), part, batch_size=batch_size)
    return _untouched(task, part, batch_size)


@torch.inference_mode()
def _untouched(task: Task, part: Part, batch_size: int) -> Measured:
    """Run the untouched network over images; nothing is decided."""
    answers = torch.cat([task.untouched(images).argmax(1).cpu() for images, _, _ in part.batches(batch_size)])
    correct = answers == part.labels
    return Measured(
        accuracy=int(correct.sum()) / len(part),
        macs=float(task.full_macs),
        policy_macs=0.0,
        compute=1.0,
        execution=[0.0] * len(task.pieces),
        unique_paths=1,
        correct=correct,
        actions=torch.full((len(part), len(task.pieces)), -1),
        answers=answers,
        compute_of=torch.ones(len(part)),
        count=len(part),
    )


def result_row(
    task: Task,
    measured: Measured,
    *,
    method: str,
    data: str,
    split: str,
    full_accuracy: float,
    price: float | None = None,
    seed: int = 0,
    train_backbone_macs: float = 0.0,
    train_seconds: float = 0.0,
    **more: Any,
) -> dict[str, Any]:
    """Return one row of `results.json`."""
    return {
        "task": task.name,
        "backbone": task.backbone.name,
        "data": data,
        "split": split,
        "method": method,
        "price": price,
        "seed": seed,
        "accuracy": measured.accuracy,
        "macs": measured.macs,
        "policy_macs": measured.policy_macs,
        "full_macs": task.full_macs,
        "full_accuracy": full_accuracy,
        "compute": measured.compute,
        "train_backbone_macs": train_backbone_macs,
        "train_seconds": train_seconds,
        "count": measured.count,
        "unique_paths": measured.unique_paths,
        "execution": dict(zip(task.pieces, measured.execution, strict=True)),
        "called": task.called(measured.actions),
        "chosen": dict(zip(task.pieces, option_counts(measured.actions, task), strict=True)),
        **more,
    }


def option_counts(actions: Tensor, task: Task) -> list[list[int]]:
    """Return for each piece how often each of its options was chosen.

    Args:
        actions: -1 where nothing was decided. Shape (N, pieces).
        task: Says how many options there are.
    """
    options = list(task.decisions) * task.horizon
    return [count_options(actions[:, i], count) for i, count in enumerate(options)]


def chosen_lines(row: Mapping[str, Any]) -> list[str]:
    """Return how often the branches of each fork of a row were called, as lines to print, and which never."""
    forks = row.get("called")
    if forks is None:  # as earlier results are
        forks = {piece: counts for piece, counts in row.get("chosen", {}).items() if len(counts) > 2}
    lines = []
    for piece, counts in forks.items():
        shares = ", ".join(f"{i} {count / max(1, sum(counts)):.1%}" for i, count in enumerate(counts))
        lines.append(f"{row['method']}, {piece}: option {shares}")
    return lines + never_chosen(row["method"], forks)


def never_chosen(method: str, forks: Mapping[str, Sequence[int]]) -> list[str]:
    """Return a line that names the options that a method never chose where it had the choice: dead experts, say."""
    reached = {piece: counts for piece, counts in forks.items() if sum(counts)}
    dead = {piece: [str(i) for i, count in enumerate(counts) if not count] for piece, counts in reached.items()}
    named = [f"{piece} option {' '.join(options)}" for piece, options in dead.items() if options]
    return [f"{method}, never chosen: {'; '.join(named)}"] if named else []


def write_results(path: Path, rows: Sequence[Mapping[str, Any]], **meta: Any) -> None:
    """Write `results.json` in one step: the rows, and with what they were made."""
    content = {"rows": list(rows), "meta": {**versions(), **meta}}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, path)


def versions() -> dict[str, str]:
    """Return what a figure was made with."""
    import gymnasium
    import stable_baselines3
    import torchvision

    from .. import __version__

    return {
        "skipgym": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "gymnasium": gymnasium.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": str(torch.get_num_threads()),
    }
