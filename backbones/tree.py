"""A ResNet that is a tree: its stages split into branches, and each input goes from the trunk to one of the leaves.

After tree-shaped networks with learned routing (HD-CNN, Yan et al. 2015; Adaptive Neural Trees, Tanno et al. 2019),
here with branches of different cost, so that there is compute to save.
"""

import torch
from torch import Tensor, nn

from .cifar_resnet import CifarBlock, CifarResNet
from .crossing import Crossing
from .routing import route

LEVELS = 3  # the stages of a CIFAR ResNet


class Level(Crossing):
    """A stage of the tree: every node that the stage before leads to has branches of its own.

    In evaluation the last branch of the last node runs. In training rows are dealt to the leaves in turn; batches are
    shuffled, so each image is dealt another one in every epoch, and all leaves are trained equally often.
    """

    skippable = False  # it changes the shape

    def __init__(self, level: int, branches: int, in_channels: int, channels: int, count: int, stride: int):
        def branch(index: int) -> nn.Sequential:
            inner = channels * (index % branches + 1) // branches
            first = CifarBlock(in_channels, channels, stride, inner=inner)
            return nn.Sequential(first, *(CifarBlock(channels, channels, 1, inner=inner) for _ in range(count - 1)))

        places = branches**level
        super().__init__((branch(i) for i in range(places * branches)), places=places)
        self.leaves = branches**LEVELS  # of the whole tree

    def forward(self, x: Tensor) -> Tensor:
        """Run one branch. Shape (N, C, H, W) to (N, C', H', W')."""
        if not self.training:
            return self.cells[-1](x)
        leaf = torch.arange(len(x), device=x.device) % self.leaves
        return route(list(self.cells), x, leaf // (self.leaves // len(self.cells)))


class TreeResNet(CifarResNet):
    """A CIFAR ResNet whose three stages split; the leaves share the head.

    Branch i of n has (i+1)/n of the channels within its blocks, and all of them between blocks. The last leaf is an
    ordinary ResNet of that depth and width.

    Args:
        depth: As for `CifarResNet`.
        branches: Of each node.
        num_classes: As for `CifarResNet`. Likewise `in_channels`.
        width: Channels of the first stage.

    Raises:
        ValueError: If there is nothing to choose among, or branches would not have whole numbers of channels.
    """

    def __init__(self, depth: int, branches: int = 2, *, num_classes: int = 10, in_channels: int = 3, width: int = 16):
        if branches < 2:
            raise ValueError(
                f"tree: expected two or more branches, got {branches}. Between one branch and itself there is nothing "
                "to choose."
            )
        if width < branches or width % branches:
            raise ValueError(
                f"width of a tree: expected channels divisible by its {branches} branches, got {width}. Choose such a "
                f"number, as in tree-resnet{depth}-b{branches}-w{4 * branches}."
            )
        self.branches, self.width = branches, width
        super().__init__(depth, num_classes=num_classes, in_channels=in_channels, width=width)

    def _stage(  # pyright: ignore[reportIncompatibleMethodOverride] - a level is no sequence, but called like one
        self, in_channels: int, channels: int, count: int, stride: int
    ) -> nn.Module:
        level = (channels // self.width).bit_length() - 1  # each stage has twice the channels of the one before
        return Level(level, self.branches, in_channels, channels, count, stride)
