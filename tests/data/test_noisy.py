"""Noisy digits: the digits' own split, eight versions of each, mostly near the original."""

import torch

from skipgym.data import load


def test_every_part_is_made_of_that_part_of_the_digits():
    clean, noisy = load("digits"), load("noisy-digits")
    for name in ("train", "policy", "val", "test"):
        assert len(noisy.part(name)) == 8 * len(clean.part(name))
        assert torch.equal(noisy.part(name).labels, clean.part(name).labels.repeat(8))


def test_half_of_the_images_are_nearly_clean_and_some_are_not():
    clean, noisy = load("digits").test.images.float(), load("noisy-digits").test.images.float()
    noise = ((noisy - clean.repeat(8, 1, 1, 1)) / 255).square().mean((1, 2, 3)).sqrt()
    assert noise.median() < 0.05  # the median of 0.8 u⁴, and clipping takes some
    assert noise.quantile(0.95) > 0.25


def test_noise_is_the_same_each_time():
    assert load("noisy-digits").fingerprint == load("noisy-digits").fingerprint
