"""Directories in the two ImageFolder layouts: what class each file is of."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GIVEN = ("train", "val", "test")
"""Parts that a publisher may give apart."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies in a directory: class names, and the files of each part with their labels."""

    class_names: tuple[str, ...]
    files: Mapping[str, list[tuple[Path, int]]]

    @property
    def paths(self) -> list[Path]:
        return [path for files in self.files.values() for path, _ in files]


def list_files(root: Path, suffixes: Collection[str], what: str) -> Listing:
    """List the files of a directory, DIR/{train,test[,val]}/CLASS/* or DIR/CLASS/*.

    Args:
        root: The directory.
        suffixes: Of the files that count, in lower case.
        what: They are called in errors.

    Raises:
        ValueError: If there are none, or the classes of the parts differ.
    """
    parts = _parts(root, suffixes)
    found = {part: {d.name: _files(d, suffixes) for d in _directories(path)} for part, path in parts.items()}
    names = tuple(sorted(name for name, files in found["train"].items() if files))
    if not names:
        first, *others = sorted(suffixes, key=lambda suffix: (suffix not in (".jpg", ".mp4"), suffix))
        also = f" (also {', '.join(sorted(others))})" if others else ""
        raise ValueError(
            f"No {what} in {root}: expected {root.name}/CLASS/*{first} or {root.name}/train/CLASS/*{first}{also}, got "
            f"none. Remedy: put each class's {what} in a directory."
        )
    for part, classes in found.items():
        _check_classes(root / part, names, sorted(name for name, files in classes.items() if files), what)
    files = {
        part: [(path, label) for label, name in enumerate(names) for path in classes.get(name, [])]
        for part, classes in found.items()
    }
    return Listing(class_names=names, files=files)


def holds(root: Path, suffixes: Collection[str]) -> bool:
    """Return whether any file of these kinds lies in one of the two layouts."""
    inner = (child for path in _parts(root, suffixes).values() for child in _directories(path))
    return any(True for child in inner for _ in _found(child, suffixes))


def _parts(root: Path, suffixes: Collection[str]) -> dict[str, Path]:
    # a directory `train` with files right inside is a class of that name
    if any(True for directory in _directories(root / "train") for _ in _found(directory, suffixes)):
        return {part: root / part for part in GIVEN if (root / part).is_dir()}
    return {"train": root}


def _check_classes(directory: Path, expected: Sequence[str], got: Sequence[str], what: str) -> None:
    if not got or not set(got) <= set(expected):
        raise ValueError(
            f"{directory} does not fit the training {what}: expected {what} in some of the class directories "
            f"{', '.join(expected[:10])}{', …' * (len(expected) > 10)}, got {', '.join(got[:10]) or f'no {what}'}. "
            "Remedy: name the class directories alike in all parts."
        )


def _directories(path: Path) -> list[Path]:
    return sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith(".")) if path.is_dir() else []


def _files(directory: Path, suffixes: Collection[str]) -> list[Path]:
    return sorted(_found(directory, suffixes))


def _found(directory: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Yield files in no order; whoever asks for the first alone does not wait for the others."""
    candidates = (path for path in directory.rglob("*") if path.suffix.lower() in suffixes)
    return (path for path in candidates if not _hidden(path.relative_to(directory)) and path.is_file())


def _hidden(path: Path) -> bool:
    return any(name.startswith(".") for name in path.parts)
