"""Layer skipping, decided block by block from inside the network."""

from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.routing import unchanged
from .branch_task import BranchTask
from .choice import Choice
from .task import register_task


@register_task("layer-skip")
class LayerSkip(BranchTask):
    """Before each block, skip it or execute it (SkipNet, Wang et al. 2018; ConvNet-AIG, Veit and Belongie 2018).

    Description:
        The stem has run. The agent sees the features that would enter the next block and decides whether that block
        runs; a skipped block is replaced by its shortcut. After the last block the head answers.
    Action space:
        `Discrete(2)`: 0 skips the block, 1 executes it.
    Observation space:
        The features before the block, averaged over each cell of a `grid` x `grid` raster (SkipNet's gates: one cell),
        padded with zeros to the widest position; for token sequences the class token. The interpreter appends the
        position (one-hot) and, where it varies, the price.
    Episode end:
        After one decision for each block.
    Cost:
        Stem + executed blocks + shortcuts of skipped ones + head.

    Arguments:
        grid: Cells on a side of the pooled features.
    Version history:
        v0: first.
    """

    remedy = "SkipNet's gates use 1."

    def __init__(self, backbone: Backbone, *, grid: int = 1):
        super().__init__(backbone, grid=grid)
        self.set_shape((2,), sum(block.bypass_macs for block in self.backbone.blocks))

    @property
    def pieces(self) -> list[str]:
        return [block.name for block in self.backbone.blocks]

    def stays_in_view(self, position: int) -> bool:
        return self.backbone.blocks[position].bypass is unchanged

    def run(self, index: int, choice: Choice, x: Tensor) -> tuple[Tensor, Tensor]:
        """Execute the next block or take its shortcut."""
        block = self.backbone.blocks[index]
        return choice.among([block.bypass, block], x), choice.cost([block.bypass_macs, block.macs])
