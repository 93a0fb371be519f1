"""Handwritten digits that come with scikit-learn: data without a network."""

import torch

from .images import Part
from .registry import register_data
from .splits import Shares, Source


@register_data("digits", description="1,797 handwritten digits, 8x8 grey, embedded (scikit-learn)")
def digits() -> Source:
    """Return scikit-learn's digits at their native 8x8, levels 0..16 spread over 0..255."""
    from sklearn.datasets import load_digits  # here, so that importing skipgym stays fast

    levels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(levels).reshape(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)
    return Source(
        name="digits",
        parts={"train": Part(images, torch.from_numpy(labels).long())},
        class_names=tuple("0123456789"),
        flip=False,
        shares=Shares(test=0.25, val=0.1, policy=0.2),
    )
