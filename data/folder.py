"""ImageFolder directories, decoded once."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .cache import cache_dir, read_cached, write_cached
from .decode import SUFFIXES, common_size, read_images
from .images import Part
from .listing import Listing, list_files
from .splits import Source

_MOST_UNREADABLE = 0.05
_CACHE_FORMAT = 1  # goes up when the same files would give other pixels


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
    listing = list_files(root, SUFFIXES, "images")
    tensors, unreadable = _decoded(root, listing, image_size)
    if unreadable:
        report(root, listing, unreadable, "images")
    return Source(
        name=root.resolve().name,
        parts={name: Part(tensors[f"{name}.images"], tensors[f"{name}.labels"]) for name in listing.files},
        class_names=listing.class_names,
        flip=True,
        note=f"{len(unreadable)} unreadable files left out" if unreadable else "",
    )


def _decoded(root: Path, listing: Listing, image_size: int | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    cache = cache_dir() / "folders" / f"{key_of(root, listing, f'{_CACHE_FORMAT} {image_size}')}.safetensors"
    cached = read_cached(cache)
    if cached is not None:
        return cached[0], json.loads(cached[1]["unreadable"])
    tensors, unreadable = _decode(root, listing, image_size or common_size(listing.paths))
    write_cached(cache, tensors, {"unreadable": json.dumps(unreadable)})
    return tensors, unreadable


def key_of(root: Path, listing: Listing, how: str) -> str:
    """Return a name that differs wherever files, or how they are read, do."""
    digest = hashlib.sha256(f"{how} {root.resolve()}\n".encode())
    for path in listing.paths:
        stat = path.stat()
        digest.update(f"{path.relative_to(root).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _decode(root: Path, listing: Listing, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    unreadable: dict[str, str] = {}
    for part, files in listing.files.items():
        images, problems = read_images([path for path, _ in files], size)
        readable = torch.tensor([row not in problems for row in range(len(files))])
        tensors[f"{part}.images"] = images[readable] if problems else images
        tensors[f"{part}.labels"] = torch.tensor([label for _, label in files])[readable]
        unreadable |= {files[row][0].relative_to(root).as_posix(): problem for row, problem in problems.items()}
    return tensors, unreadable


def report(root: Path, listing: Listing, unreadable: Mapping[str, str], what: str) -> None:
    """Warn of files that cannot be read, by their names and what is wrong.

    Raises:
        ValueError: If they are more than 5 %, or no readable one of a class is left.
    """
    total = len(listing.paths)
    shown = "; ".join(f"{path} ({problem})" for path, problem in list(unreadable.items())[:10])
    more = "; …" if len(unreadable) > 10 else ""
    message = f"{len(unreadable)} of {total} files in {root} are no readable {what}: {shown}{more}"
    if len(unreadable) > _MOST_UNREADABLE * total:
        raise ValueError(f"{message}. Expected at most {_MOST_UNREADABLE:.0%}. Remedy: replace or delete them.")
    emptied = _emptied(root, listing, unreadable)
    if emptied:
        raise ValueError(f"{message}. That empties {', '.join(emptied)}. Remedy: replace the files.")
    warnings.warn(f"{message}. They are left out.", stacklevel=2)


def _emptied(root: Path, listing: Listing, unreadable: Mapping[str, str]) -> list[str]:
    before = {(part, label) for part, files in listing.files.items() for _, label in files}
    after = {
        (part, label)
        for part, files in listing.files.items()
        for path, label in files
        if path.relative_to(root).as_posix() not in unreadable
    }
    return [f"{listing.class_names[label]} in {part}" for part, label in sorted(before - after)]
