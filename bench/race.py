"""Ways of doing the same work, timed in turn, so that whatever else a machine does hits all of them alike."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

Runner = Callable[[], int]
"""Does a piece of work and returns how many units it did."""


@dataclass(frozen=True)
class Spread:
    """Several measurements of one figure.

    Attributes:
        median: Of all.
        low: First quartile.
        high: Third quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of one or more values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high)


@dataclass(frozen=True)
class Race:
    """What runners did, each once in every round.

    Attributes:
        rates: Of each runner, units per second in each round.
    """

    rates: Mapping[str, Sequence[float]]

    def rate(self, name: str) -> Spread:
        """Return a runner's units per second."""
        return Spread.of(self.rates[name])

    def ratio(self, name: str, other: str) -> Spread:
        """Return how many times as fast as another a runner was, round by round."""
        pairs = zip(self.rates[name], self.rates[other], strict=True)
        return Spread.of([mine / theirs for mine, theirs in pairs])

    def as_json(self, against: str) -> dict[str, Any]:
        """Return all figures, and the ratio of one runner to each of the others."""
        return {
            "per_second": {name: asdict(self.rate(name)) for name in self.rates},
            "ratio_of": against,
            "ratio": {name: asdict(self.ratio(against, name)) for name in self.rates if name != against},
            "rounds": {name: list(rates) for name, rates in self.rates.items()},
        }


def race(runners: Mapping[str, Runner], rounds: int, told: Callable[[], object] = lambda: None) -> Race:
    """Let each runner warm up once, then all of them run in turn, so many rounds.

    Args:
        runners: By name.
        rounds: At least 1.
        told: Called after each run.
    """
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        runner()
        told()
    for _ in range(rounds):
        for name, runner in runners.items():
            started = time.perf_counter()
            units = runner()
            rates[name].append(units / (time.perf_counter() - started))
            told()
    return Race(rates)


def machine() -> dict[str, Any]:
    """Return what a figure of speed was measured on."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
