"""Where on the feature map to compute: before each residual block, tile by tile."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.sparse import SparseBlock
from .choice import Choice, cost_dtype
from .pooling import pool, pooled_size
from .state import State
from .task import Task, register_task
from .token_skip import nearest_first


@register_task("pixel-mask")
class PixelMask(Task):
    """Before each block, choose the tiles of the map where it runs (SACT, Figurnov 2017; DynConv, Verelst 2020).

    Description:
        The stem has run. The agent sees the features that would enter the next block, tile by tile, and decides for
        each tile of the block's output whether the residual branch is computed there. Elsewhere the shortcut alone is
        the output. After the last block the head answers.
    Action space:
        `MultiDiscrete([2] * tiles)`: for each tile, row by row, 0 leaves it to the shortcut, 1 computes the branch.
    Observation space:
        The features before the block, averaged over each tile, tile by tile of one channel after the other, padded with
        zeros to the widest position. The interpreter appends the position (one-hot) and, where it varies, the price.
    Episode end:
        After one decision for each block.
    Cost:
        Stem, shortcuts and head; in each block its last convolution at the places of the chosen tiles, each before it
        wherever the next one reaches: the tiles and their halo of neighbours, once where tiles share it. A place of a
        convolution costs k²CC' MACs. All tiles cost what the block does.

    What is chosen is gathered from all rows of the batch, run as matrix products, and scattered. At the chosen places
    the output is that of the whole block. Mixtures run whole blocks, and mix their output with the shortcut's place by
    place; the halo then counts with the largest weight within reach. With weights of one and zero both are the same.
    Blocks that look further than their kernels (squeeze-and-excitation, deformable convolutions) are refused.

    Arguments:
        tile: Side of a tile in pixels of the image; on maps of lower resolution it has as many times fewer places.
    Version history:
        v0: first.
    """

    has_masks = True
    adds_up = False
    default_data = "cluttered-digits"
    default_backbone = "resnet20-w8"

    def __init__(self, backbone: Backbone, *, tile: int = 4):
        super().__init__(backbone)
        net, (height, width) = self.backbone, self.backbone.input_shape[1:]
        if height != width or not isinstance(tile, int) or tile < 1 or height % tile:
            raise ValueError(
                f"tile: expected one that fills square images of {height} x {width} pixels, got {tile!r}. Choose a "
                "divisor of their side."
            )
        self.grid = height // tile
        self.sparse = torch.nn.ModuleList(SparseBlock(*pair) for pair in zip(net.blocks, net.own_blocks, strict=True))
        for block in net.blocks:
            if block.out_shape[1] % self.grid or block.out_shape[2] % self.grid:
                raise ValueError(
                    f"tile: expected one of whole places on the {block.out_shape[1]} x {block.out_shape[2]} map of "
                    f"block {block.name}, got {tile} pixels. Choose a larger one."
                )
        self.horizon, self.decisions = len(net.blocks), (2,) * self.grid**2
        self.least_macs = net.least_macs
        self.width = max(pooled_size(block.in_shape, self.grid) for block in net.blocks)
        self.observation_shape = (self.width,)

    @property
    def pieces(self) -> list[str]:
        tiles = [divmod(index, self.grid) for index in range(self.grid**2)]
        return [f"{block.name}: {row},{column}" for block in self.backbone.blocks for row, column in tiles]

    @property
    def rules(self) -> dict[str, list[tuple[int, ...]]]:
        """The tiles nearest to the middle, the same in all blocks."""
        order = nearest_first(self.grid)
        ways = [tuple(int(i in order[:count]) for i in range(len(order))) for count in range(len(order) + 1)]
        return {"centre": [way * self.horizon for way in ways]}

    def begin(self, inputs: Tensor) -> State:
        """Run the stem."""
        return State.start(self.backbone.stem(inputs), macs=self.backbone.stem_macs)

    def observe(self, state: State) -> Tensor:
        """Return the features of each tile."""
        return pool(state.features, self.width, self.grid)

    def step(self, state: State, choice: Choice) -> State:
        """Run the next block where it was chosen; answer after the last."""
        block, sparse, x = self.backbone.blocks[state.position], self._sparse(state.position), state.features
        mask = self._mask(choice, block.out_shape[1:])
        if choice.gathers:
            out = sparse(x, mask)
        else:
            share = mask.unsqueeze(1)
            out = share * block.run(x) + (1 - share) * block.bypass(x)
        macs = choice.charged(sparse.cost(mask.to(cost_dtype(mask.device))), most=block.macs)
        state = state.advance(out, macs=macs)
        if state.position < self.horizon:
            return state
        return state.finish(self.backbone.head(out), macs=self.backbone.head_macs)

    def _sparse(self, position: int) -> SparseBlock:
        block: Any = self.sparse[position]
        return block

    def _mask(self, choice: Choice, size: Sequence[int]) -> Tensor:
        """Return how much each place of a map is computed. Shape (N, *size)."""
        weights = [choice.part(index).weight(1) for index in range(self.grid**2)]
        tiles = torch.stack(weights, 1).unflatten(1, (self.grid, self.grid))
        return tiles.repeat_interleave(size[0] // self.grid, 1).repeat_interleave(size[1] // self.grid, 2)

    def masks(self, image: Tensor, actions: Sequence[int]) -> dict[str, Tensor]:
        """Return which tiles of each block were computed."""
        tables = torch.tensor(actions).view(self.horizon, self.grid, self.grid)
        return {block.name: table.float() for block, table in zip(self.backbone.blocks, tables, strict=True)}
