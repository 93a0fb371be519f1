"""Experts: which of a block's versions does an input need?"""

import re
from functools import partial

from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.experts import ExpertBlock, FoldedExperts
from .branch_task import BranchTask
from .choice import Choice
from .task import register_task


@register_task("experts")
class Experts(BranchTask):
    """Before each block, choose which of its experts runs: a hard mixture of experts of different cost.

    Description:
        Each block of the backbone has several experts: kernels of side 1, of side 3 in four groups of channels, and of
        side 3, each with BatchNorm of its own. The stem has run. The agent sees the features that would enter the next
        block and chooses its expert; only that one runs, and rows of the same expert are one smaller batch. After the
        last block the head answers.
    Action space:
        `Discrete(experts)`: 0 is the cheapest expert, the last one the dearest.
    Observation space:
        The features before the block, averaged over each cell of a `grid` x `grid` raster, padded with zeros to the
        widest position. The interpreter appends the position (one-hot) and, where it varies, the price.
    Episode end:
        After one decision for each block.
    Cost:
        Stem + chosen experts + head.

    Relaxed, the kernels are mixed and not their results, as in CondConv (Yang et al. 2019): Σ aₙ(wₙ·x) = (Σ aₙwₙ)·x, so
    that one convolution runs. A training's account still counts every expert, which is more than runs.

    The backbone was trained with each image drawing the experts, all equally often, so that none is dead; then it is
    frozen. How often each was chosen stands in the results (`called`), in TensorBoard in the course of training, and
    `skipgym train`, `evaluate` and `compare` name those that were never chosen. The last expert everywhere is the full
    network. Where the task is made by its name, a CIFAR ResNet's name stands for the one with experts: `resnet20` for
    `experts-resnet20`, trained on first use for embedded data.

    Arguments:
        grid: Cells on a side of the pooled features.
    Version history:
        v0: first.
    """

    default_backbone = "resnet8"

    def __init__(self, backbone: Backbone, *, grid: int = 2):
        super().__init__(backbone, grid=grid)
        experts = [FoldedExperts(block) for block in expert_blocks(self.backbone)]
        self.experts: list[FoldedExperts] = nn.ModuleList(experts)  # pyright: ignore[reportAttributeAccessIssue]
        count = len(experts[0].first)
        self.set_branches([[partial(one.run, expert) for expert in range(count)] for one in experts])

    @classmethod
    def architecture(cls, name: str) -> str:
        """Return the name of the network with experts for a plain CIFAR ResNet's."""
        return re.sub(r"^(?:cifar-)?(resnet\d+(?:-w\d+)?)$", r"experts-\1", name)

    @property
    def pieces(self) -> list[str]:
        return [f"expert of {block.name}" for block in self.backbone.blocks]

    def run(self, index: int, choice: Choice, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the next block with the chosen expert; kernels are mixed, not results."""
        x = choice.blend(self.branches[index], x, self.experts[index].mixed)
        return x, choice.cost(self.branch_macs[index])


def expert_blocks(backbone: Backbone) -> list[ExpertBlock]:
    """Return a backbone's blocks, which must have experts.

    Raises:
        ValueError: If they do not.
    """
    if (found := backbone.sources(ExpertBlock)) is not None:
        return found
    raise ValueError(
        f"experts: expected a backbone with experts, got {backbone.name}, whose blocks are each the only one. Use "
        "experts-resnet20 or another depth, trained by skipgym pretrain."
    )
