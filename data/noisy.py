"""Digits under noise, mostly weak and sometimes strong: embedded data with easy and hard images."""

import torch
from torch import Tensor

from .digits import digits
from .images import Part
from .registry import register_data
from .splits import Source, assemble

COPIES = 8
"""Images made of each digit."""

STRONGEST = 0.8
"""Largest standard deviation of the noise, as a share of the full range; half of the images have less than 0.05."""


@register_data("noisy-digits", description="14,376 digits under weak to strong noise, 8x8 grey, embedded")
def noisy_digits() -> Source:
    """Return scikit-learn's digits, each eight times under Gaussian noise.

    Its standard deviation is 0.8 u⁴ of the full range, with u drawn evenly for each image. The digits are split first,
    so that no part holds a digit of another.
    """
    split = assemble(digits(), policy_from="held-out", image_size=None)
    parts = {name: _noisy(split.part(name), seed) for seed, name in enumerate(("train", "policy", "val", "test"))}
    return Source(name="noisy-digits", parts=parts, class_names=split.class_names, flip=False)


def _noisy(part: Part, seed: int) -> Part:
    generator = torch.Generator().manual_seed(seed)
    images, labels = part.images.repeat(COPIES, 1, 1, 1), part.labels.repeat(COPIES)
    strength = STRONGEST * torch.rand(len(images), 1, 1, 1, generator=generator) ** 4
    return Part(_levels(images + 255 * strength * torch.randn(images.shape, generator=generator)), labels)


def _levels(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
