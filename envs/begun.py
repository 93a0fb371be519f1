"""A task whose inputs have been through what every image goes through before the first decision."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .choice import Choice
from .recorded import Column, Record, Recorded
from .state import State
from .task import Task

Shapes = Mapping[str, tuple[int, ...]]
"""Of one row of what a state holds: first of its features, under no name, then of what it carries along."""


class Begun(Recorded):
    """A task that begins from stored features instead of images, for the images that a file holds.

    From the first decision on everything is computed, by the live task; so any learner can take it. It shows, answers
    and charges what the live task would, but for rounding: rows stand in other batches.

    Args:
        live: The task whose beginnings were stored.
        shapes: Of what it begins with.
        begun: What it has spent by then, in MACs of one input.
        rows: A row for each image, as `Prefix.rows` gives it; may be a memory-mapped file. Shape (N, width).
        images: The originals, uint8. Shape (M, C, H, W), or of clips (M, T, C, H, W).
        source: Which of `images` a row was made of. Shape (N,).
    """

    def __init__(self, live: Task, shapes: Shapes, begun: float, rows: Tensor, images: Tensor, source: Tensor):
        super().__init__(live, images, source)
        self.spares_features = live.spares_features  # they are looked up anew for each episode
        self.shapes, self.begun, first = shapes, begun, 0
        self.columns: list[Column] = []
        for size in (*map(_size, shapes.values()), live.backbone.num_classes):
            self.columns.append(Column(rows, first, (size,)))
            first += size

    def untouched(self, images: Tensor) -> Tensor:
        rows = self.prepare(images).to(self.device)
        return self.columns[-1].look(rows, torch.zeros_like(rows))

    def stays_in_view(self, position: int) -> bool:
        return self.live.stays_in_view(position)

    def begin(self, inputs: Tensor) -> State:
        """Recall what the live task begins with, for row numbers. Shape (N,)."""
        numbers = inputs.to(self.device)
        found = [column.look(numbers, torch.zeros_like(numbers)) for column in self.columns[:-1]]
        features, *others = (_laid_out(flat, shape) for flat, shape in zip(found, self.shapes.values(), strict=True))
        memory = dict(zip(list(self.shapes)[1:], others, strict=True))
        return State.start(features, macs=self.begun, **memory)

    def observe(self, state: State) -> Tensor:
        return self.live.observe(state)

    def answer_now(self, state: State) -> Tensor:
        return self.live.answer_now(state)

    def step(self, state: State, choice: Choice) -> State | list[State]:
        return self.live.step(state, choice)


class Prefix(Record):
    """Of each image the state before the first decision, and the untouched network's answer.

    Args:
        task: That computes something before its first decision, and charges every image alike for it.

    Raises:
        ValueError: If it does not.
    """

    option = "prefix"

    def __init__(self, task: Task):
        self.task = task
        start = self._start(task.blank())
        self.begun = float(start.macs[0])
        if not self.begun:
            raise self._unfit("to compute something before the first decision", "nothing")
        self.shapes = {name: tuple(one.shape[1:]) for name, one in _parts(start).items()}
        self.width = sum(map(_size, self.shapes.values())) + task.backbone.num_classes

    @property
    def page(self) -> dict[str, Any]:
        return {"begins": [[name, list(shape)] for name, shape in self.shapes.items()], "begun": self.begun}

    def describe(self) -> str:
        return f"{self.width:,} numbers after the first {self.begun / self.task.full_macs:.1%} of the MACs"

    @torch.inference_mode()
    def rows(self, images: Tensor) -> Tensor:
        """Return what images begin with, and the untouched network's answer to them.

        Raises:
            ValueError: If they do not begin as the blank one did.
        """
        start = self._start(images)
        if bool((start.macs != self.begun).any()):
            got = f"{float(start.macs.min()):,.0f} to {float(start.macs.max()):,.0f} MACs"
            raise self._unfit(f"to charge every image {self.begun:,.0f} MACs before the first decision", got)
        return torch.cat([*map(_flat, _parts(start).values()), self.task.untouched(images)], 1)

    def open(self, rows: Tensor, images: Tensor, source: Tensor) -> Begun:
        return Begun(self.task, self.shapes, self.begun, rows, images, source)

    @torch.inference_mode()
    def _start(self, images: Tensor) -> State:
        """Return the state before the first decision.

        Raises:
            ValueError: If a row of numbers would not hold it.
        """
        start = self.task.begin(self.task.prepare(images))
        if start.answer is not None or bool((start.alive != 1).any()):
            raise self._unfit("not to answer before the first decision", "answers")
        for name, one in _parts(start).items():
            if one.dtype != torch.float32:
                got = f"{one.dtype} for {name or 'features'}"
                raise self._unfit("to begin with numbers of single precision", got)
        return start

    def _unfit(self, expected: str, got: str) -> ValueError:
        return ValueError(f"prefix: expected {self.task.name} {expected}, got {got}. Run it live (--prefix 0).")


def _parts(state: State) -> dict[str, Tensor]:
    """Return what a state holds of each row: its features, under no name, and what it carries along."""
    return {"": state.features, **state.memory}


def _size(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _flat(x: Tensor) -> Tensor:
    """Return one stretch of numbers for each row; of maps pixel by pixel, as convolutions want them."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).flatten(1) if x.dim() > 1 else x.unsqueeze(1)


def _laid_out(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return what `_flat` was given. Shape (N, numbers) to (N, *shape)."""
    if len(shape) != 3:
        return flat.reshape(-1, *shape)
    channels, height, width = shape
    return flat.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
