"""Tasks that look up what their images would show: what they have in common, whatever was computed once."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .task import Box, Task


class Recorded(Task):
    """A task that takes tickets for images: the number of a record's row as 8 bytes, an image of 1 x 1 x 8.

    What it declares is what the live task does; a controller that is saved with it is the live task's.

    Args:
        live: The task that was recorded.
        images: The originals, uint8. Shape (M, C, H, W), or of clips (M, T, C, H, W).
        source: Which of `images` a row was made of. Shape (N,).
    """

    def __init__(self, live: Task, images: Tensor, source: Tensor):
        super().__init__(live.backbone)
        self.live, self.images, self.source = live, images, source
        self.name, self.options, self.has_exits = live.name, live.options, live.has_exits
        self.horizon, self.decisions = live.horizon, live.decisions
        self.observation_shape, self.least_macs = live.observation_shape, live.least_macs
        self.alike, self.reaches_full, self.adds_up = live.alike, live.reaches_full, live.adds_up
        self.coordinates, self.has_masks = live.coordinates, live.has_masks

    @property
    def underlying(self) -> Task:
        return self.live

    @property
    def full_macs(self) -> int:
        return self.live.full_macs

    @property
    def most_macs(self) -> int:
        return self.live.most_macs

    @property
    def paths(self) -> list[tuple[int, ...]] | None:
        return self.live.paths

    @property
    def pieces(self) -> list[str]:
        return self.live.pieces

    @property
    def onward(self) -> tuple[int, ...]:
        return self.live.onward

    @property
    def rules(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        return self.live.rules

    def called(self, actions: Tensor) -> dict[str, list[int]]:
        return self.live.called(actions)

    def region(self, piece: int, option: int) -> Box | None:
        return self.live.region(piece, option)

    def regions(self, actions: Sequence[int], places: Tensor | None = None) -> list[Box]:
        return self.live.regions(actions, places)

    def masks(self, image: Tensor, actions: Sequence[int]) -> dict[str, Tensor]:
        return self.live.masks(self._originals(image.unsqueeze(0))[0], actions)

    def prepare(self, images: Tensor) -> Tensor:
        """Return the row numbers that tickets name. Shape (N, 1, 1, 8) to (N,)."""
        return images.contiguous().view(torch.int64).flatten()

    def check_images(self, images: Tensor) -> None:
        """Raise a ValueError unless these are tickets of this table."""
        if images.dtype != torch.uint8 or images.shape[1:] != (1, 1, 8):
            raise ValueError(
                f"images: expected tickets of a table, uint8 of 1 x 1 x 8, got {images.dtype} of "
                f"{' x '.join(map(str, images.shape[1:]))}. For other images load the controller that was saved."
            )

    def blank(self) -> Tensor:
        return tickets(torch.zeros(1, dtype=torch.long))

    def executed(
        self, image: Tensor, actions: Sequence[int], *, places: Tensor | None = None, frames: Sequence[int] = ()
    ) -> list[str]:
        return self.live.executed(self._originals(image.unsqueeze(0))[0], actions, places=places, frames=frames)

    def pictures(self, images: Tensor) -> Tensor:
        return self.live.pictures(self._originals(images))

    def _originals(self, images: Tensor) -> Tensor:
        """Return what tickets were written for."""
        return self.images[self.source[self.prepare(images).cpu()]]


class Record(ABC):
    """What is kept of a task's images, a row for each, and how it is read again.

    Attributes:
        option: Of the commands, by which it is asked for.
        task: Whose images they are.
        width: Numbers in a row.
    """

    option: str = "table"
    task: Task
    width: int

    @property
    @abstractmethod
    def page(self) -> dict[str, Any]:
        """What a row means (JSON): a file whose rows mean anything else is made anew."""

    @abstractmethod
    def describe(self) -> str:
        """Return what a row holds, for people."""

    @abstractmethod
    def rows(self, images: Tensor) -> Tensor:
        """Return the rows of images, as the task's `prepare` takes them. Shape (N, width)."""

    @abstractmethod
    def open(self, rows: Tensor, images: Tensor, source: Tensor) -> Recorded:
        """Return the task that looks up these rows, of these images; see `Recorded`."""


class Column:
    """Entries of one kind in the rows of a table.

    Args:
        rows: The table; may be a memory-mapped file. Shape (N, width), contiguous.
        first: Where in a row the entries begin.
        shape: Of one entry.
    """

    def __init__(self, rows: Tensor, first: int, shape: Sequence[int]):
        self.first, self.shape, self.width = first, tuple(shape), rows.shape[1]
        self.size = torch.Size(shape).numel()
        # a window on every place at which an entry could begin: to select windows is several times as fast as to index
        # rows and entries
        self.windows = rows.as_strided((rows.numel() - self.size + 1, self.size), (1, 1))

    def look(self, rows: Tensor, places: Tensor) -> Tensor:
        """Return the entry at a place of each of these rows, on their device. Shapes (N,), (N,) to (N, *shape)."""
        begin = rows * self.width + places * self.size + self.first
        found = self.windows.index_select(0, begin.cpu()).to(rows.device)
        return found.unflatten(1, self.shape) if len(self.shape) > 1 else found


def tickets(numbers: Tensor) -> Tensor:
    """Return row numbers as images. Shape (N,), int64, to (N, 1, 1, 8), uint8."""
    return numbers.contiguous().view(torch.uint8).view(-1, 1, 1, 8)
