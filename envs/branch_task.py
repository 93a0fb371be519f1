"""Tasks that decide block by block: of several branches, such as versions of the block or its shortcut, one runs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.cost import count_macs
from .choice import Choice
from .pooling import pool, pooled_size
from .state import State
from .task import Task


class BranchTask(Task):
    """Before each block, choose which of its branches runs; after the last the head answers.

    Args:
        backbone: The network.
        grid: Cells on a side of the pooled features that are observed.

    Attributes:
        remedy: What an error about the grid advises.
    """

    spares_features = True
    remedy: str = "Use 2."

    def __init__(self, backbone: Backbone, *, grid: int):
        super().__init__(backbone)
        if not 1 <= grid <= 8:
            raise ValueError(f"grid: expected 1 … 8, got {grid}. {self.remedy}")
        self.grid = grid

    def set_branches(self, branches: Sequence[Sequence[Callable[[Tensor], Tensor]]]) -> None:
        """Say what each block's branches are, from the cheapest to the dearest, which is the block itself."""
        self.branches = branches
        self.branch_macs = [
            [count_macs(branch, torch.zeros((1, *block.in_shape), device=self.device)) for branch in of]
            for of, block in zip(branches, self.backbone.blocks, strict=True)
        ]
        self.set_shape((len(branches[0]),), sum(macs[0] for macs in self.branch_macs))

    def set_shape(self, decisions: tuple[int, ...], least: int) -> None:
        """Say what a block's decision is, and what all blocks cost with option 0 everywhere."""
        shapes = [block.in_shape for block in self.backbone.blocks]
        self.horizon, self.decisions = len(shapes), decisions
        self.least_macs = self.backbone.stem_macs + least + self.backbone.head_macs
        self.width = max(pooled_size(shape, self.grid) for shape in shapes)
        self.observation_shape = (self.width,)

    def begin(self, inputs: Tensor) -> State:
        """Run the stem."""
        return State.start(self.backbone.stem(inputs), macs=self.backbone.stem_macs)

    def observe(self, state: State) -> Tensor:
        """Return the pooled features."""
        return pool(state.features, self.width, self.grid)

    def run(self, index: int, choice: Choice, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the chosen branch of a block makes of the features, and its cost. Shapes (N, ...) and (N,)."""
        return choice.among(self.branches[index], x), choice.cost(self.branch_macs[index])

    def step(self, state: State, choice: Choice) -> State:
        """Run the chosen branch of the next block; answer after the last."""
        x, macs = self.run(state.position, choice, state.features)
        state = state.advance(x, macs=macs)
        if state.position < self.horizon:
            return state
        return state.finish(self.backbone.head(x), macs=self.backbone.head_macs)
