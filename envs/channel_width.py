"""Channel widths: how much of every convolution does an input need?"""

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.slimmable import QUARTERS, fit_channels, slices
from .choice import Choice
from .pooling import pool, pooled_size
from .state import State
from .task import Task, register_task

Per = Literal["network", "stage"]
Widths = str | float | Sequence[float]


@register_task("channel-width")
class ChannelWidth(Task):
    """See the image, and choose a width for the network, or stage by stage (Yu et al. 2019; DS-Net, Li et al. 2021).

    Description:
        The backbone is slimmable: of every convolution the first k channels are a network too. Nothing has run. The
        agent sees the image, reduced, and chooses a width; the network of that width answers. Per stage it chooses the
        first stage's width, sees the features that come out, chooses the next one's, and so on. Widths are run as
        smaller convolutions, their weights sliced and their BatchNorm folded when the backbone is frozen; rows of the
        same width are one smaller batch.
    Action space:
        `Discrete(len(widths))`: 0 is the narrowest width, the last one the full.
    Observation space:
        Before the first decision the normalised image, averaged over each cell of a `grid` x `grid` raster; before
        later ones the features there, averaged over places, 0 for channels that were left out; padded with zeros to
        the longer of them. The interpreter appends the position (one-hot) and, where it varies, the price.
    Episode end:
        After the one decision; per stage after one decision for each stage.
    Cost:
        What the chosen width runs: of the first stage with the stem, of the last with the head. A stage that follows a
        narrower one takes zeros for the channels that are missing, computes with them and pays for them; after a wider
        one it takes the first channels. So what a stage costs depends on its own width only.

    Where the task is made by its name, a CIFAR ResNet's name stands for the slimmable one of its size: `resnet20` for
    `slim-resnet20`, trained on first use for embedded data.

    Arguments:
        widths: Shares of the full width, rising, the last 1: of those that the backbone was trained for. On the command
            line "0.25 0.5 1". By default 0.25, 0.5, 0.75 and 1.
        per: network: one decision. stage: one before each stage; the backbone should be trained for it
            (`--width-training stagewise`).
        grid: Cells on a side of the reduced image.
    Version history:
        v0: first.
    """

    def __init__(self, backbone: Backbone, *, widths: Widths = QUARTERS, per: Per = "network", grid: int = 8):
        super().__init__(backbone)
        if per not in get_args(Per):
            raise ValueError(f"per: expected network or stage, got {per!r}. Choose one of them.")
        if not 1 <= grid <= 32:
            raise ValueError(f"grid: expected 1 … 32, got {grid}. Use 8.")
        self.widths, self.per = read_widths(widths), per
        self.nets: Sequence[Backbone] = nn.ModuleList(slices(self.backbone, self.widths))  # pyright: ignore[reportAttributeAccessIssue]
        blocks, self.grid = self.backbone.blocks, min(grid, *self.backbone.input_shape[1:])
        starts = [i for i, block in enumerate(blocks) if i and block.in_shape != block.out_shape and per == "stage"]
        self.bounds = [0, *starts, len(blocks)]
        self.horizon, self.decisions = len(self.bounds) - 1, (len(self.widths),)
        self.stage_macs = [[_cost(net, *ends) for net in self.nets] for ends in pairwise(self.bounds)]
        self.least_macs = sum(macs[0] for macs in self.stage_macs)
        image = pooled_size(self.backbone.input_shape, self.grid)
        self.seen = max(image, *(pooled_size(blocks[start].in_shape) for start in starts), 0)
        self.observation_shape = (self.seen,)

    @classmethod
    def architecture(cls, name: str) -> str:
        """Return the slimmable network's name for a plain CIFAR ResNet's."""
        return re.sub(r"^(?:cifar-)?(resnet\d+(?:-w\d+)?)$", r"slim-\1", name)

    @property
    def pieces(self) -> list[str]:
        if self.per == "network":
            return ["width"]
        return [f"width of {self.backbone.blocks[start].name.partition('.')[0]}" for start in self.bounds[:-1]]

    def begin(self, inputs: Tensor) -> State:
        """Keep the image; nothing runs before the first decision."""
        return State.start(inputs)

    def observe(self, state: State) -> Tensor:
        """Return the reduced image, later the pooled features."""
        return pool(state.features, self.seen, 1 if state.position else self.grid)

    def step(self, state: State, choice: Choice) -> State:
        """Run the next stage, or the network, at the chosen widths; answer after the last."""
        stage = state.position
        branches = [partial(self._run, stage, net) for net in self.nets]
        x = choice.among(branches, state.features)
        state = state.advance(x, macs=choice.cost(self.stage_macs[stage]))
        return state if state.position < self.horizon else state.finish(x)

    def _run(self, stage: int, net: Backbone, x: Tensor) -> Tensor:
        """Run a stage at one width. Features have all channels, zeros beyond the width; after the last come logits."""
        first, last = self.bounds[stage], self.bounds[stage + 1]
        x = fit_channels(x, net.blocks[first].in_shape[0]) if first else net.stem(x)
        for block in net.blocks[first:last]:
            x = block.run(x)
        if stage == self.horizon - 1:
            return net.head(x)
        return fit_channels(x, self.backbone.blocks[last].in_shape[0])


def _cost(net: Backbone, first: int, last: int) -> int:
    """Return what the blocks from first to before last cost, in MACs, with the stem or the head where they adjoin."""
    ends = (net.stem_macs if not first else 0) + (net.head_macs if last == len(net.blocks) else 0)
    return ends + sum(net.block_macs[first:last])


def read_widths(widths: Widths) -> tuple[float, ...]:
    """Return widths as numbers: given as such, or as the command line has them, "0.25 0.5 1".

    Raises:
        ValueError: If they are not two or more, rising up to 1.
    """
    words = widths.replace(",", " ").split() if isinstance(widths, str) else widths
    try:
        found = tuple(float(word) for word in (words if isinstance(words, Sequence) else [words]))
    except (TypeError, ValueError) as error:
        raise ValueError(f'widths: expected numbers, as in "0.25 0.5 1", got {widths!r}. Mend it.') from error
    if len(found) < 2 or list(found) != sorted(set(found)) or found[-1] != 1:
        got = " ".join(f"{width:g}" for width in found) or "none"
        raise ValueError(
            f"widths: expected two or more, rising, the last 1, got {got}. "
            'Between one width and itself there is nothing to choose; try "0.25 0.5 1".'
        )
    return found
