"""The one source of chance in how data is split."""

import numpy as np
import torch
from torch import Tensor

SEED = 0


def class_ranks(labels: Tensor) -> Tensor:
    """Return each image's place in a fixed random order of its class.

    `RandomState` is frozen by NumPy's compatibility policy, so splits agree between processes, machines and versions.

    Args:
        labels: Class of each image. Shape (N,), int64, not negative.

    Returns:
        Ranks from 0 within each class. Shape (N,), int64.
    """
    shuffled = torch.from_numpy(np.random.RandomState(SEED).permutation(len(labels)))
    grouped = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    starts = counts.cumsum(0) - counts
    ranks = torch.empty_like(labels)
    ranks[grouped] = torch.arange(len(labels)) - starts[labels[grouped]]
    return ranks
