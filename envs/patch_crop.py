"""Where to look: a glance at the whole image scaled down, then crops of it in full, until enough was seen."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.glimpses import crop, encode, glance, place_code
from ..backbones.reader_training import check_sides
from .choice import Choice
from .look_task import LookTask
from .pooling import pool
from .recorded import Record
from .state import State
from .task import Box, register_task


class Place(NamedTuple):
    """Where a crop may be: row and column of its centre in pixels, and its width as a multiple of the patch."""

    row: float
    column: float
    zoom: int


@register_task("patch-crop")
class PatchCrop(LookTask):
    """Where to look next, and is it enough? (RAM, Mnih et al. 2014; Glance and Focus, Wang et al. 2020; AdaFocus).

    Description:
        The network has seen the image scaled down, and a reader has answered from that glance. Before each look the
        agent chooses: give the answer there is, or look at a crop of the image in full resolution, at one of the places
        of a grid. The frozen network encodes the crop, the reader remembers it beside what was seen before, and answers
        anew. Rows that have answered leave; the others go on as a smaller batch.
    Action space:
        `Discrete(1 + places)`: 0 answers now; 1 … places looks at that place, row by row from the upper left, at the
        narrowest zoom first. `places` = zooms x grid².

        With `places="continuous"` `Box(-1, 1, (3,))`: the first number above 0 looks, otherwise the answer is given;
        the others are row and column of the crop's centre, -1 … 1 from where crops touch one edge to where they touch
        the other, as the grid does, at the narrowest zoom. RAM draws such places from a Gaussian of fixed width (Mnih
        et al. 2014); crops are bilinear, so that gradients reach them too (AdaFocus V2, Wang et al. 2022).
    Observation space:
        Of the present answer: largest probability, entropy (1: all classes alike), margin between the two largest
        probabilities, and the share of earlier answers that named the same class. Then the reader's memory; how often
        each place was looked at, or with continuous places the last of them; and the last feature map of the glance,
        averaged over each of `cells` x `cells` cells, cell by cell of one channel after the other. The interpreter
        appends the position (one-hot) and, where it varies, the price.
    Episode end:
        With the first 0, or after `looks` crops.
    Cost:
        The network's stem and blocks on the glance, and for each crop on each of its scales; the reader after each.
        Scaling down and sampling crops are element-wise work, as activations are, and count nothing. `full_macs` is the
        untouched network on the whole image. No way through ends in that network (`reaches_full` is false): what
        is compared with it is its own row.

    The backbone carries the reader, trained on it frozen with crops in random places: `skipgym pretrain --patch` leaves
    it beside its weights, and for embedded data it is trained on first use. Images are sampled by averaging and
    bilinearly, so that gradients reach the pixels: gates trained by gradient see a mixture of crops, or the crop at the
    place that they say. A choice that says no continuous place looks at the grid's: the centre, then the corners. So do
    the methods that learn no places: thresholds and the best fixed ways; `random` draws places evenly.

    Arguments:
        glance: Side of the image scaled down, in pixels: the reader's; where one is trained, by default half the image.
        patch: Likewise, side of a crop.
        grid: Places on a side; crops there reach from edge to edge. With continuous places, those of fixed ways.
        looks: Crops at most.
        places: `grid` to choose among those, or `continuous` to say where by numbers.
        zooms: Widths of crops to choose among: patch, twice that, …, at the same number of pixels.
        scales: Concentric squares of one crop, each twice as wide as the one before: RAM's retina.
        memory: The reader's: `gru` or `mean`.
        cells: On a side of the glance's features, as the policy sees them.
        signs_only: Whether the policy sees of the answer and of where was looked alone: where images are few, it then
            cannot learn them by heart.
    Version history:
        v0: first.
    """

    kind = "crops"
    most_paths = 4096

    def __init__(
        self,
        backbone: Backbone,
        *,
        glance: int | None = None,
        patch: int | None = None,
        grid: int = 3,
        looks: int = 3,
        places: Literal["grid", "continuous"] = "grid",
        zooms: int | None = None,
        scales: int | None = None,
        memory: str | None = None,
        cells: int = 4,
        signs_only: bool = False,
    ):
        super().__init__(backbone)
        self.signs_only = signs_only
        for name, value, most in (("grid", grid, 16), ("looks", looks, 32), ("cells", cells, 16)):
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name}: expected 1 … {most}, got {value!r}. Change it.")
        if places not in ("grid", "continuous"):
            raise ValueError(f"places: expected grid or continuous, got {places!r}. Change it.")
        asked = {"glance": glance, "patch": patch, "zooms": zooms, "scales": scales, "memory": memory}
        reader = self.reader_of(self.backbone, asked)
        self.grid, self.cells, self.coordinates = grid, cells, 2 if places == "continuous" else 0
        self.places = grid_places(self.backbone.input_shape[1:], reader.patch, grid, reader.zooms)
        seen, looked = check_sides(self.backbone, reader.glance, reader.patch, reader.zooms)
        self.set_looks(
            looks,
            options=1 if self.coordinates else len(self.places),
            macs=(seen, [reader.scales * looked]),
            source=self.backbone.input_shape,
            piece=(reader.scales, self.backbone.input_shape[0], reader.patch, reader.patch),
            shown=self.backbone.blocks[-1].out_shape[0] * cells**2,
        )
        if self.least_macs >= self.backbone.full_macs:
            raise ValueError(
                f"glance: expected one that costs less than {backbone.name} on the whole image, {self.full_macs:,} "
                f"MACs, got {self.least_macs:,} at {reader.glance} pixels. Choose a smaller one, or take larger images."
            )

    @classmethod
    def usual_reader(cls, backbone: Backbone) -> dict[str, int]:
        half = max(1, min(backbone.input_shape[1:]) // 2)
        return {"glance": half, "patch": half}

    @property
    def onward(self) -> tuple[int, ...]:
        """The centre, the corners, then the places by their distance from the centre; again from the beginning."""
        return (1,) * self.horizon if self.coordinates else tuple(1 + index for index in self._order)

    @property
    def _order(self) -> list[int]:
        """Which places are looked at in a fixed order, as many as looks."""
        size = self.backbone.input_shape[1:]
        order = sorted(range(self.grid**2), key=lambda i: _distance(self.places[i], size))
        corners = [self.grid * row + column for row in (0, self.grid - 1) for column in (0, self.grid - 1)]
        fixed = list(dict.fromkeys([order[0], *corners, *order]))
        return [fixed[i % len(fixed)] for i in range(self.horizon)]

    @property
    def rules(self) -> dict[str, list[tuple[int, ...]]]:
        """The centre, then the corners, as `onward` goes."""
        return {"centre": self.looking(self.onward)}

    def region(self, piece: int, option: int) -> Box | None:
        """Return the square of a look, the widest of its scales."""
        if option == 0:
            return None
        return self._square(self.places[self._order[piece] if self.coordinates else option - 1])

    def regions(self, actions: Sequence[int], places: Tensor | None = None) -> list[Box]:
        """Return the squares of all looks, in order."""
        if places is None:
            return super().regions(actions)
        said = [None if bool(place.isnan().any()) else place for place in self.centres(places)]
        boxes = [
            self.region(piece, 1) if place is None else self._square(Place(*place.tolist(), zoom=1))
            for piece, (action, place) in enumerate(zip(actions, said, strict=True))
            if action > 0
        ]
        return [box for box in boxes if box is not None]

    def executed(
        self, image: Tensor, actions: Sequence[int], *, places: Tensor | None = None, frames: Sequence[int] = ()
    ) -> list[str]:
        """Return the crops that were looked at, in order: size, and row and column of the centre, in pixels."""
        boxes = self.regions(actions, places)
        return [f"{h:g} x {w:g} at ({top + h / 2:.4g}, {left + w / 2:.4g})" for top, left, h, w in boxes]

    def _square(self, place: Place) -> Box:
        side = float(self.reader.patch * place.zoom * 2 ** (self.reader.scales - 1))
        return place.row - side / 2, place.column - side / 2, side, side

    def centres(self, places: Tensor) -> Tensor:
        """Return the centres of crops at continuous places, in pixels. Shape (N, 2) to (N, 2)."""
        room = places.new_tensor(self.backbone.input_shape[1:]) - self.reader.patch
        return self.reader.patch / 2 + room * (places + 1) / 2

    def place_of(self, index: int) -> tuple[float, float]:
        """Return a place of the grid, by its number from 0, as a continuous one; whatever its zoom."""
        row, column = divmod(index % self.grid**2, self.grid)
        return (2 * row / (self.grid - 1) - 1, 2 * column / (self.grid - 1) - 1) if self.grid > 1 else (0.0, 0.0)

    def record(self) -> Record:
        """Return what a table keeps of each place.

        Raises:
            ValueError: If places are continuous.
        """
        if self.coordinates:
            raise ValueError(
                "table: expected places that can be counted, got continuous ones. Leave the table out, or take places "
                "of a grid: --task-options places grid."
            )
        return super().record()

    def first(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Glance at the image."""
        maps = encode(self.backbone, glance(inputs, self.reader.glance))
        return self.reader.first_sight(maps.mean((2, 3))), pool(maps, maps.shape[1] * self.cells**2, self.cells)

    def cut(self, index: int, source: Tensor) -> tuple[Tensor, Tensor]:
        """Cut a crop out of images."""
        place = self.places[index]
        return self.cut_at(source.new_tensor([place.row, place.column]).expand(source.shape[0], -1), place.zoom, source)

    def cut_at(self, centres: Tensor, zoom: int, source: Tensor) -> tuple[Tensor, Tensor]:
        """Cut crops at places of their own out of images, as `cut` does. `centres` in pixels, shape (N, 2)."""
        piece = crop(source, centres, self.reader.patch, zoom=zoom, scales=self.reader.scales)
        return place_code(centres, zoom, source.shape[2:]), piece

    def looked(self, state: State, choice: Choice) -> Tensor:
        """Return how often was looked at each place, or where the last look was."""
        return self._where(state, choice) if self.coordinates else super().looked(state, choice)

    def glimpse(self, state: State, choice: Choice, onward: Choice) -> Tensor:
        """Cut out what each row chose, and run that through the network."""
        if not self.coordinates:
            return super().glimpse(state, choice, onward)
        rows = torch.cat([self._where(state, choice), state.features], 1)
        seen = choice.among([self._stay, self._cut_there], rows)
        return onward.only(1, self._look, seen, (sum(self.row_sizes),))

    def _where(self, state: State, choice: Choice) -> Tensor:
        """Return the places that rows chose; where none are said, that of the fixed order. Shape (N, 2)."""
        if choice.place is not None:
            return choice.place
        usual = state.features.new_tensor(self.place_of(self._order[state.position]))
        return usual.expand(state.features.shape[0], -1)

    def _stay(self, rows: Tensor) -> Tensor:
        return self._leave(rows[:, self.coordinates :])

    def _cut_there(self, rows: Tensor) -> Tensor:
        """Cut out of rows of `[place | state]`."""
        places, state = rows[:, : self.coordinates], rows[:, self.coordinates :]
        return self._opened(state, *self.cut_at(self.centres(places), 1, self.sources(state)))


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


def _distance(place: Place, size: Sequence[int]) -> tuple[int, float]:
    """Return by what places are looked at in a fixed order: the zoom, and how far from the middle they are."""
    return place.zoom, (place.row - size[0] / 2) ** 2 + (place.column - size[1] / 2) ** 2
