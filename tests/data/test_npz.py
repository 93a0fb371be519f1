import numpy as np
import pytest
import torch

from skipgym.data import ImageData, load, npz
from skipgym.data.clips import clip_lengths


@pytest.fixture
def load_arrays(tmp_path):
    """Return a function that saves arrays and loads the file."""

    def save_and_load(arrays: dict[str, np.ndarray]) -> ImageData:
        np.savez(tmp_path / "toy.npz", allow_pickle=True, **arrays)
        return load(str(tmp_path / "toy.npz"))

    return save_and_load


def test_arrays_are_loaded_and_split(load_arrays, arrays):
    data = load_arrays(arrays)
    assert [len(part) for part in (data.train, data.policy, data.val, data.test)] == [48, 6, 6, 12]
    assert data.image_shape == (3, 6, 6)
    assert data.class_names == ("0", "1", "2")
    assert data.name == "toy.npz"
    assert torch.equal(data.test.images, torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2))
    assert data.test.labels.tolist() == [0, 1, 2] * 4


def test_grey_images_get_a_channel_and_are_not_mirrored(load_arrays, arrays):
    colour = load_arrays(arrays)
    arrays |= {key: arrays[key][..., 0] for key in ("train_images", "test_images")}
    grey = load_arrays(arrays)
    assert grey.image_shape == (1, 6, 6)
    assert (colour.augment.flip, grey.augment.flip) == (True, False)


def test_given_validation_images_are_kept(load_arrays, arrays):
    arrays |= {"val_images": arrays["test_images"][:4], "val_labels": arrays["test_labels"][:4]}
    data = load_arrays(arrays)
    assert [len(part) for part in (data.train, data.policy, data.val, data.test)] == [54, 6, 4, 12]


def test_given_policy_images_are_kept(load_arrays, arrays):
    arrays |= {"policy_images": arrays["test_images"][:5], "policy_labels": arrays["test_labels"][:5]}
    data = load_arrays(arrays)
    assert [len(part) for part in (data.train, data.policy, data.val, data.test)] == [54, 5, 6, 12]
    assert data.note.startswith("policy, test as published")
    del arrays["policy_labels"]
    with pytest.raises(ValueError, match="lacks policy_labels"):
        load_arrays(arrays)


@pytest.mark.parametrize("change", [lambda y: y[:, None], lambda y: y.astype(np.uint8), lambda y: y.astype(">i4")])
def test_labels_of_any_integer_type_and_column_vectors_are_equal(load_arrays, arrays, change):
    expected = load_arrays(arrays)
    arrays |= {key: change(arrays[key]) for key in ("train_labels", "test_labels")}
    assert load_arrays(arrays).fingerprint == expected.fingerprint


def test_floats_become_levels(load_arrays, arrays):
    expected = load_arrays(arrays)
    arrays |= {key: (arrays[key] / 255).astype(np.float32) for key in ("train_images", "test_images")}
    assert load_arrays(arrays).fingerprint == expected.fingerprint


@pytest.mark.parametrize("names", [np.array(["a", "b", "c"]), np.array([b"a", b"b", b"c"])])
def test_class_names_are_read(load_arrays, arrays, names):
    assert load_arrays({**arrays, "class_names": names}).class_names == ("a", "b", "c")


def with_pixel(value: float):
    def change(images: np.ndarray) -> np.ndarray:
        images = images / 255
        images[5, 2, 2, 0] = value
        return images

    return change


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("train_images", lambda x: x.astype(np.int64), "wrong type: expected uint8 or floats in .*got int64"),
        ("train_images", lambda x: x.astype(np.float32), "out of range: expected floats in .*got values from 0 to 255"),
        ("train_images", with_pixel(np.nan), "out of range.*nan"),
        ("train_images", with_pixel(np.inf), "out of range.*inf"),
        ("train_images", lambda x: x.transpose(0, 3, 1, 2), r"wrong shape.*channels last.*\(60, 3, 6, 6\)"),
        ("train_images", lambda x: x[:0], r"wrong shape.*\(0, 6, 6, 3\)"),
        ("train_images", lambda x: x[0, 0], r"wrong shape.*\(6, 3\)"),
        ("train_images", lambda x: x[:, None], r"images differ in shape: expected \(1, 3, 6, 6\).*in test"),
        ("train_images", lambda x: x[:-1], "differ in number: expected one label for each of 59 images, got 60"),
        ("test_images", lambda x: x[:, :5], r"images differ in shape: expected \(3, 6, 6\).*got \(3, 5, 6\) in test"),
        ("train_labels", lambda y: y.astype(np.float64), r"expected integers of shape.*got float64"),
        ("train_labels", lambda y: np.stack([y, y], 1), r"expected integers of shape.*\(60, 2\)"),
        ("train_labels", lambda y: y - 1, r"labels in train lie outside the classes: expected 0..2, got -1..1"),
        ("test_labels", lambda y: y + 1, "too few training images in 1 of 4 classes.*3 has 0"),
        ("train_labels", lambda y: np.where(np.arange(60) < 59, y % 2, 2), "in 1 of 3 classes.*2 has 1"),
    ],
)
def test_unfit_arrays_are_refused(load_arrays, arrays, key, change, message):
    arrays[key] = change(arrays[key])
    with pytest.raises(ValueError, match=message):
        load_arrays(arrays)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (np.array(["a", "b"]), r"lie outside the classes: expected 0..1, got 0..2"),
        (np.array(["a", "b", "c", "d"]), "too few training images.*d has 0"),
        (np.array(["a", "b", "c"], dtype=object), r"would have to be unpickled.*numpy.array\(names, dtype=str\)"),
        (np.array([1, 2, 3]), "class_names in .* expected strings"),
        (np.array([["a", "b", "c"]]), "class_names in .* expected strings"),
    ],
)
def test_unfit_class_names_are_refused(load_arrays, arrays, names, message):
    with pytest.raises(ValueError, match=message):
        load_arrays({**arrays, "class_names": names})


@pytest.mark.parametrize("present", ["val_images", "val_labels"])
def test_half_a_validation_set_is_refused(load_arrays, arrays, present):
    absent = {"val_images": "val_labels", "val_labels": "val_images"}[present]
    with pytest.raises(ValueError, match=f"lacks {absent}: expected"):
        load_arrays({**arrays, present: arrays[present.replace("val", "test")]})


def test_missing_keys_are_named_with_those_found(load_arrays, arrays):
    with pytest.raises(ValueError, match="lacks train_images, train_labels, .*got x_train"):
        load_arrays({"x_train": arrays["train_images"]})


def test_images_as_objects_are_not_unpickled(load_arrays, arrays):
    arrays["train_images"] = arrays["train_images"].astype(object)
    with pytest.raises(ValueError, match="train_images in .* would have to be unpickled"):
        load_arrays(arrays)


@pytest.mark.parametrize("grey", [False, True])
def test_large_arrays_are_mapped_and_give_the_same(load_arrays, arrays, tmp_path, monkeypatch, grey):
    for part in ("policy", "val"):  # nothing has to be cut
        arrays |= {f"{part}_images": arrays["test_images"][:6], f"{part}_labels": arrays["test_labels"][:6]}
    if grey:
        arrays |= {key: value[..., 0] for key, value in arrays.items() if key.endswith("_images")}
    held, before = load_arrays(arrays), (tmp_path / "toy.npz").read_bytes()
    mapped, mapping = [], npz._mapped
    monkeypatch.setattr(npz, "LARGE", arrays["policy_images"].nbytes)
    monkeypatch.setattr(npz, "_mapped", lambda *given: mapped.append(mapping(*given)) or mapped[-1])
    data = load(str(tmp_path / "toy.npz"))
    assert data.fingerprint == held.fingerprint
    for one, other in ((data.train, held.train), (data.policy, held.policy), (data.test, held.test)):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    starts = {array.ctypes.data for array in mapped if array is not None}
    assert {part.images.data_ptr() for part in (data.train, data.policy, data.val, data.test)} <= starts
    data.policy.images.zero_()
    assert (tmp_path / "toy.npz").read_bytes() == before


def test_compressed_arrays_are_read_whole(arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "LARGE", 0)
    np.savez_compressed(tmp_path / "toy.npz", **arrays)
    assert load(str(tmp_path / "toy.npz")).image_shape == (3, 6, 6)


@pytest.mark.parametrize("kept", [0, 100, 3000, -1])
def test_truncated_file_is_refused(tmp_path, arrays, kept):
    whole, part = tmp_path / "whole.npz", tmp_path / "part.npz"
    np.savez_compressed(whole, **arrays)
    part.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(ValueError, match="no whole .npz.*truncated"):
        load(part)


def test_flipped_bits_are_noticed(tmp_path, arrays):
    path = tmp_path / "toy.npz"
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    content[2000] ^= 255  # within the pixels
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: expected arrays, got: Bad CRC"):
        load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "notes.npz"
    path.write_text("hello")
    with pytest.raises(ValueError, match="no whole .npz"):
        load(path)


def test_cifar10_npz_is_split_as_documented(outside):
    data = load(outside("cifar10.npz"))
    assert [len(part) for part in (data.train, data.policy, data.val, data.test)] == [40_000, 5_000, 5_000, 10_000]
    assert data.val.labels.bincount().tolist() == [500] * 10
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.002)  # published for all 50,000
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.002)


def test_avletters_loads_as_clips(outside):
    data = load(outside("avletters.npz"))
    assert data.train.images.shape[1:] == (32, 1, 48, 64)
    assert data.image_shape == (1, 48, 64)
    assert clip_lengths(data.test.images).min() >= 12
