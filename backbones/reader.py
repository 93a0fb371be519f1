"""Readers: what makes an answer of crops, or of frames, one after the other; how they are kept beside a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cost import count_macs
from .recurrent import Recurrent

MemoryKind = Literal["gru", "mean"]

PLACE = 3
"""How many numbers tell where a crop was: row and column of its centre, -1 … 1, and the logarithm of its zoom."""


TIME = 1
"""Likewise, when a frame was: -1 … 1."""

SHAPES = {"crops": ("glance", "patch", "scales", "zooms"), "frames": ("moments", "preview")}
"""What says how each kind of view is cut out."""


class Reader(nn.Module):
    """A memory of what was seen, and a classifier on it.

    It sees crops of an image, after a glance at all of it, where `glance` and `patch` are given; frames of a clip,
    after a preview of all of them, where `moments` and `preview` are. A glance, a crop or a frame comes as the pooled
    features of a frozen network, a preview as pixels. With `gru` a recurrent cell remembers
    them (Glance and Focus, Wang et al. 2020); with `mean` their projections are averaged, whatever the order.

    Args:
        width: Channels of the network's last feature map.
        num_classes: Outputs.
        glance: Side of the scaled-down image, in pixels.
        patch: Side of a crop, in pixels.
        scales: Concentric squares of a crop, see `glimpses.crop`.
        zooms: Largest number of zooms, 1, 2, 4, …, that it was trained for.
        moments: Frames of a clip to choose among, evenly spread.
        preview: Side of each of these scaled down, in pixels, see `moments.preview`.
        memory: Kind of memory.
        hidden: Width.

    Attributes:
        kind: `crops` or `frames`.
        memory_size: Numbers that are remembered of an input.
        glance_macs: Cost of reading a glance or a preview and answering, in MACs of one input.
        look_macs: Likewise, of reading a crop or a frame.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        glance: int = 0,
        patch: int = 0,
        scales: int = 1,
        zooms: int = 1,
        moments: int = 0,
        preview: int = 0,
        memory: MemoryKind = "gru",
        hidden: int = 64,
    ):
        super().__init__()
        if memory not in get_args(MemoryKind):
            raise ValueError(f"memory: expected one of {', '.join(get_args(MemoryKind))}, got {memory!r}.")
        self.width, self.num_classes, self.glance, self.patch = width, num_classes, glance, patch
        self.scales, self.zooms, self.memory, self.hidden = scales, zooms, memory, hidden
        self.moments, self.preview = moments, preview
        self.kind = "frames" if moments or preview else "crops"
        for name in (*SHAPES[self.kind], "hidden"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: expected a whole number of at least 1, got {getattr(self, name)!r}. Change it."
                )
        if self.kind == "frames" and (glance or patch or scales > 1 or zooms > 1):
            raise ValueError("reader: expected sizes of crops or of frames, got both. Leave one kind out.")
        first, code = (moments * preview**2, TIME) if self.kind == "frames" else (width, PLACE)
        self.from_glance = nn.Sequential(nn.BatchNorm1d(first), nn.Linear(first, hidden), nn.ReLU())
        self.norm = nn.BatchNorm1d(width * scales)
        self.from_crop = nn.Sequential(nn.Linear(width * scales + code, hidden), nn.ReLU())
        self.cell = nn.GRUCell(hidden, hidden) if memory == "gru" else None
        self.linear = nn.Linear(hidden, num_classes)
        self.memory_size = hidden if memory == "gru" else hidden + 1  # the count of what was averaged
        self.eval()
        before, when = torch.zeros(1, self.memory_size), torch.zeros(1, code)
        self.glance_macs = count_macs(lambda x: self.answer(self.begin(x)), torch.zeros(1, first))
        self.look_macs = count_macs(lambda x: self.answer(self.read(before, x, when)), torch.zeros(1, width * scales))

    def begin(self, features: Tensor) -> Tensor:
        """Return the memory after the glance or the preview. Shape (N, width or pixels) to (N, memory_size)."""
        before = features.new_zeros((features.shape[0], self.memory_size))
        return self._remember(before, self.from_glance(features))

    def read(self, memory: Tensor, features: Tensor, place: Tensor) -> Tensor:
        """Return the memory after one more crop or frame.

        Args:
            memory: Shape (N, memory_size).
            features: Of all scales side by side. Shape (N, width x scales).
            place: From `glimpses.place_code`, or `moments.time_code`. Shape (N, PLACE or TIME).
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
        names = ("width", "num_classes", *SHAPES[self.kind], "memory", "hidden")
        return {name: getattr(self, name) for name in names}


def reader_files(weights: Path) -> tuple[Path, Path]:
    """Return where the reader of these weights lies, and its card: `backbone.reader.safetensors`, `.reader.json`."""
    return weights.with_suffix(".reader.safetensors"), weights.with_suffix(".reader.json")


def reader_tensors(reader: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a reader by name."""
    return {key: value.detach().cpu().contiguous() for key, value in reader.state_dict().items()}


def check_asked(reader: nn.Module, asked: Mapping[str, Any], what: str) -> None:
    """Raise a ValueError unless a reader, called `what`, is as was asked for; None asks for nothing."""
    for name, value in asked.items():
        if value is not None and value != getattr(reader, name):
            raise ValueError(
                f"{name}: expected {getattr(reader, name)}, as {what} was trained, got {value!r}. Leave it out, or "
                "train another."
            )


def build_reader(described: Mapping[str, Any], state: Mapping[str, Tensor]) -> Reader | Recurrent:
    """Build a reader, or a recurrent network, as its `config` describes it, with its weights.

    Raises:
        ValueError: If they do not fit.
    """
    try:
        reader = (Recurrent if "cell" in described else Reader)(**described)
        reader.load_state_dict(dict(state))
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"reader: expected weights that fit {dict(described)}, got others ({error}).") from error
    return reader.eval()
