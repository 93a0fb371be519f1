"""Layer skipping, decided block by block from inside the network."""

from torch import Tensor

from ..backbones.backbone import Backbone
from .choice import Choice
from .pooling import pool, pooled_size
from .state import State
from .task import Task, register_task


@register_task("layer-skip")
class LayerSkip(Task):
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

    spares_features = True

    def __init__(self, backbone: Backbone, *, grid: int = 1):
        super().__init__(backbone)
        if not 1 <= grid <= 8:
            raise ValueError(f"grid: expected 1 … 8, got {grid}. SkipNet's gates use 1.")
        self.grid = grid
        self.horizon = len(self.backbone.blocks)
        self.decisions = (2,)
        self.least_macs = self.backbone.least_macs
        self.width = max(pooled_size(block.in_shape, grid) for block in self.backbone.blocks)
        self.observation_shape = (self.width,)

    @property
    def pieces(self) -> list[str]:
        return [block.name for block in self.backbone.blocks]

    def begin(self, inputs: Tensor) -> State:
        """Run the stem."""
        return State.start(self.backbone.stem(inputs), macs=self.backbone.stem_macs)

    def observe(self, state: State) -> Tensor:
        """Return the pooled features."""
        return pool(state.features, self.width, self.grid)

    def step(self, state: State, choice: Choice) -> State:
        """Execute the next block or take its shortcut; answer after the last."""
        block = self.backbone.blocks[state.position]
        x = choice.among([block.bypass, block.run], state.features)
        state = state.advance(x, macs=choice.cost([block.bypass_macs, block.macs]))
        if state.position < self.horizon:
            return state
        return state.finish(self.backbone.head(x), macs=self.backbone.head_macs)
