"""Readers: what makes an answer of crops, or of frames, one after the other; how they are kept beside a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cost import count_macs
from .recurrent import Recurrent

MemoryKind = Literal["gru", "mean", "slots"]

PLACE = 3
"""How many numbers tell where a crop was: row and column of its centre, -1 … 1, and the logarithm of its zoom."""


TIME = 1
"""Likewise, when a frame was: -1 … 1."""

SHAPES = {"crops": ("glance", "patch", "scales", "zooms"), "frames": ("moments", "preview", "sizes")}
"""What says how each kind of view is cut out."""


class Reader(nn.Module):
    """A memory of what was seen, and a classifier on it.

    It sees crops of an image, after a glance at all of it, where `glance` and `patch` are given; frames of a clip,
    after a preview of all of them, where `moments` and `preview` are. A glance, a crop or a frame comes as the pooled
    features of a frozen network, a preview as pixels. With `gru` a recurrent cell remembers
    them (Glance and Focus, Wang et al. 2020); with `mean` their projections are averaged, whatever the order; with
    `slots` the projection of a frame is kept at its moment's place, which tells a movement's beginning from its end,
    and what is seen twice changes nothing.

    Args:
        width: Channels of the network's last feature map.
        num_classes: Outputs.
        glance: Side of the scaled-down image, in pixels.
        patch: Side of a crop, in pixels.
        scales: Concentric squares of a crop, see `glimpses.crop`.
        zooms: Largest number of zooms, 1, 2, 4, …, that it was trained for.
        moments: Frames of a clip to choose among, evenly spread.
        preview: Side of each of these scaled down, in pixels, see `moments.preview`.
        sizes: Of a frame that it was trained for: as it is, half as wide and high, a quarter, ….
        memory: Kind of memory; `slots` for frames only.
        hidden: Width.
        dropout: Share of features, and of the memory, that is left out in training.

    Attributes:
        kind: `crops` or `frames`.
        memory_size: Numbers that are remembered of an input.
        code_size: Numbers that tell where, or when, a piece was.
        sight_size: Numbers that `sight` gives.
        shown_size: Numbers that `shown` gives.
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
        sizes: int = 1,
        memory: MemoryKind = "gru",
        hidden: int = 64,
        dropout: float = 0.0,
    ):
        super().__init__()
        if memory not in get_args(MemoryKind):
            raise ValueError(f"memory: expected one of {', '.join(get_args(MemoryKind))}, got {memory!r}.")
        self.width, self.num_classes, self.glance, self.patch = width, num_classes, glance, patch
        self.scales, self.zooms, self.memory, self.hidden = scales, zooms, memory, hidden
        self.moments, self.preview, self.sizes = moments, preview, sizes
        self.kind = "frames" if moments or preview else "crops"
        for name in (*SHAPES[self.kind], "hidden"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: expected a whole number of at least 1, got {getattr(self, name)!r}. Change it."
                )
        if self.kind == "frames" and (glance or patch or scales > 1 or zooms > 1):
            raise ValueError("reader: expected sizes of crops or of frames, got both. Leave one kind out.")
        if memory == "slots" and self.kind == "crops":
            raise ValueError("memory: expected gru or mean for crops, got slots, which are for frames. Choose another.")
        self.code_size = PLACE if self.kind == "crops" else TIME + (sizes > 1)  # and how often frames were halved
        first, code = moments * preview**2 if self.kind == "frames" else width, self.code_size
        self.from_glance = nn.Sequential(nn.BatchNorm1d(first), nn.Linear(first, hidden), nn.ReLU())
        self.norm = nn.BatchNorm1d(width * scales)
        self.from_crop = nn.Sequential(nn.Linear(width * scales + code, hidden), nn.ReLU())
        self.cell = nn.GRUCell(hidden, hidden) if memory == "gru" else None
        self.dropout = nn.Dropout(dropout)
        slots = moments + 1  # the last is the preview's
        kept = {"gru": hidden, "mean": hidden + 1, "slots": slots * (hidden + 1)}  # and what was counted, or filled
        self.memory_size, self.sight_size = kept[memory], hidden + (slots if memory == "slots" else 0)
        self.shown_size = num_classes if memory == "slots" else self.memory_size
        self.linear = nn.Linear(self.memory_size if memory == "slots" else hidden, num_classes)
        self.eval()
        before, when = torch.zeros(1, self.memory_size), torch.zeros(1, code)
        self.glance_macs = count_macs(lambda x: self.answer(self.begin(x)), torch.zeros(1, first))
        self.look_macs = count_macs(lambda x: self.answer(self.read(before, x, when)), torch.zeros(1, width * scales))

    def begin(self, features: Tensor) -> Tensor:
        """Return the memory after the glance or the preview. Shape (N, width or pixels) to (N, memory_size)."""
        return self.remember(None, self.first_sight(features))

    def read(self, memory: Tensor, features: Tensor, place: Tensor) -> Tensor:
        """Return the memory after one more crop or frame, see `sight`. Shape (N, memory_size)."""
        return self.remember(memory, self.sight(features, place))

    def first_sight(self, features: Tensor) -> Tensor:
        """Return what there is to remember of a glance or a preview. Shape (N, width or pixels) to (N, sight_size)."""
        norm, linear, relu = self.from_glance
        seen = relu(linear(self.dropout(norm(features))))
        return self._placed(seen, seen.new_full((seen.shape[0], 1), float(self.moments)))

    def sight(self, features: Tensor, place: Tensor) -> Tensor:
        """Return what there is to remember of a crop or a frame, whatever was seen before. Shape (N, sight_size).

        Args:
            features: Of all scales side by side. Shape (N, width x scales).
            place: From `glimpses.place_code`, or `moments.frame_code`. Shape (N, code_size).
        """
        seen = self.from_crop(torch.cat([self.dropout(self.norm(features)), place], 1))
        return self._placed(seen, (place[:, :1] + 1) / 2 * max(1, self.moments - 1))

    def remember(self, memory: Tensor | None, sight: Tensor) -> Tensor:
        """Return the memory after one more sight; the first, of a glance or a preview, finds none."""
        if memory is None:
            memory = sight.new_zeros((sight.shape[0], self.memory_size))
        if self.cell is not None:
            return self.cell(sight, memory)
        if self.memory == "mean":
            return memory + F.pad(sight, (0, 1), value=1.0)
        where, what = sight.split([self.moments + 1, self.hidden], 1)
        before = memory.unflatten(1, (self.moments + 1, -1))
        new = (where * (1 - before[:, :, -1])).unsqueeze(2) * F.pad(what, (0, 1), value=1.0).unsqueeze(1)
        return (before + new).flatten(1)

    def answer(self, memory: Tensor) -> Tensor:
        """Return logits. Shape (N, memory_size) to (N, classes)."""
        if self.memory == "mean":
            memory = memory[:, :-1] / memory[:, -1:].clamp(min=1)
        return self.linear(self.dropout(memory))

    def shown(self, memory: Tensor, logits: Tensor) -> Tensor:
        """Return what a policy sees of the memory: all of it; of slots, which are many, what is answered from them.

        Shapes (N, memory_size) and (N, classes) to (N, shown_size).
        """
        return logits.softmax(1) if self.memory == "slots" else memory

    def _placed(self, seen: Tensor, moment: Tensor) -> Tensor:
        """Return what was seen, and for slots before it how much of it belongs to each. Shapes (N, hidden), (N, 1)."""
        if self.memory != "slots":
            return seen
        slots = torch.arange(self.moments + 1, device=seen.device)
        return torch.cat([(1 - (moment - slots).abs()).clamp(min=0), seen], 1)  # between two moments some of both

    @property
    def config(self) -> dict[str, Any]:
        """How to build it again (JSON)."""
        names = ["width", "num_classes", *SHAPES[self.kind], "memory", "hidden"]
        if self.sizes == 1 and self.kind == "frames":
            names.remove("sizes")  # as it was before there were several
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
