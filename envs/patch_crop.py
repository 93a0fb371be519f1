"""Where to look: a glance at the whole image scaled down, then crops of it in full, until enough was seen."""

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.glimpses import crop, encode, glance, place_code
from ..backbones.reader import PLACE, Reader
from ..backbones.reader_training import check_sides, crop_features
from ..data import ImageData
from .choice import Choice
from .exit_task import SIGNS, signs
from .outcomes import looking_paths
from .pooling import pool
from .state import State
from .task import Box, Task, register_task

MOST_PATHS = 4096
"""Up to so many ways through are all listed."""


class Place(NamedTuple):
    """Where a crop may be: row and column of its centre in pixels, and its width as a multiple of the patch."""

    row: float
    column: float
    zoom: int


@register_task("patch-crop")
class PatchCrop(Task):
    """Where to look next, and is it enough? (RAM, Mnih et al. 2014; Glance and Focus, Wang et al. 2020; AdaFocus).

    Description:
        The network has seen the image scaled down, and a reader has answered from that glance. Before each look the
        agent chooses: give the answer there is, or look at a crop of the image in full resolution, at one of the places
        of a grid. The frozen network encodes the crop, the reader remembers it beside what was seen before, and answers
        anew. Rows that have answered leave; the others go on as a smaller batch.
    Action space:
        `Discrete(1 + places)`: 0 answers now; 1 … places looks at that place, row by row from the upper left, at the
        narrowest zoom first. `places` = zooms x grid².
    Observation space:
        Of the present answer: largest probability, entropy (1: all classes alike), margin between the two largest
        probabilities, and the share of earlier answers that named the same class. Then the reader's memory; how often
        each place was looked at; and the last feature map of the glance, averaged over each of `cells` x `cells` cells,
        cell by cell of one channel after the other. The interpreter appends the position (one-hot) and, where it
        varies, the price.
    Episode end:
        With the first 0, or after `looks` crops.
    Cost:
        The network's stem and blocks on the glance, and for each crop on each of its scales; the reader after each.
        Scaling down and sampling crops are element-wise work, as activations are, and count nothing. `full_macs` is the
        untouched network on the whole image. No way through ends in that network (`reaches_full` is false): what
        is compared with it is its own row.

    The backbone carries the reader, trained on it frozen with crops in random places: `skipgym pretrain --patch` leaves
    it beside its weights, and for embedded data it is trained on first use. Images are sampled by averaging and
    bilinearly, so that gradients reach the pixels: gates trained by gradient see a mixture of crops.

    Arguments:
        glance: Side of the image scaled down, in pixels: the reader's; where one is trained, by default half the image.
        patch: Likewise, side of a crop.
        grid: Places on a side; crops there reach from edge to edge.
        looks: Crops at most.
        zooms: Widths of crops to choose among: patch, twice that, …, at the same number of pixels.
        scales: Concentric squares of one crop, each twice as wide as the one before: RAM's retina.
        memory: The reader's: `gru` or `mean`.
        cells: On a side of the glance's features, as the policy sees them.
    Version history:
        v0: first.
    """

    has_exits = True
    alike = True
    reaches_full = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        glance: int | None = None,
        patch: int | None = None,
        grid: int = 3,
        looks: int = 3,
        zooms: int | None = None,
        scales: int | None = None,
        memory: str | None = None,
        cells: int = 4,
    ):
        super().__init__(backbone)
        for name, value, most in (("grid", grid, 16), ("looks", looks, 32), ("cells", cells, 16)):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name}: expected 1 … {most}, got {value!r}. Change it.")
        asked = {"glance": glance, "patch": patch, "zooms": zooms, "scales": scales, "memory": memory}
        reader = _reader_of(self.backbone, asked)
        self.grid, self.cells, self.horizon = grid, cells, looks
        self.places = grid_places(self.backbone.input_shape[1:], reader.patch, grid, reader.zooms)
        self.decisions = (1 + len(self.places),)
        seen, looked = check_sides(self.backbone, reader.glance, reader.patch, reader.zooms)
        self.least_macs = seen + reader.glance_macs
        self.look_macs = reader.scales * looked + reader.crop_macs
        if self.least_macs >= self.backbone.full_macs:
            raise ValueError(
                f"glance: expected one that costs less than {backbone.name} on the whole image, {self.full_macs:,} "
                f"MACs, got {self.least_macs:,} at {reader.glance} pixels. Choose a smaller one, or take larger images."
            )
        classes, maps = self.backbone.num_classes, self.backbone.blocks[-1].out_shape[0] * cells**2
        self.row_sizes = [prod(self.backbone.input_shape), reader.memory_size, classes]
        self.crop_shape = (reader.scales, self.backbone.input_shape[0], reader.patch, reader.patch)
        self.observation_shape = (SIGNS + reader.memory_size + len(self.places) + maps,)

    @classmethod
    def furnish(cls, backbone: Backbone, data: ImageData, **options: Any) -> Backbone:
        """Return a backbone with a reader: its own, or for embedded data one trained on first use."""
        if backbone.reader is not None:
            return backbone
        from ..backbones.pretrain import pretrained_reader

        half = max(1, min(backbone.input_shape[1:]) // 2)
        asked = {name: options.get(name) for name in ("glance", "patch", "zooms", "scales", "memory")}
        shape = {"glance": half, "patch": half} | {name: value for name, value in asked.items() if value is not None}
        return pretrained_reader(backbone, data, **shape)

    @property
    def reader(self) -> Reader:
        """The backbone's reader, which stays as frozen as that."""
        return _reader_of(self.backbone, {})

    @property
    def most_macs(self) -> int:
        return self.least_macs + self.horizon * self.look_macs

    @property
    def onward(self) -> tuple[int, ...]:
        """The centre, the corners, then the places by their distance from the centre; again from the beginning."""
        size = self.backbone.input_shape[1:]
        order = sorted(range(self.grid**2), key=lambda i: _distance(self.places[i], size))
        corners = [self.grid * row + column for row in (0, self.grid - 1) for column in (0, self.grid - 1)]
        fixed = list(dict.fromkeys([order[0], *corners, *order]))
        return tuple(1 + fixed[i % len(fixed)] for i in range(self.horizon))

    @property
    def paths(self) -> list[tuple[int, ...]] | None:
        """All ways through where they are few; else None."""
        paths, whole = looking_paths(len(self.places), self.horizon, MOST_PATHS)
        return paths if whole else None

    @property
    def pieces(self) -> list[str]:
        return [f"look {index}" for index in range(1, self.horizon + 1)]

    def region(self, piece: int, option: int) -> Box | None:
        """Return the square of a look, the widest of its scales."""
        if option == 0:
            return None
        place = self.places[option - 1]
        side = float(self.reader.patch * place.zoom * 2 ** (self.reader.scales - 1))
        return place.row - side / 2, place.column - side / 2, side, side

    def begin(self, inputs: Tensor) -> State:
        """Glance at the image, and answer from that."""
        maps = encode(self.backbone, glance(inputs, self.reader.glance))
        memory = self.reader.begin(maps.mean((2, 3)))
        logits = self.reader.answer(memory)
        return State.start(
            torch.cat([inputs.flatten(1), memory, logits], 1),
            macs=self.least_macs,
            votes=torch.zeros_like(logits),
            looked=logits.new_zeros((len(inputs), len(self.places))),
            maps=pool(maps, maps.shape[1] * self.cells**2, self.cells),
        )

    def answer_now(self, state: State) -> Tensor:
        """Return the logits of the last look."""
        return self._parts(state.features)[2]

    def observe(self, state: State) -> Tensor:
        """Return what the answer looks like, what is remembered, where was looked, and what the glance showed."""
        _, memory, logits = self._parts(state.features)
        seen = signs(logits, state.memory["votes"], state.position)
        return torch.cat([seen, memory, state.memory["looked"], state.memory["maps"]], 1)

    def step(self, state: State, choice: Choice) -> State:
        """Let rows leave with the answer that they have, and look where the others choose."""
        before, count = self.answer_now(state), len(self.places)
        taken = torch.stack([choice.weight(option) for option in range(1, count + 1)], 1)
        branches = [self._leave, *(partial(self._cut, place) for place in self.places)]
        onward = choice.binary()
        x = onward.only(1, self._look, choice.among(branches, state.features), (sum(self.row_sizes),))
        state = state.advance(
            x,
            macs=onward.cost([0, self.look_macs]),
            votes=state.memory["votes"] + F.one_hot(before.argmax(1), before.shape[1]),
            looked=state.memory["looked"] + taken,
        )
        state = state.finish(before, when=choice.weight(0))
        return state if state.position < self.horizon else state.finish(self.answer_now(state))

    def _parts(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return images as flat rows, the reader's memory, and logits."""
        image, memory, logits = rows.split(self.row_sizes, 1)
        return image, memory, logits

    def _cut(self, place: Place, rows: Tensor) -> Tensor:
        """Return rows of `[1 | place | crop | state]`; under mixtures the first is the share that goes on."""
        images = self._parts(rows)[0].view(-1, *self.backbone.input_shape)
        centres = images.new_tensor([place.row, place.column]).expand(len(images), -1)
        cut = crop(images, centres, self.reader.patch, zoom=place.zoom, scales=self.reader.scales)
        code = place_code(centres, place.zoom, images.shape[2:])
        return torch.cat([code.new_ones((len(rows), 1)), code, cut.flatten(1), rows], 1)

    def _leave(self, rows: Tensor) -> Tensor:
        """Return rows like those of `_cut`, of those that look nowhere."""
        return F.pad(rows, (1 + PLACE + prod(self.crop_shape), 0))

    def _look(self, rows: Tensor) -> Tensor:
        """Encode what was cut out, remember it and answer."""
        share, place, cut, state = rows.split([1, PLACE, prod(self.crop_shape), sum(self.row_sizes)], 1)
        share = share.clamp(min=1e-6)  # the crop of those who go on is not dimmed by those who do not
        image, memory, _ = self._parts(state)
        features = crop_features(self.backbone, (cut / share).view(-1, *self.crop_shape))
        memory = self.reader.read(memory, features, place / share)
        return torch.cat([image, memory, self.reader.answer(memory)], 1)


def grid_places(size: Sequence[int], patch: int, grid: int, zooms: int) -> list[Place]:
    """Return the places of a grid of crops that reaches from edge to edge, row by row, the narrowest zoom first.

    Args:
        size: Height and width of the images.
        patch: Side of a crop at zoom 1.
        grid: Places on a side; a single one is in the middle.
        zooms: How many zooms there are.
    """
    places = []
    for zoom in (2**power for power in range(zooms)):
        extent = patch * zoom
        rows, columns = (
            [extent / 2 + (side - extent) * (i / (grid - 1) if grid > 1 else 0.5) for i in range(grid)] for side in size
        )
        places += [Place(row, column, zoom) for row in rows for column in columns]
    return places


def _reader_of(backbone: Backbone, asked: Mapping[str, Any]) -> Reader:
    """Return the reader that a backbone carries.

    Raises:
        ValueError: If there is none, or it is another than was asked for.
    """
    reader = backbone.reader
    if reader is None:
        raise ValueError(
            f"patch-crop: expected a backbone with a reader, got {backbone.name} with none. Train one: skipgym "
            f"pretrain --backbone {backbone.name} --init WEIGHTS --data … --glance … --patch … --out DIR, then "
            "--weights DIR/backbone.safetensors; in Python backbone.with_reader(…)."
        )
    for name, value in asked.items():
        if value is not None and value != getattr(reader, name):
            raise ValueError(
                f"{name}: expected {getattr(reader, name)}, as the reader of {backbone.name} was trained, got "
                f"{value!r}. Leave it out, or train another reader."
            )
    return reader


def _distance(place: Place, size: Sequence[int]) -> tuple[int, float]:
    """Return by what places are looked at in a fixed order: the zoom, and how far from the middle they are."""
    return place.zoom, (place.row - size[0] / 2) ** 2 + (place.column - size[1] / 2) ** 2
