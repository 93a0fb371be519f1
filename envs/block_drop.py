"""Layer skipping, decided for all blocks at once from the image."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from .choice import Choice
from .state import State
from .task import Task, register_task


@register_task("block-drop")
class BlockDrop(Task):
    """See the image, and decide at once which blocks to execute (BlockDrop, Wu et al. 2018).

    Description:
        The stem has run, as it always does. The agent sees the image, reduced, and decides about all blocks together;
        then the network runs with the chosen blocks, shortcuts in place of the others.
    Action space:
        `MultiDiscrete([2] * blocks)`: for each block 0 drops it, 1 executes it.
    Observation space:
        The normalised image, averaged down to at most `thumbnail` pixels on a side. Shape (C, h, w). The interpreter
        appends the price as one more channel where it varies.
    Episode end:
        After the one decision.
    Cost:
        Stem + executed blocks + shortcuts of dropped ones + head.

    Arguments:
        thumbnail: Longest side of what the policy sees, in pixels.
    Version history:
        v0: first.
    """

    spares_features = True

    def __init__(self, backbone: Backbone, *, thumbnail: int = 32):
        super().__init__(backbone)
        if thumbnail < 4:
            raise ValueError(f"thumbnail: expected at least 4 pixels, got {thumbnail}. Use 16 or 32.")
        channels, height, width = self.backbone.input_shape
        scale = min(1.0, thumbnail / max(height, width))
        self.size = (max(1, round(height * scale)), max(1, round(width * scale)))
        self.horizon = 1
        self.decisions = (2,) * len(self.backbone.blocks)
        self.least_macs = self.backbone.least_macs
        self.observation_shape = (channels, *self.size)

    @property
    def pieces(self) -> list[str]:
        return [block.name for block in self.backbone.blocks]

    def begin(self, inputs: Tensor) -> State:
        """Run the stem, and keep the reduced image for the policy."""
        net = self.backbone
        image = F.adaptive_avg_pool2d(inputs, self.size)
        return State.start(net.stem(inputs), macs=net.stem_macs, image=image)

    def observe(self, state: State) -> Tensor:
        """Return the reduced image."""
        return state.memory["image"]

    def step(self, state: State, choice: Choice) -> State:
        """Run the chosen blocks, and answer."""
        x, macs = state.features, torch.zeros_like(state.macs)
        for index, block in enumerate(self.backbone.blocks):
            part = choice.part(index)
            x = part.among([block.bypass, block], x)
            macs = macs + part.cost([block.bypass_macs, block.macs])
        state = state.advance(x, macs=macs)
        return state.finish(self.backbone.head(x), macs=self.backbone.head_macs)
