"""What is measured while serving: how long calls take, which execution is fastest, what a price costs in time."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from threading import Lock

import numpy as np


@dataclass(frozen=True)
class Latency:
    """One line of a latency table.

    Attributes:
        price: Of compute.
        p50_ms: Median time of one image, in milliseconds.
        p95_ms: 95th percentile.
        compute: Mean MACs as a share of the full network's.
    """

    price: float
    p50_ms: float
    p95_ms: float
    compute: float


def price_within(table: Sequence[Latency], budget_ms: float) -> float:
    """Return the lowest price whose median time keeps to a budget.

    Raises:
        ValueError: If there is no table, or no price is fast enough.
    """
    if not table:
        raise ValueError("budget_ms: expected a latency table, got none. Call runtime.calibrate(images) first.")
    fitting = [line.price for line in table if line.p50_ms <= budget_ms]
    if not fitting:
        least = min(line.p50_ms for line in table)
        raise ValueError(
            f"budget_ms: expected at least {least:.3g}, the fastest that was calibrated, got {budget_ms:g}. "
            "Allow more time, or calibrate with higher prices."
        )
    return min(fitting)


class Fastest:
    """Chooses among ways of execution by what they took before, for each power of two of rows.

    Args:
        ways: Their names.
        trials: How often each is tried before the choice is made.
    """

    def __init__(self, ways: Sequence[str], trials: int = 2):
        self.ways, self.trials = tuple(ways), trials
        self.seconds: dict[int, dict[str, list[float]]] = {}
        self.lock = Lock()

    def pick(self, rows: int) -> str:
        """Return the way to take now: one still to be tried, else the one that was fastest for each row."""
        with self.lock:
            known = self._known(rows)
            way = min(self.ways, key=lambda one: len(known[one]))
            return way if len(known[way]) < self.trials else min(self.ways, key=lambda one: min(known[one]))

    def note(self, rows: int, way: str, seconds: float) -> None:
        """Note how long a call took."""
        with self.lock:
            found = self._known(rows)[way]
            if len(found) < self.trials:
                found.append(seconds / rows)

    def table(self) -> dict[int, dict[str, float]]:
        """Return the milliseconds of a row by rows (up to the next power of two) and way."""
        with self.lock:
            return {
                2**bucket: {way: 1e3 * min(found) for way, found in known.items() if found}
                for bucket, known in sorted(self.seconds.items())
            }

    def _known(self, rows: int) -> dict[str, list[float]]:
        bucket = (rows - 1).bit_length()
        return self.seconds.setdefault(bucket, {way: [] for way in self.ways})


class Statistics:
    """How long the last calls took, and what they executed."""

    def __init__(self, keep: int = 1000):
        self.recent: deque[tuple[float, int, float]] = deque(maxlen=keep)
        self.calls, self.images = 0, 0
        self.lock = Lock()

    def note(self, seconds: float, rows: int, compute: float) -> None:
        """Note a call: its time, its images, and their mean compute."""
        with self.lock:
            self.calls, self.images = self.calls + 1, self.images + rows
            self.recent.append((seconds, rows, compute))

    def summary(self) -> dict[str, float]:
        """Return calls and images so far, and of the last calls p50 and p95 (ms), images a second, and compute."""
        with self.lock:
            calls, images, recent = self.calls, self.images, list(self.recent)
        if not recent:
            return {"calls": 0, "images": 0}
        seconds, rows = [one[0] for one in recent], sum(one[1] for one in recent)
        return {
            "calls": calls,
            "images": images,
            "p50_ms": 1e3 * median(seconds),
            "p95_ms": 1e3 * float(np.percentile(seconds, 95)),
            "images_per_second": rows / sum(seconds),
            "compute": sum(one[1] * one[2] for one in recent) / rows,
        }
