"""From rows to figures with intervals, and to verdicts in words."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .methods import is_learned, method
from .statistics import Interval, accuracy_interval, area_interval, input_dependence, paired_difference, verdict

Row = dict[str, Any]

TOLERANCE = 0.01
"""By which a policy may exceed its target on validation data and still count as keeping to it."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One method at one budget, over its seeds.

    Attributes:
        rows: One of each seed.
        correct: Of each seed and test image; None where it is not kept. Shape (S, N).
        actions: Likewise. Shape (S, N, pieces).
    """

    rows: list[Row]
    correct: Tensor | None = None
    actions: Tensor | None = None

    @property
    def method(self) -> str:
        return self.rows[0]["method"]

    @property
    def kept(self) -> Tensor:
        """`correct`, of a method that keeps it, as all learned ones do."""
        assert self.correct is not None
        return self.correct

    @property
    def budget(self) -> str:
        return self.rows[0]["budget"]

    @property
    def learned(self) -> bool:
        return is_learned(self.method)

    @property
    def compute(self) -> np.ndarray:
        """Of each seed. Shape (S,)."""
        return np.array([row["compute"] for row in self.rows])

    def mean(self, key: str) -> float:
        """Return the mean of a figure over the seeds."""
        return float(np.mean([row[key] for row in self.rows]))


@dataclass(frozen=True, eq=False)
class Statics:
    """The frontier of fixed subsets on the test images: compute (K,), rising, and correctness (K, N)."""

    compute: Tensor
    correct: Tensor

    def at(self, compute: float, seeds: int) -> Tensor:
        """Return the mixture of two neighbours that costs so much, drawn by coin for each image. Shape (seeds, N)."""
        x = self.compute.double()
        high = int(torch.searchsorted(x, torch.tensor(compute, dtype=torch.double)).clamp(0, len(x) - 1))
        low = max(0, high - 1)
        gap = float(x[high] - x[low])
        share = min(1.0, max(0.0, (compute - float(x[low])) / gap)) if gap > 0 else 1.0
        coins = torch.rand((seeds, self.correct.shape[1]), generator=torch.Generator().manual_seed(0))
        return torch.where(coins < share, self.correct[high], self.correct[low])


def summarise(entry: Entry, statics: Statics | None) -> Row:
    """Return a method's figures at a budget, as `results.json` and the report want them."""
    first = entry.rows[0]
    learned = entry.learned
    figures: Row = {
        "method": entry.method,
        "label": entry.method,
        "kind": "learned" if learned else "bound" if entry.method.startswith("oracle") else "baseline",
        "target": first["target"],
        "budget": entry.budget,
        "seeds": len(entry.rows),
        "accuracy": _accuracy(entry),
        "compute": _spread(entry.compute),
        "static_gain": None,
        "train_backbone_macs": entry.mean("train_backbone_macs"),
        "train_seconds": entry.mean("train_seconds"),
        "joint": any(row["joint"] for row in entry.rows),
    }
    if learned and statics is not None and entry.correct is not None:
        figures["static_gain"] = asdict(gain(entry, statics))
    if entry.actions is not None:
        dependence = [asdict(input_dependence(actions)) for actions in entry.actions]
        figures |= {key: float(np.mean([d[key] for d in dependence])) for key in dependence[0]}
    return figures


def gain(entry: Entry, statics: Statics) -> Interval:
    """Return how much more often a method is right than fixed subsets at its own compute."""
    return paired_difference(entry.kept, statics.at(float(entry.compute.mean()), len(entry.rows)))


def verdicts(entries: Sequence[Entry], statics: Statics | None) -> list[str]:
    """Return what can be said at each budget: RL against Gumbel, and the best of each against rivals without training.

    Of each kind the method that is best on validation data stands for it.
    """
    sentences = []
    for budget in dict.fromkeys(entry.budget for entry in entries if entry.learned):
        best = {kind: best_of(entries, budget, kind) for kind in ("RL", "Gumbel", "hybrid", "supervised", "own")}
        rl, relaxed = best["RL"], best["Gumbel"]
        if rl and relaxed:
            sentences.append(f"RL against Gumbel at {_said(budget)}: {_verdict(rl, relaxed)}")
        rival = next((e for e in entries if (e.method, e.budget) == ("threshold", budget)), None)
        for entry in filter(None, best.values()):
            if rival is not None:
                sentences.append(f"At {_said(budget)}: {_verdict(entry, rival)}")
            if statics is not None:
                difference, spent = gain(entry, statics), float(entry.compute.mean())
                sentence = verdict(entry.method, "the best fixed subset", difference, spent, spent)
                sentences.append(f"At {_said(budget)}: {sentence}")
    return sentences


def best_of(entries: Sequence[Entry], budget: str, kind: str) -> Entry | None:
    """Return the entry of a kind that is best on validation data at a budget.

    At a target the most accurate of those that keep to it; if none does, the one that exceeds it least. At a price the
    one with most accuracy minus price x compute.
    """
    fitting = [e for e in entries if e.learned and e.budget == budget and method(e.method).kind == kind]
    return max(fitting, key=_standing, default=None)


def _standing(entry: Entry) -> tuple[float, float]:
    """Return what `best_of` compares: minus the excess over the target, then accuracy, less what its compute costs."""
    target, price = entry.rows[0]["target"], entry.rows[0]["price"]
    accuracy, compute = entry.mean("val_accuracy"), entry.mean("val_compute")
    if target is None:
        return 0.0, accuracy - price * compute
    excess = compute - target
    return (0.0 if excess <= TOLERANCE else -excess), accuracy


def areas(entries: Sequence[Entry]) -> list[Row]:
    """Return each method's mean accuracy over the range of compute that all of them cover; none with one budget."""
    names = dict.fromkeys(e.method for e in entries if e.learned)
    methods = [[e for e in entries if e.method == name] for name in names]
    several = [of for of in methods if len(of) > 1]
    if not several:
        return []
    low = max(min(float(e.compute.max()) for e in of) for of in several)
    high = min(max(float(e.compute.min()) for e in of) for of in several)
    if low >= high:
        return []
    found = [area_interval([(e.compute, e.kept) for e in of], low, high) for of in several]
    return [
        {"method": of[0].method, **asdict(interval), "from": low, "to": high}
        for of, interval in zip(several, found, strict=True)
    ]


def _verdict(a: Entry, b: Entry) -> str:
    difference = paired_difference(a.kept, b.kept)
    return verdict(a.method, b.method, difference, float(a.compute.mean()), float(b.compute.mean()))


def _said(budget: str) -> str:
    if budget.startswith("compute"):
        return f"a budget of {float(budget.removeprefix('compute')):.0%}"
    return f"a price of {budget.removeprefix('price')}"


def _accuracy(entry: Entry) -> Row:
    if entry.correct is not None:
        return asdict(accuracy_interval(entry.correct))
    return {"mean": entry.mean("accuracy"), "low": None, "high": None}


def _spread(values: np.ndarray) -> Row:
    return {"mean": float(values.mean()), "low": float(values.min()), "high": float(values.max())}
