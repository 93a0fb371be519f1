"""ImageFolder directories, decoded once."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .cache import cache_dir, read_cached, write_cached
from .decode import SUFFIXES, common_size, read_images
from .images import Part
from .splits import Source

_GIVEN = ("train", "val", "test")
_MOST_UNREADABLE = 0.05
_CACHE_FORMAT = 1  # goes up when the same files would give other pixels


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """What lies in a directory: class names, and the files of each part with their labels."""

    class_names: tuple[str, ...]
    files: Mapping[str, list[tuple[Path, int]]]

    @property
    def paths(self) -> list[Path]:
        return [path for files in self.files.values() for path, _ in files]


def load_folder(root: Path, *, image_size: int | None) -> Source:
    """Read a directory of images in one of the two ImageFolder layouts.

    The decoded images are kept in the cache directory until a file is added, removed or changed. Files that cannot be
    read are left out with one warning.

    Args:
        root: Holds DIR/{train,test[,val]}/CLASS/* or DIR/CLASS/*, which is then split.
        image_size: Height and width in pixels; None takes the most common size, at most 224.

    Raises:
        ValueError: If there are no images, the classes of the parts differ, more than 5 % of the files cannot be read,
            or no readable image of a class is left.
    """
    listing = _list(root)
    tensors, unreadable = _decoded(root, listing, image_size)
    if unreadable:
        _report(root, listing, unreadable)
    return Source(
        name=root.resolve().name,
        parts={name: Part(tensors[f"{name}.images"], tensors[f"{name}.labels"]) for name in listing.files},
        class_names=listing.class_names,
        flip=True,
        note=f"{len(unreadable)} unreadable files left out" if unreadable else "",
    )


def _list(root: Path) -> _Listing:
    found = {part: {d.name: _images(d) for d in _directories(path)} for part, path in _parts(root).items()}
    names = tuple(sorted(name for name, files in found["train"].items() if files))
    if not names:
        raise ValueError(
            f"No images in {root}: expected {root.name}/CLASS/*.jpg or {root.name}/train/CLASS/*.jpg (also "
            f"{', '.join(sorted(SUFFIXES - {'.jpg'}))}), got none. Remedy: put each class's images in a directory."
        )
    for part, classes in found.items():
        _check_classes(root / part, names, sorted(name for name, files in classes.items() if files))
    files = {
        part: [(path, label) for label, name in enumerate(names) for path in classes.get(name, [])]
        for part, classes in found.items()
    }
    return _Listing(class_names=names, files=files)


def _parts(root: Path) -> dict[str, Path]:
    # a directory `train` with images right inside is a class of that name
    if any(_images(directory) for directory in _directories(root / "train")):
        return {part: root / part for part in _GIVEN if (root / part).is_dir()}
    return {"train": root}


def _check_classes(directory: Path, expected: Sequence[str], got: Sequence[str]) -> None:
    if not got or not set(got) <= set(expected):
        raise ValueError(
            f"{directory} does not fit the training images: expected images in some of the class directories "
            f"{', '.join(expected[:10])}{', …' * (len(expected) > 10)}, got {', '.join(got[:10]) or 'no images'}. "
            "Remedy: name the class directories alike in all parts."
        )


def _directories(path: Path) -> list[Path]:
    return sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith(".")) if path.is_dir() else []


def _images(directory: Path) -> list[Path]:
    candidates = (path for path in directory.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in candidates if not _hidden(path.relative_to(directory)) and path.is_file())


def _hidden(path: Path) -> bool:
    return any(name.startswith(".") for name in path.parts)


def _decoded(root: Path, listing: _Listing, image_size: int | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    cache = cache_dir() / "folders" / f"{_key(root, listing, image_size)}.safetensors"
    cached = read_cached(cache)
    if cached is not None:
        return cached[0], json.loads(cached[1]["unreadable"])
    tensors, unreadable = _decode(root, listing, image_size or common_size(listing.paths))
    write_cached(cache, tensors, {"unreadable": json.dumps(unreadable)})
    return tensors, unreadable


def _key(root: Path, listing: _Listing, image_size: int | None) -> str:
    digest = hashlib.sha256(f"{_CACHE_FORMAT} {image_size} {root.resolve()}\n".encode())
    for path in listing.paths:
        stat = path.stat()
        digest.update(f"{path.relative_to(root).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _decode(root: Path, listing: _Listing, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    unreadable: dict[str, str] = {}
    for part, files in listing.files.items():
        images, problems = read_images([path for path, _ in files], size)
        readable = torch.tensor([row not in problems for row in range(len(files))])
        tensors[f"{part}.images"] = images[readable] if problems else images
        tensors[f"{part}.labels"] = torch.tensor([label for _, label in files])[readable]
        unreadable |= {files[row][0].relative_to(root).as_posix(): problem for row, problem in problems.items()}
    return tensors, unreadable


def _report(root: Path, listing: _Listing, unreadable: Mapping[str, str]) -> None:
    total = len(listing.paths)
    shown = "; ".join(f"{path} ({problem})" for path, problem in list(unreadable.items())[:10])
    more = "; …" if len(unreadable) > 10 else ""
    message = f"{len(unreadable)} of {total} files in {root} are no readable images: {shown}{more}"
    if len(unreadable) > _MOST_UNREADABLE * total:
        raise ValueError(f"{message}. Expected at most {_MOST_UNREADABLE:.0%}. Remedy: replace or delete them.")
    emptied = _emptied(root, listing, unreadable)
    if emptied:
        raise ValueError(f"{message}. That empties {', '.join(emptied)}. Remedy: replace the files.")
    warnings.warn(f"{message}. They are left out.", stacklevel=2)


def _emptied(root: Path, listing: _Listing, unreadable: Mapping[str, str]) -> list[str]:
    before = {(part, label) for part, files in listing.files.items() for _, label in files}
    after = {
        (part, label)
        for part, files in listing.files.items()
        for path, label in files
        if path.relative_to(root).as_posix() not in unreadable
    }
    return [f"{listing.class_names[label]} in {part}" for part, label in sorted(before - after)]
