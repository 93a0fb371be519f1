"""Digits under noise, mostly weak and sometimes strong: embedded data with easy and hard images."""

from dataclasses import replace

import torch
from torch import Tensor

from .digits import digits
from .images import PART_NAMES, Part
from .registry import register_data
from .splits import Shares, Source, assemble

COPIES = {"train": 8, "policy": 64, "val": 8, "test": 8}
"""Images made of each digit. Few digits are a policy's to learn from; what it must know is the noise."""

SHARES = Shares(test=0.25, val=0.1, policy=0.35)
"""How the digits are split."""

STRONGEST = 0.8
"""Largest standard deviation of the noise, as a share of the full range; half of the images have less than 0.05."""


@register_data("noisy-digits", description="1,797 digits under weak to strong noise, 8x8 grey, embedded")
def noisy_digits() -> Source:
    """Return scikit-learn's digits under Gaussian noise, each eight times, those of the policy's part 64 times.

    Its standard deviation is 0.8 u⁴ of the full range, with u drawn evenly for each image. The digits are split first,
    so that no part holds a digit of another.
    """
    split = assemble(replace(digits(), shares=SHARES), policy_from="held-out", image_size=None)
    parts = {name: _noisy(split.part(name), COPIES[name], seed) for seed, name in enumerate(PART_NAMES)}
    return Source(name="noisy-digits", parts=parts, class_names=split.class_names, flip=False)


def _noisy(part: Part, copies: int, seed: int) -> Part:
    generator = torch.Generator().manual_seed(seed)
    images, labels = part.images.repeat(copies, 1, 1, 1), part.labels.repeat(copies)
    strength = STRONGEST * torch.rand(len(images), 1, 1, 1, generator=generator) ** 4
    return Part(_levels(images + 255 * strength * torch.randn(images.shape, generator=generator)), labels)


def _levels(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
