"""Reaching a compute target: a Lagrange multiplier as the price."""

from dataclasses import dataclass


@dataclass
class Lagrange:
    """Dual ascent: the price rises while more is spent than the target, and falls while less is.

    The target itself can come down from 1 over the first part of training, so that the policy is never asked to give
    up half of the network at once: a fixed price is known to flip gates from all-on to all-off.

    Args:
        target: Share of the full network's MACs.
        price: At the start.
        rate: Change of the price for each unit of excess compute, at each update.
        anneal: Share of training over which the target comes down from 1.
    """

    target: float
    price: float = 0.0
    rate: float = 0.1
    anneal: float = 0.5

    def current_target(self, progress: float) -> float:
        """Return the target when a share `progress` of training is done."""
        if self.anneal == 0:
            return self.target
        return 1 + (self.target - 1) * min(1.0, progress / self.anneal)

    def update(self, compute: float, progress: float) -> float:
        """Return the new price, given what was spent since the last update."""
        self.price = max(0.0, self.price + self.rate * (compute - self.current_target(progress)))
        return self.price
