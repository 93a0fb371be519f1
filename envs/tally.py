"""Counts over episodes."""

import torch
from torch import Tensor


def count_options(actions: Tensor, options: int) -> list[int]:
    """Return how often each of so many options was chosen; -1, where nothing was, is not counted. Shape (N,)."""
    return [int((actions == option).sum()) for option in range(options)]


class Tally:
    """What happened in the episodes since the last look: for logs, progress bars and compute targets."""

    def __init__(self, pieces: int):
        self.episodes = 0
        self.backbone_macs = 0.0
        self.sums: dict[str, float] = {"reward": 0.0, "accuracy": 0.0, "compute": 0.0}
        self.executed, self.decided = torch.zeros(pieces), torch.zeros(pieces)

    def count(self, first: int, actions: Tensor) -> None:
        """Count a cohort's actions (N,) or (N, parts) about the pieces from `first` on."""
        kept = actions.view(len(actions), -1).count_nonzero(0).cpu()
        self.executed[first : first + len(kept)] += kept
        self.decided[first : first + len(kept)] += len(actions)

    def finish(self, *, reward: Tensor, correct: Tensor, compute: Tensor, backbone_macs: Tensor) -> None:
        """Count episodes that ended. Each of shape (N,)."""
        self.episodes += len(reward)
        self.backbone_macs += float(backbone_macs.sum())
        for key, values in (("reward", reward), ("accuracy", correct), ("compute", compute)):
            self.sums[key] += float(values.sum())

    def means(self) -> dict[str, float]:
        """Return reward, accuracy and compute of an episode, on average."""
        return {key: total / max(1, self.episodes) for key, total in self.sums.items()}

    def execution(self) -> list[float]:
        """Return how often each piece was executed, of the times it was decided about."""
        return (self.executed / self.decided.clamp(min=1)).tolist()
