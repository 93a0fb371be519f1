"""Where to look: a glance at the whole image scaled down, then crops of it in full, until enough was seen."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.glimpses import crop, encode, glance, place_code
from ..backbones.reader_training import check_sides
from .look_task import LookTask
from .pooling import pool
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
        asked = {"glance": glance, "patch": patch, "zooms": zooms, "scales": scales, "memory": memory}
        reader = self.reader_of(self.backbone, asked)
        self.grid, self.cells = grid, cells
        self.places = grid_places(self.backbone.input_shape[1:], reader.patch, grid, reader.zooms)
        seen, looked = check_sides(self.backbone, reader.glance, reader.patch, reader.zooms)
        self.set_looks(
            looks,
            options=len(self.places),
            macs=(seen, reader.scales * looked),
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
        size = self.backbone.input_shape[1:]
        order = sorted(range(self.grid**2), key=lambda i: _distance(self.places[i], size))
        corners = [self.grid * row + column for row in (0, self.grid - 1) for column in (0, self.grid - 1)]
        fixed = list(dict.fromkeys([order[0], *corners, *order]))
        return tuple(1 + fixed[i % len(fixed)] for i in range(self.horizon))

    @property
    def rules(self) -> dict[str, list[tuple[int, ...]]]:
        """The centre, then the corners, as `onward` goes."""
        return {"centre": self.looking(self.onward)}

    def region(self, piece: int, option: int) -> Box | None:
        """Return the square of a look, the widest of its scales."""
        if option == 0:
            return None
        place = self.places[option - 1]
        side = float(self.reader.patch * place.zoom * 2 ** (self.reader.scales - 1))
        return place.row - side / 2, place.column - side / 2, side, side

    def first(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Glance at the image."""
        maps = encode(self.backbone, glance(inputs, self.reader.glance))
        return self.reader.first_sight(maps.mean((2, 3))), pool(maps, maps.shape[1] * self.cells**2, self.cells)

    def cut(self, index: int, source: Tensor) -> tuple[Tensor, Tensor]:
        """Cut a crop out of images."""
        place = self.places[index]
        centres = source.new_tensor([place.row, place.column]).expand(source.shape[0], -1)
        piece = crop(source, centres, self.reader.patch, zoom=place.zoom, scales=self.reader.scales)
        return place_code(centres, place.zoom, source.shape[2:]), piece


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
