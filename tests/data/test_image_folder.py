import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from skipgym.data import folder as folder_module
from skipgym.data import load, read_image

RED = (255, 0, 0)


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Record how many files are decoded at a time."""
    counts: list[int] = []
    read = folder_module.read_images

    def counted(paths, image_size):
        counts.append(len(paths))
        return read(paths, image_size)

    monkeypatch.setattr(folder_module, "read_images", counted)
    return counts


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def test_flat_layout_is_split(save_folder):
    data = load(save_folder("cat", "dog", n=10))
    assert data.name == "photos"
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (3, 12, 12)
    assert [len(part) for part in (data.train, data.policy, data.val, data.test)] == [12, 2, 2, 4]


def test_given_parts_are_kept(save_folder):
    save_folder("train/cat", "train/dog", n=10)
    data = load(save_folder("test/cat", "test/dog", "val/dog", n=2))
    assert [len(part) for part in (data.train, data.policy, data.val, data.test)] == [18, 2, 2, 4]
    assert data.val.labels.tolist() == [1, 1]
    assert data.note.startswith("val, test as published")


def test_pixels_are_those_of_the_files(save_folder):
    root = save_folder("train/cat", "train/dog", "test/cat", "test/dog", n=5)
    data = load(root)
    files = sorted((root / "test").rglob("*.png"))
    expected = torch.stack([torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) for path in files])
    assert torch.equal(data.test.images, expected)


def test_class_named_train_is_a_class(save_folder):
    assert load(save_folder("car", "train")).class_names == ("car", "train")


def test_hidden_and_other_files_are_ignored(save_folder):
    root = save_folder("cat", "dog", ".git", "cat/.thumbnails")
    (root / "cat" / "._00.png").write_bytes(b"resource fork")
    (root / "cat" / "notes.txt").write_text("hello")
    data = load(root)
    assert (data.class_names, len(data.train)) == (("cat", "dog"), 4)


def test_images_deeper_within_a_class_count(save_folder):
    assert load(save_folder("cat", "dog/small", "dog/large")).class_names == ("cat", "dog")


def test_most_common_shorter_side_is_the_size(save_folder):
    save_folder("cat", "dog", size=(20, 10))
    assert load(save_folder("bird", n=5, size=(30, 16))).image_shape == (3, 10, 10)


def test_size_is_at_most_224_unless_asked(save_folder):
    root = save_folder("cat", "dog", n=4, size=(230, 240))
    assert load(root).image_shape == (3, 224, 224)
    assert load(root, image_size=230).image_shape == (3, 230, 230)


def test_decoded_images_are_kept(save_folder, decoded):
    root = save_folder("cat", "dog")
    first, second = load(root), load(root)
    assert decoded == [10]
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("change", ["add", "remove", "rewrite", "rename", "size"])
def test_cache_notices(save_folder, decoded, change):
    root = save_folder("cat", "dog", n=6)
    load(root)
    first = root / "cat" / "00.png"
    if change == "add":
        shutil.copy(first, root / "cat" / "new.png")
    elif change == "remove":
        first.unlink()
    elif change == "rewrite":
        os.utime(first, ns=(0, 0))
    elif change == "rename":
        first.rename(root / "cat" / "renamed.png")
    load(root, image_size=6 if change == "size" else None)
    assert len(decoded) == 2


def test_damaged_cache_is_decoded_anew(save_folder, decoded, cache):
    root = save_folder("cat", "dog")
    expected = load(root).fingerprint
    (file,) = cache.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    assert load(root).fingerprint == expected
    assert decoded == [10, 10]
    assert list(cache.rglob("*.*")) == [file]  # nothing half-written stays behind


def test_cache_that_cannot_be_written_is_a_warning(save_folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SKIPGYM_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="Decoded images are not kept.*SKIPGYM_CACHE"):
        data = load(save_folder("cat", "dog"))
    assert len(data.train) == 4


def test_few_unreadable_files_are_left_out_with_a_warning(save_folder):
    root = save_folder("cat", "dog", n=12)
    (root / "cat" / "03.png").write_bytes((root / "cat" / "03.png").read_bytes()[:100])
    for _ in range(2):  # decoded, then from the cache
        with pytest.warns(UserWarning, match=r"1 of 24 files in .* cat/03.png \(.*left out"):
            data = load(root)
        assert sum(len(part) for part in (data.train, data.policy, data.val, data.test)) == 23
        assert "1 unreadable files left out" in data.note


def test_many_unreadable_files_are_an_error(save_folder):
    root = save_folder("cat", "dog", n=10)
    for i in range(2):
        (root / "dog" / f"0{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 20 files .*dog/00.png.*Expected at most 5%"):
        load(root)


def test_class_without_readable_image_is_an_error(save_folder):
    save_folder("cat", "dog", n=20)
    root = save_folder("bird", n=1)
    (root / "bird" / "00.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="That empties bird in train"):
        load(root)


def test_class_unknown_to_training_is_refused(save_folder):
    root = save_folder("train/cat", "train/dog", "test/cat", "test/wolf")
    with pytest.raises(ValueError, match="test does not fit .* cat, dog, got cat, wolf"):
        load(root)


def test_empty_test_directory_is_refused(save_folder):
    root = save_folder("train/cat", "train/dog")
    (root / "test").mkdir()
    with pytest.raises(ValueError, match="test does not fit .*got no images"):
        load(root)


def test_directory_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No images in .*CLASS.*Remedy: put each class"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (4, 4), RED), RED),
        (Image.new("L", (4, 4), 100), (100, 100, 100)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGB", (4, 4), RED).quantize(), RED),
        (Image.new("RGBA", (4, 4), (*RED, 255)), RED),
        (Image.new("RGBA", (4, 4), (*RED, 0)), (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (*RED, 0)).quantize(), (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 100 * 256 + 7, np.uint16)), (100, 100, 100)),
    ],
    ids=["rgb", "grey", "bits", "palette", "opaque", "transparent", "grey+alpha", "palette+alpha", "16-bit"],
)
def test_any_mode_becomes_rgb(tmp_path, image, expected):
    pixels = read_image(save(image, tmp_path / "image.png"), image_size=2)
    assert pixels.shape == (3, 2, 2)
    assert pixels.permute(1, 2, 0).reshape(4, 3).tolist() == [list(expected)] * 4


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)], ids=["pixel", "line", "column"])
def test_images_of_one_pixel_or_one_line_are_enlarged(tmp_path, size):
    pixels = read_image(save(Image.new("RGB", size, RED), tmp_path / "image.png"), image_size=8)
    assert pixels.permute(1, 2, 0).reshape(-1, 3).unique(dim=0).tolist() == [list(RED)]


def test_levels_of_16_bits_and_palettes_in_colour_become_8(tmp_path):
    deep = np.full((4, 4), 65535, np.uint16)
    deep[:2] = 128 * 256
    grey = read_image(save(Image.fromarray(deep), tmp_path / "deep.tiff"), image_size=4, channels=1)
    assert grey[0, :, 0].tolist() == [128, 128, 255, 255]


def test_folder_of_every_kind_with_corrupt_files_in_the_middle_is_loaded(save_folder):
    """Grey, transparent, 16-bit, one-pixel and wide images, and two files that break off."""
    root = save_folder("cat", "dog", n=30)
    odd = {
        "05": Image.new("L", (12, 12), 90),
        "06": Image.new("RGBA", (12, 12), (*RED, 128)),
        "07": Image.fromarray(np.full((12, 12), 40_000, np.uint16)),
        "08": Image.new("RGB", (1, 1), RED),
        "09": Image.new("1", (300, 2)),
    }
    for name, image in odd.items():
        image.save(root / "cat" / f"{name}.png")
    whole = (root / "dog" / "15.png").read_bytes()
    (root / "dog" / "15.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "20.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.warns(UserWarning, match=r"2 of 60 files .*(15|20)\.png.*(15|20)\.png.* left out"):
        data = load(root, image_size=12)
    assert data.image_shape == (3, 12, 12)
    assert sum(len(part) for part in (data.train, data.policy, data.val, data.test)) == 58


def test_grey_is_read_as_one_channel(tmp_path):
    pixels = read_image(save(Image.new("RGB", (4, 4), (100,) * 3), tmp_path / "image.png"), image_size=4, channels=1)
    assert torch.equal(pixels, torch.full((1, 4, 4), 100, dtype=torch.uint8))


def test_photographs_are_turned_upright(tmp_path):
    image = Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8))  # left black, right white
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise to view
    pixels = read_image(save(image, tmp_path / "image.png", exif=exif), image_size=2, channels=1)
    assert pixels.tolist() == [[[0, 0], [255, 255]]]


def test_wide_images_lose_their_sides(tmp_path):
    image = Image.new("L", (30, 10), 0)
    image.paste(200, (10, 0, 20, 10))
    pixels = read_image(save(image, tmp_path / "image.png"), image_size=10, channels=1)
    assert (pixels == 200).all()


def test_floating_point_image_is_unreadable(tmp_path):
    path = save(Image.new("F", (4, 4), 0.5), tmp_path / "image.tiff")
    with pytest.raises(ValueError, match="cannot be read.*floating-point"):
        read_image(path, image_size=4)


def test_unreadable_and_missing_image_are_told_apart(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken.jpg cannot be read: expected an image file"):
        read_image(tmp_path / "broken.jpg", image_size=4)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.jpg", image_size=4)
    with pytest.raises(ValueError, match="cannot have 4 channels"):
        read_image(tmp_path / "missing.jpg", image_size=4, channels=4)


def test_imagenette_is_loaded(outside, tmp_path):
    source, root = outside("imagenette128"), tmp_path / "imagenette"
    for directory in sorted(source.glob("t*/*")):  # train and test, 12 images of each class
        target = root / directory.relative_to(source)
        target.mkdir(parents=True)
        for path in sorted(directory.iterdir())[:12]:
            (target / path.name).symlink_to(path)
    data = load(root)
    assert data.image_shape == (3, 128, 128)
    assert [len(part) for part in (data.train, data.policy, data.val, data.test)] == [100, 10, 10, 120]
    assert 0.3 < min(data.mean) < max(data.mean) < 0.6
