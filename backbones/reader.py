"""Readers: what makes an answer of a glance and of crops, one after the other; how they are kept beside a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cost import count_macs

MemoryKind = Literal["gru", "mean"]

PLACE = 3
"""How many numbers tell where a crop was: row and column of its centre, -1 … 1, and the logarithm of its zoom."""


class Reader(nn.Module):
    """A memory of what was seen, and a classifier on it.

    A glance, then each crop, comes as the pooled features of a frozen network. With `gru` a recurrent cell remembers
    them (Glance and Focus, Wang et al. 2020); with `mean` their projections are averaged, whatever the order.

    Args:
        width: Channels of the network's last feature map.
        num_classes: Outputs.
        glance: Side of the scaled-down image, in pixels.
        patch: Side of a crop, in pixels.
        scales: Concentric squares of a crop, see `glimpses.crop`.
        zooms: Largest number of zooms, 1, 2, 4, …, that it was trained for.
        memory: Kind of memory.
        hidden: Width.

    Attributes:
        memory_size: Numbers that are remembered of an input.
        glance_macs: Cost of reading a glance and answering, in MACs of one input. Likewise `crop_macs`.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        glance: int,
        patch: int,
        scales: int = 1,
        zooms: int = 1,
        memory: MemoryKind = "gru",
        hidden: int = 64,
    ):
        super().__init__()
        if memory not in get_args(MemoryKind):
            raise ValueError(f"memory: expected one of {', '.join(get_args(MemoryKind))}, got {memory!r}.")
        sizes = {"glance": glance, "patch": patch, "scales": scales, "zooms": zooms, "hidden": hidden}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}. Change it.")
        self.width, self.num_classes, self.glance, self.patch = width, num_classes, glance, patch
        self.scales, self.zooms, self.memory, self.hidden = scales, zooms, memory, hidden
        self.from_glance = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, hidden), nn.ReLU())
        self.norm = nn.BatchNorm1d(width * scales)
        self.from_crop = nn.Sequential(nn.Linear(width * scales + PLACE, hidden), nn.ReLU())
        self.cell = nn.GRUCell(hidden, hidden) if memory == "gru" else None
        self.linear = nn.Linear(hidden, num_classes)
        self.memory_size = hidden if memory == "gru" else hidden + 1  # the count of what was averaged
        self.eval()
        features, before = torch.zeros(1, width), torch.zeros(1, self.memory_size)
        self.glance_macs = count_macs(lambda x: self.answer(self.begin(x)), features)
        self.crop_macs = count_macs(
            lambda x: self.answer(self.read(before, x, torch.zeros(1, PLACE))), features.repeat(1, scales)
        )

    def begin(self, features: Tensor) -> Tensor:
        """Return the memory after the glance. Shape (N, width) to (N, memory_size)."""
        before = features.new_zeros((len(features), self.memory_size))
        return self._remember(before, self.from_glance(features))

    def read(self, memory: Tensor, features: Tensor, place: Tensor) -> Tensor:
        """Return the memory after one more crop.

        Args:
            memory: Shape (N, memory_size).
            features: Of all scales side by side. Shape (N, width x scales).
            place: From `glimpses.place_code`. Shape (N, PLACE).
        """
        return self._remember(memory, self.from_crop(torch.cat([self.norm(features), place], 1)))

    def answer(self, memory: Tensor) -> Tensor:
        """Return logits. Shape (N, memory_size) to (N, classes)."""
        if self.cell is not None:
            return self.linear(memory)
        return self.linear(memory[:, :-1] / memory[:, -1:].clamp(min=1))

    def _remember(self, memory: Tensor, x: Tensor) -> Tensor:
        return self.cell(x, memory) if self.cell is not None else memory + F.pad(x, (0, 1), value=1.0)

    @property
    def config(self) -> dict[str, Any]:
        """How to build it again (JSON)."""
        names = ("width", "num_classes", "glance", "patch", "scales", "zooms", "memory", "hidden")
        return {name: getattr(self, name) for name in names}


def reader_files(weights: Path) -> tuple[Path, Path]:
    """Return where the reader of these weights lies, and its card: `backbone.reader.safetensors`, `.reader.json`."""
    return weights.with_suffix(".reader.safetensors"), weights.with_suffix(".reader.json")


def reader_tensors(reader: Reader) -> dict[str, Tensor]:
    """Return the weights of a reader by name."""
    return {key: value.detach().cpu().contiguous() for key, value in reader.state_dict().items()}


def build_reader(described: Mapping[str, Any], state: Mapping[str, Tensor]) -> Reader:
    """Build a reader as its `config` describes it, with its weights.

    Raises:
        ValueError: If they do not fit.
    """
    try:
        reader = Reader(**described)
        reader.load_state_dict(dict(state))
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"reader: expected weights that fit {dict(described)}, got others ({error}).") from error
    return reader.eval()
