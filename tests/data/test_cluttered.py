"""Cluttered digits: the digit is whole and where it is said to be, and clutter comes from its own part."""

import pytest
import torch

from skipgym.data import Part, load
from skipgym.data.cluttered import COPIES, Clutter, canvas_places, canvases


@pytest.fixture(scope="module")
def data():
    return load("cluttered-digits")


@pytest.fixture
def digits() -> Part:
    return load("digits").val


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def window(images: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Cut out 8 x 8 pixels of each canvas."""
    cut = [image[0, y : y + 8, x : x + 8] for image, (y, x) in zip(images, places.tolist(), strict=True)]
    return torch.stack(cut)


def test_every_part_has_canvases_of_digits_of_its_own(data):
    counts = {name: len(data.part(name)) // copies for name, copies in COPIES.items()}
    assert sum(counts.values()) == 1797
    for name, copies in COPIES.items():
        labels = data.part(name).labels
        assert torch.equal(labels, labels[: counts[name]].repeat(copies))
    assert data.image_shape == (1, 12, 12)


def test_a_canvas_without_clutter_holds_its_digit_and_nothing_else(digits):
    made, places, pieces = canvases(digits, Clutter(size=20, share=0.0), generator())
    assert torch.equal(window(made.images, places), digits.images[:, 0])
    assert torch.equal(made.images.sum((1, 2, 3)), digits.images.sum((1, 2, 3)))
    assert pieces.tolist() == [0] * len(digits)


def test_clutter_only_adds_to_the_digit(digits):
    clutter = Clutter(size=16, share=1.0, fewest=4, most=4)
    made, places, pieces = canvases(digits, clutter, generator())
    assert bool((window(made.images, places) >= digits.images[:, 0]).all())
    assert bool((made.images.sum((1, 2, 3)) > digits.images.sum((1, 2, 3))).float().mean() > 0.9)
    assert pieces.tolist() == [4] * len(digits)


def test_share_and_number_of_pieces_are_as_asked(digits):
    many = Part(digits.images.repeat(20, 1, 1, 1), digits.labels.repeat(20))
    _, places, pieces = canvases(many, Clutter(share=0.25, fewest=2, most=5), generator())
    assert (pieces > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert set(pieces.tolist()) == {0, 2, 3, 4, 5}
    assert (places.min(), places.max()) == (0, 4)


def test_places_depend_on_the_generator_only(digits):
    first, again, other = (canvases(digits, Clutter(), generator(seed))[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_embedded_canvases_are_the_same_each_time(data):
    assert load("cluttered-digits").fingerprint == data.fingerprint


@pytest.mark.parametrize("wrong", [{"size": 7}, {"piece": 9}, {"share": 1.5}, {"fewest": 3, "most": 2}])
def test_clutter_that_does_not_fit_is_refused(wrong):
    with pytest.raises(ValueError, match="clutter: expected a canvas of at least 8 pixels"):
        Clutter(**wrong)


def test_places_on_the_large_canvas_are_where_the_digits_are():
    canvas, places = load("cluttered-canvas").val, canvas_places("val")
    assert canvas.images.shape[1:] == (1, 32, 32)
    assert len(places) == len(canvas)
    assert places.min() >= 0
    assert places.max() <= 24
    inside = torch.stack(
        [
            image[0, y : y + 8, x : x + 8].float().mean()
            for image, (y, x) in zip(canvas.images, places.tolist(), strict=True)
        ]
    )
    assert (inside > canvas.images.float().mean((1, 2, 3))).float().mean() > 0.99
    with pytest.raises(ValueError, match="unknown part: .*got 'tset'"):
        canvas_places("tset")
