"""Arrays in MedMNIST layout."""

import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from .clips import padded
from .images import Part
from .splits import Source

Array = NDArray[Any]
LARGE = 256 << 20
"""Bytes from which on an array is memory-mapped."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
_GIVEN = ("train", "policy", "val", "test")
_APART = {part: (f"{part}_images", f"{part}_labels") for part in ("policy", "val")}
_LENGTHS = tuple(f"{part}_lengths" for part in _GIVEN)
_OPTIONAL = (*(key for pair in _APART.values() for key in pair), *_LENGTHS, "class_names")


def load_npz(path: Path) -> Source:
    """Read an `.npz` with images, or clips, and labels for training and test, optionally for validation and policy.

    Images have shape (N, H, W) or (N, H, W, C) with 1 or 3 channels, clips (N, T, H, W, C), uint8 or floats in [0, 1];
    labels have shape (N,) or (N, 1), integers from 0. Where clips differ in length, `train_lengths` and so on say how
    many frames of each are real, from 1 to T; whatever stands after these is not looked at. `class_names` is an array
    of strings. Nothing is unpickled.

    Arrays of 256 MiB and more that are not compressed (`numpy.savez`) are memory-mapped: there may be more pixels than
    memory holds, where they are uint8 and all four parts are given, so that none has to be cut from another.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is damaged, a key is missing or an array does not fit the above.
    """
    arrays = _read(path)
    given = [part for part in _GIVEN if f"{part}_images" in arrays]
    parts = {part: _part(path, part, arrays) for part in given}
    return Source(
        name=path.name,
        parts=parts,
        class_names=_class_names(path, arrays, max(int(part.labels.max()) for part in parts.values()) + 1),
        flip=parts["train"].images.shape[-3] == 3,  # photographs may be mirrored; grey images are often signs
    )


def _read(path: Path) -> dict[str, Array]:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is no whole .npz: expected a zip archive of arrays, got something else or a truncated file. "
            "Remedy: write it with numpy.savez, or download it again."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            _check_keys(path, file.files)
            return {key: _member(path, file, key) for key in (*_REQUIRED, *_OPTIONAL) if key in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged: expected arrays, got: {error}. Remedy: download it again.") from error


def _mapped(path: Path, file: NpzFile, key: str) -> Array | None:
    """Return a large array as a memory map that never writes to the file; None where it is small or compressed."""
    archive = file.zip
    assert archive is not None
    entry = archive.getinfo(f"{key}.npy")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < LARGE:
        return None
    with path.open("rb") as raw:
        raw.seek(entry.header_offset + 26)  # where a local header says how long its name and extra field are
        raw.seek(sum(struct.unpack("<HH", raw.read(4))), 1)
        read_header = _HEADERS.get(np.lib.format.read_magic(raw))
        if read_header is None:
            return None
        shape, by_columns, dtype = read_header(raw)
        return None if by_columns or dtype.hasobject else np.memmap(path, dtype, "c", raw.tell(), shape)


def _member(path: Path, file: NpzFile, key: str) -> Array:
    try:
        mapped = _mapped(path, file, key)
        array = file[key] if mapped is None else mapped
    except ValueError as error:  # NumPy refuses object arrays this way
        remedy = "numpy.array(names, dtype=str)" if key == "class_names" else "one plain array of numbers"
        raise ValueError(
            f"{key} in {path} cannot be read: expected a plain array, got one of Python objects, which would have to "
            f"be unpickled, or a damaged one ({error}). Remedy: save {remedy}."
        ) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{key} in {path} is no array: expected .npy content, got {type(array).__name__}.")
    return array


def _check_keys(path: Path, keys: Sequence[str]) -> None:
    wanted = [*_REQUIRED, *(key for pair in _APART.values() if set(pair) & set(keys) for key in pair)]
    missing = [key for key in wanted if key not in keys]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}: expected {', '.join(wanted)} (MedMNIST layout), got "
            f"{', '.join(keys) or 'nothing'}. Remedy: save the arrays under these names."
        )


def _part(path: Path, part: str, arrays: Mapping[str, Array]) -> Part:
    images = _pixels(f"{part}_images in {path}", arrays[f"{part}_images"])
    labels = _labels(f"{part}_labels in {path}", arrays[f"{part}_labels"])
    if len(images) != len(labels):
        raise ValueError(
            f"{part}_images and {part}_labels in {path} differ in number: expected one label for each of {len(images)} "
            f"images, got {len(labels)}."
        )
    channels_first = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, -3)
    mapped = isinstance(images, np.memmap)  # stays so, in the file's own order
    pixels = torch.from_numpy(channels_first if mapped else np.ascontiguousarray(channels_first))
    if f"{part}_lengths" in arrays:
        lengths = _lengths(f"{part}_lengths in {path}", arrays[f"{part}_lengths"], pixels.shape)
        pixels = padded(pixels, torch.from_numpy(lengths))
    return Part(pixels, torch.from_numpy(labels))


def _lengths(what: str, lengths: Array, shape: Sequence[int]) -> NDArray[np.int64]:
    if len(shape) != 5:
        raise ValueError(
            f"{what} has nothing to measure: expected clips (N, T, H, W, C), got single images. Remedy: leave the key "
            "out, or save the clips."
        )
    if lengths.shape != (shape[0],) or not np.issubdtype(lengths.dtype, np.integer):
        raise ValueError(
            f"{what} does not fit: expected integers of shape ({shape[0]},), one for each clip, got {lengths.dtype} of "
            f"shape {lengths.shape}. Remedy: save the number of real frames of each clip."
        )
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > shape[1]:
        raise ValueError(
            f"{what} cannot be true: expected 1..{shape[1]} real frames, as many as the clips have at most, got "
            f"{low}..{high}. Remedy: count the frames of each clip."
        )
    return lengths.astype(np.int64)


def _pixels(what: str, images: Array) -> NDArray[np.uint8]:
    if images.ndim not in (3, 4, 5) or images.size == 0 or (images.ndim > 3 and images.shape[-1] not in (1, 3)):
        raise ValueError(
            f"{what} has the wrong shape: expected (N, H, W), (N, H, W, C) or clips (N, T, H, W, C) with 1 or 3 "
            f"channels last and no dimension of 0, got {images.shape}. Remedy: transpose or convert the images."
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"{what} has the wrong type: expected uint8 or floats in [0, 1], got {images.dtype}. Remedy: scale the "
            "pixels to 0..255 and save them as numpy.uint8."
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise ValueError(
            f"{what} is out of range: expected floats in [0, 1], got values from {low:g} to {high:g}. Remedy: replace "
            "NaN and infinities, and scale the pixels to [0, 1] or to uint8."
        )
    return (images * 255).round().astype(np.uint8)


def _labels(what: str, labels: Array) -> NDArray[np.int64]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{what} does not fit: expected integers of shape (N,) or (N, 1), one class for each image, got "
            f"{labels.dtype} of shape {labels.shape}. Remedy: save class numbers from 0 as numpy.int64."
        )
    return labels.astype(np.int64)


def _class_names(path: Path, arrays: Mapping[str, Array], num_classes: int) -> tuple[str, ...]:
    if "class_names" not in arrays:
        return tuple(str(label) for label in range(num_classes))
    names = arrays["class_names"]
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise ValueError(
            f"class_names in {path} does not fit: expected strings of shape (classes,), got {names.dtype} of shape "
            f"{names.shape}. Remedy: save numpy.array(names, dtype=str)."
        )
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
