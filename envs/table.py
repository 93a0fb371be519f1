"""Records as files: made once for a backbone, a task and images, then shared by every run that asks for them."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from ..data import Augment, ImageData, Part
from ..data.cache import cache_dir
from ..ids import env_id
from .recorded import Record, Recorded, tickets
from .task import Task

REVISION = 1  # of what a row holds; raise it when results may change
BATCH = 256
PARTS = ("policy", "val", "test")


@dataclass(frozen=True, eq=False)
class Rows:
    """The images of a table, in the order of its rows: versions of the policy's, then val, then test.

    Attributes:
        images: The originals of all parts. Shape (M, C, H, W), uint8.
        source: Which of them each row is made of. Shape (N,).
        augment: How the policy's rows are varied.
        varied: How many rows those are.
    """

    images: Tensor
    source: Tensor
    augment: Augment
    varied: int

    @classmethod
    def of(cls, data: ImageData, versions: int, augment: Augment) -> "Rows":
        """Return so many versions of each of the policy's images, and the others as they are."""
        images = torch.cat([data.part(name).images for name in PARTS])
        first = len(data.policy)
        source = torch.cat([torch.arange(first).repeat(versions), torch.arange(first, len(images))])
        return cls(images, source, augment, first * versions)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, start: int) -> Tensor:
        """Return the images of the rows from `start` on; what is drawn for a row depends on its number alone."""
        source = self.source[start : start + BATCH]
        images = self.images[source]
        mine = max(0, min(self.varied - start, len(source)))
        if self.augment and mine:
            uniforms = torch.rand((len(source), Augment.draws), generator=torch.Generator().manual_seed(start))
            images[:mine] = self.augment.apply(images[:mine], uniforms[:mine])
        return images


def tabulate(
    task: Task, data: ImageData, *, versions: int, augment: Augment, quiet: bool = False
) -> tuple[Recorded, ImageData]:
    """Return a task that looks up what a table holds, and the data whose images are tickets to it.

    Of a task that looks at pieces the table holds these encoded, of others the outcome of every way through.

    Args:
        task: With few ways through, or one that looks at pieces.
        data: As for `keep`, like the others.
        versions: Of each of the policy's images.
        augment: Of the policy's images.
        quiet: Say nothing.

    Raises:
        ValueError: If the task has too many ways through, or there is no room.
    """
    return keep(task.record(), data, versions=versions, augment=augment, quiet=quiet)


def keep(
    record: Record, data: ImageData, *, versions: int, augment: Augment, quiet: bool = False
) -> tuple[Recorded, ImageData]:
    """Return a task that looks up what a file keeps, and the data whose images are tickets to it.

    The file lies in the cache under a name made of backbone, task and images. One that a killed process has left
    unfinished is gone on with; one of another size than it says is made anew.

    Args:
        record: Of the task, for instance `Prefix(task)`: what is kept of each image.
        data: Policy, validation and test parts are kept, for the task's backbone.
        versions: Of each of the policy's images, varied by `augment`; 1 where that changes nothing.
        augment: Of the policy's images.
        quiet: Say nothing.

    Raises:
        ValueError: If there is no room, or an image is unlike what the record expects.
    """
    rows = Rows.of(data, versions if augment else 1, augment)
    file = TableFile(cache_dir() / "tables", _key(record, data, rows), record, len(rows))
    _say(quiet, f"{record.option}: {file.describe()}")
    with FileLock(file.path.with_suffix(".lock")):
        file.fill(_batches(record, rows, file.begin(), quiet))
    return record.open(file.open(), rows.images, rows.source), _ticketed(data, rows)


class TableFile:
    """One record: numbers in a memory-mapped file, and a page that says how much of it is done.

    Args:
        directory: Of all files.
        key: Names this one.
        record: What a row holds.
        count: Rows.
    """

    def __init__(self, directory: Path, key: str, record: Record, count: int):
        self.path, self.page = directory / f"{key}.f32", directory / f"{key}.json"
        self.record, self.count, self.width = record, count, record.width
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def size(self) -> int:
        """Bytes."""
        return 4 * self.count * self.width

    def describe(self) -> str:
        """Return what it will hold, and how large it is."""
        task = self.record.task
        name = env_id(task.name) if task.name else type(task).__name__
        kept = f"{self.count:,} images x {self.record.describe()} of {name}"
        return f"{kept}, {self.size / 1e6:,.1f} MB in {self.path}"

    def begin(self) -> int:
        """Return how many rows are done, and make room for the others.

        Raises:
            ValueError: If there is no room.
        """
        if self.path.is_file() and self.path.stat().st_size == self.size and self._told() is not None:
            return int(self._told() or 0)
        try:
            with self.path.open("wb") as file:
                _reserve(file.fileno(), self.size)
        except OSError as error:
            self.path.unlink(missing_ok=True)
            raise ValueError(
                f"{self.record.option} {self.path}: expected room for {self.size / 1e9:.1f} GB, got {error}. Set "
                f"SKIPGYM_CACHE to a directory with room, or ask for fewer versions (--{self.record.option})."
            ) from error
        self._tell(0)
        return 0

    def fill(self, batches: Iterator[tuple[int, Tensor]]) -> None:
        """Write rows as they come; each batch is told only when it is on the disk."""
        for start, seen in batches:
            rows = seen.cpu().numpy()
            array = self._map("r+")
            array[start : start + len(rows)] = rows
            array.flush()
            self._tell(start + len(rows))

    def open(self) -> Tensor:
        """Return the rows. Shape (N, width)."""
        return torch.from_numpy(self._map("c"))  # copy on write: nothing that reads it can change the file

    def _map(self, mode: Any) -> np.memmap:
        return np.memmap(self.path, np.float32, mode, shape=(self.count, self.width))

    def _told(self) -> int | None:
        """Return how many rows the page says are done; None where there is none, or of another table."""
        try:
            content = json.loads(self.page.read_text(encoding="utf-8"))
            same = all(content[key] == value for key, value in self.record.page.items())
            return int(content["done"]) if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _tell(self, done: int) -> None:
        part = self.page.with_suffix(".part")
        content = {"rows": self.count, "width": self.width, "done": done, **self.record.page}
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")
        os.replace(part, self.page)


def _batches(record: Record, rows: Rows, start: int, quiet: bool) -> Iterator[tuple[int, Tensor]]:
    silent = True if quiet else None
    bar = tqdm(desc=record.option, total=len(rows), initial=start, unit="image", leave=False, disable=silent)
    with bar:
        for first in range(start, len(rows), BATCH):
            images = rows.batch(first)
            yield first, record.rows(images)
            bar.update(len(images))


def _ticketed(data: ImageData, rows: Rows) -> ImageData:
    """Return the data with tickets for the images of the tabulated parts."""
    versions = rows.varied // len(data.policy)
    sizes = [rows.varied, len(data.val), len(data.test)]
    labels = [data.policy.labels.repeat(versions), data.val.labels, data.test.labels]
    numbers = torch.arange(len(rows)).split(sizes)
    parts = {name: Part(tickets(n), label) for name, n, label in zip(PARTS, numbers, labels, strict=True)}
    return replace(data, **parts, varied=True)


def _key(record: Record, data: ImageData, rows: Rows) -> str:
    """Return a name that differs wherever a row could."""
    task = record.task
    content = [
        REVISION,
        type(task).__module__,
        type(task).__qualname__,
        sorted(task.options.items(), key=str),
        task.backbone.identity(),
        task.backbone.mean,
        task.backbone.std,
        data.fingerprint,
        len(data.policy),
        rows.varied,
        str(rows.augment),
    ]
    name = (task.name or "task") + ("" if record.option == Record.option else f"-{record.option}")
    return f"{name}-{hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]}"


def _reserve(descriptor: int, size: int) -> None:
    """Make a file so long, with the room for it where the system can promise that."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _say(quiet: bool, line: str) -> None:
    if not quiet:
        print(line)
