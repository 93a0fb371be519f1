"""A task that looks at pieces which the network has encoded before: what they are, not what comes of them, is kept."""

from typing import Any

import torch
from torch import Tensor

from ..backbones.reader import Reader
from .choice import Choice
from .look_task import Looking, LookTask
from .recorded import Column, Record, Recorded
from .state import State


class Encoded(Recorded, Looking):
    """A task whose pieces stand in a table as its reader remembers them, for the images that the table holds.

    Whatever their number, ways through it cost no more than the reader's memory: it is computed, the network is not.
    It shows, answers and charges what the live task would, but for rounding: rows stand in other batches.

    Under mixtures it remembers a mixture of sights, where the live task encodes a mixture of pieces.

    Args:
        live: The task that was encoded.
        rows: A row for each image, as `Sights.rows` gives it; may be a memory-mapped file. Shape (N, width).
        images: The originals, uint8. Shape (M, C, H, W), or of clips (M, T, C, H, W).
        source: Which of `images` a row was made of. Shape (N,).
    """

    def __init__(self, live: LookTask, rows: Tensor, images: Tensor, source: Tensor):
        super().__init__(live, images, source)
        self.looker, self.look_costs, self.signs_only = live, live.look_costs, live.signs_only
        self.row_sizes = [0, *live.row_sizes[1:]]
        first, shown, sights, answers = sizes(live)
        self.at_first = Column(rows, 0, (first + shown,))
        self.sights = Column(rows, first + shown, (first,))
        self.all_sights = Column(rows, first + shown, (sights // first, first))
        self.answers = Column(rows, first + shown + sights, (answers,))

    @property
    def reader(self) -> Reader:
        return self.looker.reader

    def untouched(self, images: Tensor) -> Tensor:
        rows = self.prepare(images).to(self.device)
        return self.answers.look(rows, torch.zeros_like(rows))

    def begin(self, inputs: Tensor) -> State:
        """Recall what is there at first, for row numbers, and answer from that. Shape (N,)."""
        numbers = inputs.to(self.device)
        found = self.at_first.look(numbers, torch.zeros_like(numbers))
        sight, shown = found.split([self.sights.size, found.shape[1] - self.sights.size], 1)
        return self.start(found[:, :0], sight, shown, number=numbers)

    def glimpse(self, state: State, choice: Choice, onward: Choice) -> Tensor:
        """Recall what each row chose, and remember it."""
        return self._recall(onward, self._recalled(state.memory["number"], choice), state.features)

    def _recalled(self, numbers: Tensor, choice: Choice) -> Tensor:
        """Return the sight that each row chose, or the mixture. Shape (N, sight_size)."""
        count = self.decisions[0]
        taken = choice.taken(count)
        if taken is not None:
            return self.sights.look(numbers, (taken - 1).clamp(min=0))
        weights = torch.stack([choice.weight(option) for option in range(1, count)], 1)
        share = weights.sum(1, keepdim=True).clamp(min=1e-6)  # of those who go on: the others have answered
        sights = self.all_sights.look(numbers, torch.zeros_like(numbers))
        return ((weights / share).unsqueeze(2) * sights).sum(1)


class Sights(Record):
    """Of each image what the reader remembers at first and of each piece, and the untouched network's answer."""

    def __init__(self, task: LookTask):
        self.task: LookTask = task  # pyright: ignore[reportIncompatibleVariableOverride] it is not assigned again
        self.width = sum(sizes(task))

    @property
    def page(self) -> dict[str, Any]:
        return {"sights": sizes(self.task)}

    def describe(self) -> str:
        return f"{self.task.decisions[0] - 1:,} encoded pieces"

    @torch.inference_mode()
    def rows(self, images: Tensor) -> Tensor:
        sight, shown, pieces = self.task.encode(images)
        return torch.cat([sight, shown, pieces.flatten(1), self.task.untouched(images)], 1)

    def open(self, rows: Tensor, images: Tensor, source: Tensor) -> Encoded:
        return Encoded(self.task, rows, images, source)


def sizes(task: LookTask) -> list[int]:
    """Return how many numbers each part of a row has: first sight, what is shown, sights of all pieces, answer."""
    pieces, size = task.decisions[0] - 1, task.reader.sight_size
    return [size, task.shown_size, pieces * size, task.backbone.num_classes]
