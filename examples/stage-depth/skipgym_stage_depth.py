"""Stage depth: before each stage of a network, run only its first block, or all of them."""

from functools import partial, reduce
from itertools import groupby

from torch.nn import functional as F

from skipgym.envs import State, Task


class StageDepth(Task):
    """Before each stage of the network, run only its first block, or all of them.

    Description:
        A stage is a run of blocks that give the same shape. Its first block, which may change the shape, always runs.
    Action space:
        `Discrete(2)`: 0 leaves out all blocks of the stage but the first, 1 executes them.
    Observation space:
        The features before the stage, averaged over the image (over the tokens), padded with zeros to the widest.
    Episode end:
        After one decision for each stage.
    Cost:
        Stem + first blocks + the other blocks of executed stages, of the rest their shortcuts + head.
    Version history:
        v0: first.
    """

    def __init__(self, backbone):
        super().__init__(backbone)
        self.stages = [list(stage) for _, stage in groupby(self.backbone.blocks, lambda block: block.out_shape)]
        if min(map(len, self.stages)) < 2:
            raise ValueError("stage-depth: expected at least 2 blocks in each stage. Take a deeper backbone: resnet14.")
        self.horizon, self.decisions = len(self.stages), (2,)
        self.observation_shape = (max(width(stage[0].in_shape) for stage in self.stages),)
        shallow, deep = zip(*(costs(stage[1:]) for stage in self.stages), strict=True)
        self.least_macs = self.full_macs - sum(deep) + sum(shallow)

    def begin(self, inputs):
        return State.start(self.backbone.stem(inputs), macs=self.backbone.stem_macs)

    def observe(self, state):
        pooled = state.features.mean((2, 3)) if state.features.dim() == 4 else state.features.mean(1)
        return F.pad(pooled, (0, self.observation_shape[0] - pooled.shape[1]))

    def step(self, state, choice):
        first, *others = self.stages[state.position]
        branches = [partial(chain, [b.bypass for b in others]), partial(chain, [b.run for b in others])]
        x = choice.among(branches, first.run(state.features))
        state = state.advance(x, macs=first.macs + choice.cost(costs(others)))
        if state.position < self.horizon:
            return state
        return state.finish(self.backbone.head(x), macs=self.backbone.head_macs)


def chain(functions, x):
    """Return what one function after the other makes of x."""
    return reduce(lambda x, function: function(x), functions, x)


def costs(blocks):
    """Return what blocks cost when they are left out, and when they run, in MACs."""
    return sum(block.bypass_macs for block in blocks), sum(block.macs for block in blocks)


def width(shape):
    """Return the channels of (C, H, W) or the size of tokens (T, D)."""
    return shape[0] if len(shape) == 3 else shape[-1]
