import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.functional import rotate

from skipgym.data import Augment, load
from skipgym.data.augment import cut_out, jittered, rotated, shifted

EVERYTHING = Augment(pad=2, flip=True, rotate=30.0, brightness=0.5, contrast=0.5, cutout=3)
augments = st.builds(
    Augment,
    pad=st.integers(0, 9),
    flip=st.booleans(),
    rotate=st.floats(0, 180),
    brightness=st.floats(0, 1),
    contrast=st.floats(0, 1),
    cutout=st.integers(0, 9),
)


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_uniforms(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, Augment.draws, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(
    augment=augments,
    n=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    seed=st.integers(0, 1000),
)
def test_each_row_depends_on_itself_alone(augment, n, channels, height, width, seed):
    images, uniforms = random_images(n, channels, height, width, seed=seed), random_uniforms(n, seed)
    together = augment.apply(images, uniforms)
    alone = torch.cat([augment.apply(images[i : i + 1], uniforms[i : i + 1]) for i in range(n)])
    assert together.dtype == torch.uint8
    assert torch.equal(together, alone)


def test_rows_are_independent_at_photograph_size():
    images, uniforms = random_images(5, 3, 65, 65), random_uniforms(5)
    together = EVERYTHING.apply(images, uniforms)
    for i in range(5):
        assert torch.equal(together[i : i + 1], EVERYTHING.apply(images[i : i + 1], uniforms[i : i + 1]))


def test_inputs_are_left_as_they_are():
    images, uniforms = random_images(4, 3, 8, 8), random_uniforms(4)
    before = images.clone()
    assert not torch.equal(EVERYTHING.apply(images, uniforms), before)
    assert torch.equal(images, before)


def test_identity_is_false_and_changes_nothing():
    images = random_images(4, 3, 8, 8)
    assert not Augment()
    assert EVERYTHING
    assert torch.equal(Augment().apply(images, random_uniforms(4)), images)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(pad=1),
        Augment(flip=True),
        Augment(rotate=20),
        Augment(brightness=0.5),
        Augment(contrast=0.5),
        Augment(cutout=2),
    ],
    ids=str,
)
def test_each_change_alone_is_true_and_changes_images(augment):
    images = random_images(16, 1, 8, 8)
    assert augment
    assert not torch.equal(augment.apply(images, random_uniforms(16)), images)


def test_empty_batch_stays_empty():
    assert EVERYTHING.apply(random_images(0, 3, 8, 8), random_uniforms(0)).shape == (0, 3, 8, 8)


def test_shift_and_flip_by_hand():
    image = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8).expand(3, 1, 2, 3)
    result = shifted(image, torch.tensor([1, 0, 0]), torch.tensor([-1, 1, 0]), torch.tensor([False, True, True]))
    assert result[0, 0].tolist() == [[0, 0, 0], [2, 3, 0]]  # down by one, left by one
    assert result[1, 0].tolist() == [[0, 3, 2], [0, 6, 5]]  # mirrored, then right by one
    assert result[2, 0].tolist() == [[3, 2, 1], [6, 5, 4]]  # mirrored only


def test_crop_equals_padding_and_cutting():
    images, pad = random_images(200, 3, 5, 7), 2
    uniforms = random_uniforms(200)
    result = Augment(pad=pad).apply(images, uniforms)
    offsets = set()
    for image, u, got in zip(images, uniforms, result, strict=True):
        top, left = 2 * pad - int(u[1] * 5), 2 * pad - int(u[2] * 5)
        padded = torch.nn.functional.pad(image, (pad,) * 4)
        assert torch.equal(got, padded[:, top : top + 5, left : left + 7])
        offsets.add((top, left))
    assert offsets == {(top, left) for top in range(5) for left in range(5)}


def test_largest_uniform_stays_in_range():
    uniforms = torch.full((1, Augment.draws), 1 - 1e-12, dtype=torch.float64)  # 1 in float32
    result = Augment(pad=3).apply(torch.full((1, 1, 8, 8), 9, dtype=torch.uint8), uniforms)
    assert (result[0, 0, 3:, 3:] == 9).all()
    assert result.sum() == 9 * 25


def test_flip_mirrors_about_half_of_the_images():
    images = torch.tensor([[0, 1]], dtype=torch.uint8).expand(1000, 1, 1, 2)
    mirrored = Augment(flip=True).apply(images, random_uniforms(1000))[:, 0, 0, 0].float().mean()
    assert 0.45 < mirrored < 0.55


def test_quarter_turn_is_exact():
    images = random_images(2, 3, 7, 7)
    turned = rotated(images, torch.tensor([90.0, 0.0]))
    assert torch.equal(turned[0], torch.rot90(images[0], k=-1, dims=(1, 2)))  # clockwise
    assert torch.equal(turned[1], images[1])


def test_rotation_agrees_with_torchvision():
    image = random_images(1, 1, 16, 16)
    inner = (..., slice(4, 12), slice(4, 12))  # the two treat what comes in at the borders differently
    expected = rotate(image.float(), -20.0, interpolation=2)  # type: ignore[arg-type]
    assert (rotated(image, torch.tensor([20.0])).float() - expected)[inner].abs().max() <= 1


def test_jitter_by_hand():
    images = torch.tensor([10, 30], dtype=torch.uint8).expand(3, 1, 1, 2)  # mean 20
    result = jittered(images, torch.tensor([2.0, 1.0, 20.0]), torch.tensor([1.0, 0.5, 1.0]))
    assert result[:, 0, 0].tolist() == [[20, 60], [15, 25], [200, 255]]


def test_cutout_by_hand():
    images = torch.ones(2, 1, 4, 4, dtype=torch.uint8)
    result = cut_out(images, torch.tensor([1, 3]), torch.tensor([1, 3]), 2)
    assert result[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert result[1, 0].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_presets_keep_what_the_data_declares():
    data = load("digits")
    light, strong = Augment.light(data), Augment.strong(data)
    assert light == data.augment == Augment(pad=1, flip=False)
    assert (strong.pad, strong.flip) == (light.pad, light.flip)
    assert strong.rotate > 0 < strong.cutout


@pytest.mark.parametrize(
    "option", [{"pad": -1}, {"rotate": 181}, {"brightness": 1.1}, {"contrast": float("nan")}, {"cutout": -2}]
)
def test_strength_out_of_range_is_refused(option):
    with pytest.raises(ValueError, match=f"Augment.{next(iter(option))} is out of range: expected 0.."):
        Augment(**option)


def test_wrong_inputs_are_refused():
    images, uniforms = random_images(4, 3, 8, 8), random_uniforms(4)
    with pytest.raises(ValueError, match="expected uint8 images"):
        EVERYTHING.apply(images.float(), uniforms)
    with pytest.raises(ValueError, match=r"expected floats of shape \(4, 8\), got .* of shape \(3, 8\)"):
        EVERYTHING.apply(images, uniforms[:3])
