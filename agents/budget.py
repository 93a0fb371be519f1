"""Reaching a compute target: a Lagrange multiplier as the price."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Lagrange:
    """The price of compute as a multiplier: it rises while more is spent than the target, and falls while less is.

    The rise is an integral of the excess over the course of training plus a part proportional to the excess now, which
    damps the swings of the integral (Stooke et al. 2020, "Responsive Safety in Reinforcement Learning by PID
    Lagrangian Methods"). Progress is the unit of time, so that short and long trainings behave alike.

    The target itself comes down from 1 over the first part of training, so that the policy is never asked to give up
    half of the network at once: a fixed price is known to flip gates from all-on to all-off.

    Args:
        target: Share of the full network's MACs.
        start: Price at the start.
        rate: Change of the price for each unit of excess compute, over a whole training.
        proportional: Price for each unit of excess compute now.
        anneal: Share of training over which the target comes down from 1.
    """

    target: float
    start: float = 0.0
    rate: float = 20.0
    proportional: float = 2.0
    anneal: float = 0.5

    def __post_init__(self) -> None:
        self.integral, self._progress = self.start, 0.0

    def current_target(self, progress: float) -> float:
        """Return the target when a share `progress` of training is done."""
        if self.anneal == 0:
            return self.target
        return 1 + (self.target - 1) * min(1.0, progress / self.anneal)

    def update(self, compute: float, progress: float) -> float:
        """Return the new price, given what was spent since the last update and how far training is."""
        excess = compute - self.current_target(progress)
        self.integral = max(0.0, self.integral + self.rate * excess * (progress - self._progress))
        self._progress = progress
        return max(0.0, self.integral + self.proportional * excess)


def lowest_price(spent: Callable[[float], float], limit: float, *, steps: int = 12) -> float:
    """Return about the lowest price, up to a thousand or so, at which no more than the limit is spent."""
    low, high = 0.0, 1.0
    while spent(high) > limit and high < 1e3:
        low, high = high, 2 * high
    return lowest(spent, limit, low, high, steps=steps)


def lowest(spent: Callable[[float], float], limit: float, low: float, high: float, *, steps: int = 12) -> float:
    """Return about the lowest value from `low` to `high` at which no more than the limit is spent."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > limit else (low, middle)
    return high
