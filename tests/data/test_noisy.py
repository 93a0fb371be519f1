"""Noisy digits: versions of the digits, mostly near the original, no digit in two parts."""

import torch

from skipgym.data import load
from skipgym.data.noisy import COPIES


def test_every_part_has_versions_of_digits_of_its_own():
    digits, noisy = load("digits"), load("noisy-digits")
    total = sum(len(digits.part(name)) for name in COPIES)
    counts = {name: len(noisy.part(name)) // copies for name, copies in COPIES.items()}
    assert sum(counts.values()) == total
    assert counts["policy"] > counts["val"]
    for name, copies in COPIES.items():
        labels = noisy.part(name).labels
        assert torch.equal(labels, labels[: counts[name]].repeat(copies))


def test_half_of_the_images_are_nearly_clean_and_some_are_not():
    images = load("noisy-digits").test.images.float()
    versions = images.view(COPIES["test"], -1, 64)
    noise = ((versions - versions.median(0).values) / 255).square().mean(2).sqrt()
    assert noise.median() < 0.08  # the median of 0.8 u⁴ is 0.05, and clipping takes some
    assert noise.quantile(0.95) > 0.25


def test_noise_is_the_same_each_time():
    assert load("noisy-digits").fingerprint == load("noisy-digits").fingerprint
