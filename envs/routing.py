"""Routing: through which scales of a supernet does an input go?"""

import torch
from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.folding import fold
from ..backbones.supernet import Layer
from .branch_task import BranchTask
from .task import register_task


@register_task("routing")
class Routing(BranchTask):
    """At each layer of a supernet go up to a finer scale, keep it, or go down: each input has its own graph.

    Description:
        Each layer of the backbone has a cell at every scale; one of them runs and adds what it saw to a stream
        of features (Dynamic Routing, Li et al. 2020). The stem has run. The agent sees the stream and chooses the scale
        of the next layer's cell; only that one runs, and rows of the same scale are one smaller batch. After the last
        layer the head answers.
    Action space:
        `Discrete(scales)`: 0 is the coarsest scale, the last one the finest. An action above the one before goes up,
        the same keeps the scale, one below goes down.
    Observation space:
        The stream, averaged over each cell of a `grid` x `grid` raster. The interpreter appends the position (one-hot)
        and, where it varies, the price.
    Episode end:
        After one decision for each layer.
    Cost:
        Stem + chosen cells + head. A cell costs about half of the next finer one.

    The backbone was trained with each image drawing its way, all scales equally often at each layer; then it is frozen.
    The finest scale everywhere is the full network. How often each was chosen stands in the results (`chosen`).

    Arguments:
        grid: Cells on a side of the pooled features.
    Version history:
        v0: first.
    """

    default_backbone = "supernet4-w8"

    def __init__(self, backbone: Backbone, *, grid: int = 2):
        super().__init__(backbone, grid=grid)
        blocks = self.backbone.blocks
        coarser = [
            nn.ModuleList(fold(cell, block.in_shape) for cell in layer.cells[:-1])
            for layer, block in zip(supernet_layers(self.backbone), blocks, strict=True)
        ]
        self.coarser = nn.ModuleList(coarser).requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.set_branches([[*of, block.run] for of, block in zip(coarser, blocks, strict=True)])

    @property
    def pieces(self) -> list[str]:
        return [f"scale of {block.name}" for block in self.backbone.blocks]


def supernet_layers(backbone: Backbone) -> list[Layer]:
    """Return a backbone's layers, which must have a cell at each of several scales.

    Raises:
        ValueError: If they do not.
    """
    if (found := backbone.sources(Layer)) is not None:
        return found
    raise ValueError(
        f"routing: expected a supernet, got {backbone.name}, through which there is one way only. Use supernet6 or "
        "supernet4-s3-w8, trained by skipgym pretrain."
    )
