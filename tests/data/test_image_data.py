import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipgym.data import Augment, ImageData, Part, Source, data_names, load, register_data
from skipgym.data import registry as registry_module

DIGITS = "a0bcd6c2ba941575"


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits")


@pytest.fixture
def registry(monkeypatch):
    """Let a test register data without leaving it behind."""
    monkeypatch.setattr(registry_module.REGISTRY, "registered", dict(registry_module.REGISTRY.registered))


def test_digits_are_as_documented(digits):
    assert digits.image_shape == (1, 8, 8)
    assert digits.class_names == tuple("0123456789")
    assert [len(digits.part(name)) for name in ("train", "policy", "val", "test")] == [809, 359, 179, 450]
    assert int(digits.train.images.min()) == 0
    assert int(digits.train.images.max()) == 255
    assert (digits.num_classes, digits.seen) == (10, False)


def test_digits_split_is_the_one_of_the_published_figures(digits):
    assert digits.fingerprint == DIGITS


def test_another_process_splits_alike():
    code = "from skipgym.data import load; print(load('digits').fingerprint)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [DIGITS]


def test_no_digit_image_is_in_two_parts(digits):
    seen = [{image.numpy().tobytes() for image in digits.part(n).images} for n in ("train", "policy", "val", "test")]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 1797


def test_batches_come_in_order_and_once(digits):
    batches = list(digits.val.batches(50))
    assert [len(images) for images, _, _ in batches] == [50, 50, 50, 29]
    assert torch.equal(torch.cat([images for images, _, _ in batches]), digits.val.images)
    assert torch.equal(torch.cat([labels for _, labels, _ in batches]), digits.val.labels)
    assert torch.cat([index for _, _, index in batches]).tolist() == list(range(179))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 449))
def test_subset_keeps_the_proportions_of_the_classes(digits, n):
    subset, test = digits.test.subset(n), digits.test
    assert len(subset) == n
    expected = test.labels.bincount(minlength=10) * n / len(test)
    assert (subset.labels.bincount(minlength=10) - expected).abs().max() <= 1


def test_smaller_subset_is_within_the_larger(digits):
    small, large = ({image.numpy().tobytes() for image in digits.test.subset(n).images} for n in (20, 100))
    assert small < large


def test_subset_of_everything_is_everything(digits):
    assert digits.test.subset(450) is digits.test
    assert digits.test.subset(10_000) is digits.test


@pytest.mark.parametrize("method", ["subset", "batches"])
def test_sizes_below_one_are_refused(digits, method):
    with pytest.raises(ValueError, match="too small: expected at least 1, got 0"):
        list(getattr(digits.test, method)(0))


def test_unknown_part_is_refused(digits):
    with pytest.raises(ValueError, match="expected one of train, policy, val, test, got 'dev'"):
        digits.part("dev")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), "These are no images"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2).long(), "These are no images"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0).long(), "These are no images"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3).long(), "Labels do not fit"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "Labels do not fit"),
    ],
)
def test_unfit_tensors_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Part(images, labels)


def test_repr_shows_no_pixels(digits):
    assert "Part(809 images of 1x8x8)" in repr(digits)
    assert "tensor" not in repr(digits)


def test_names_come_with_descriptions():
    assert {"digits", "cifar10", "cifar100"} <= data_names().keys()
    assert all(data_names().values())


def test_registered_data_is_loaded_by_name(registry, digits):
    @register_data("toy", description="for this test")
    def toy() -> Source:
        return Source(name="toy", parts={"train": digits.train}, class_names=digits.class_names, flip=True)

    assert data_names()["toy"] == "for this test"
    assert load("toy").augment.flip


def test_taken_name_is_refused():
    with pytest.raises(ValueError, match="expected a new one, got 'digits', which is taken by skipgym"):
        register_data("digits", description="again")(lambda: None)


def test_unknown_name_lists_close_and_all_names_and_mentions_paths():
    with pytest.raises(
        ValueError,
        match="did you mean digits.*digit-clips, digits, key-phrases, noisy-digits, got 'digit'.*path of",
    ) as e:
        load("digit")
    assert "ImageFolder" in str(e.value)


@pytest.mark.parametrize("spec", ["missing.npz", "no/such/directory"])
def test_path_to_nowhere_is_not_taken_for_a_name(spec):
    with pytest.raises(FileNotFoundError, match=f"No data at {spec}"):
        load(spec)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="Unknown policy_from"):
        load("digits", policy_from="test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image size is too small"):
        load("digits", image_size=0)


def test_cifar_without_network_names_the_alternative(monkeypatch, cache):
    class Offline:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Offline)
    with pytest.raises(FileNotFoundError, match=r"no route to host.*\.npz in MedMNIST layout") as error:
        load("cifar10")
    assert str(cache) in str(error.value)


def test_cifar_keeps_its_test_images_and_cuts_the_rest(monkeypatch):
    class Downloaded:
        classes = ("cat", "dog")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            n = 100 if train else 20
            self.data = torch.arange(n)[:, None, None, None].expand(n, 32, 32, 3).to(torch.uint8).numpy()
            self.targets = [i % 2 for i in range(n)]

    monkeypatch.setattr("torchvision.datasets.CIFAR100", Downloaded)
    data = load("cifar100")
    assert [len(part) for part in (data.train, data.policy, data.val, data.test)] == [80, 10, 10, 20]
    assert data.image_shape == (3, 32, 32)
    assert (data.augment.pad, data.augment.flip) == (4, True)


def test_varied_validation_images_are_told_apart_and_nothing_else_changes(digits):
    augment = Augment(brightness=0.2)
    varied = digits.with_varied_val(augment)
    again = digits.with_varied_val(augment)
    assert torch.equal(varied.val.images, again.val.images)
    assert not torch.equal(varied.val.images, digits.val.images)
    assert torch.equal(varied.val.labels, digits.val.labels)
    assert varied.fingerprint == again.fingerprint != digits.fingerprint
    assert varied.fingerprint != digits.with_varied_val(Augment(brightness=0.3)).fingerprint
    assert all(varied.part(name) is digits.part(name) for name in ("train", "policy", "test"))
    assert "validation images varied" in varied.note
