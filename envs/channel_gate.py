"""Channel gates: how many of a block's inner channels does an input need?"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

from ..backbones.backbone import Backbone
from ..backbones.channels import gated_blocks, inner_layers, kept
from ..backbones.cost import count_macs
from ..backbones.folding import fold
from ..data import ImageData
from .branch_task import BranchTask
from .choice import Choice
from .task import register_task

GROUPS = 4


@register_task("channel-gate")
class ChannelGate(BranchTask):
    """Before each block, choose how many groups of its channels run; the network is preserved (Lin et al. 2017).

    Description:
        Within a residual block the channels between its two convolutions are parted into groups of one size; of a
        vision transformer's block the neurons between its two fully connected layers are. The stem has run. The agent
        sees the features that would enter the next block and chooses how many groups are kept, the first of them:
        both layers run as smaller ones, and rows that keep as many are one smaller batch. Features between blocks keep
        their shapes. After the last block the head answers. Scattered, each group is kept or dropped by itself.
    Action space:
        `Discrete(groups)`: 0 keeps the first group, the last one all. Scattered, `MultiDiscrete` with a part for each
        group: 0 drops it, 1 keeps it.
    Observation space:
        The features before the block, averaged over each cell of a `grid` x `grid` raster, padded with zeros to the
        widest position; for token sequences the class token. The interpreter appends the position (one-hot) and, where
        it varies, the price.
    Episode end:
        After one decision for each block.
    Cost:
        Stem + blocks with the channels that they keep, shortcuts too + head.

    Lin et al. decide by Q-learning: `--agent dqn`. A network should bear missing channels: `skipgym pretrain
    --channel-groups 4` trains it so. Where the task is made by its name on embedded data, that is done on first use.
    Scattered groups run one after the other and are added up, which costs time that MACs do not show.

    Arguments:
        groups: Of each block's channels, which they must divide.
        scattered: Whether each group is kept or dropped by itself. Needs blocks of two convolutions whose results
            nothing scales, as squeeze-and-excitation does.
        grid: Cells on a side of the pooled features.
    Version history:
        v0: first.
    """

    spares_features = False  # scattered groups take them one after the other
    default_backbone = "resnet8-w4"

    def __init__(self, backbone: Backbone, *, groups: int = GROUPS, scattered: bool = False, grid: int = 2):
        super().__init__(backbone, grid=grid)
        modules, blocks = gated_blocks(self.backbone, groups), self.backbone.blocks
        shapes, self.scattered = [block.in_shape for block in blocks], bool(scattered)
        if scattered:
            self.parts = nn.ModuleList(_Parts(*pair, groups) for pair in zip(modules, shapes, strict=True))
            self.set_shape((2,) * groups, sum(part.rest_macs for part in self._parts))
        else:
            self.narrow = nn.ModuleList(_narrow(*pair, groups) for pair in zip(modules, shapes, strict=True))
            self.set_branches([[*of.children(), block.run] for of, block in zip(self.narrow, blocks, strict=True)])

    @classmethod
    def recipe(cls, data: ImageData, **options: Any) -> Mapping[str, Any]:
        """Train to bear missing channels, and not to bear skipping, which nobody does here."""
        groups = options.get("groups", GROUPS)
        return {"channel_groups": groups, "stochastic_depth": 0.0, "distill": 0.0, "spare_hard": 0.0}

    @property
    def pieces(self) -> list[str]:
        names = [block.name for block in self.backbone.blocks]
        if not self.scattered:
            return [f"channels of {name}" for name in names]
        return [f"group {group} of {name}" for name in names for group in range(len(self.decisions))]

    def run(self, index: int, choice: Choice, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the next block with the channels that are kept."""
        return self._parts[index].run(x, choice) if self.scattered else super().run(index, choice, x)

    @property
    def _parts(self) -> "list[_Parts]":
        return [part for part in self.parts if isinstance(part, _Parts)]


def _narrow(block: nn.Module, in_shape: tuple[int, ...], groups: int) -> nn.ModuleList:
    """Return a block with its first group of channels, its first two, …, all but the last; BatchNorm folded."""
    inner = inner_layers(block)
    assert inner is not None
    sizes = [count * inner.channels // groups for count in range(1, groups)]
    return _settled(nn.ModuleList(fold(kept(block, range(size)), in_shape) for size in sizes))


def _settled(pieces: nn.ModuleList) -> nn.ModuleList:
    return pieces.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class _Parts(nn.Module):
    """A residual block as a sum: what each group of its inner channels adds, and the rest, which always runs."""

    def __init__(self, block: nn.Module, in_shape: tuple[int, ...], groups: int):
        super().__init__()
        conv1, bn1, conv2, bn2 = (getattr(block, name, None) for name in ("conv1", "bn1", "conv2", "bn2"))
        told = (
            f"scattered: expected blocks of two convolutions, got {type(block).__name__}. Use a CIFAR ResNet, or "
            "contiguous groups."
        )
        if not isinstance(conv1, nn.Conv2d) or not isinstance(conv2, nn.Conv2d) or hasattr(block, "conv3"):
            raise ValueError(told)
        if getattr(block, "se", None) is not None:
            raise ValueError(
                "scattered: expected blocks that are the sum of what their channels add, got one with "
                "squeeze-and-excitation. Use a plain CIFAR ResNet, or contiguous groups."
            )
        if not isinstance(bn1, nn.BatchNorm2d) or not isinstance(bn2, nn.BatchNorm2d):
            raise ValueError(told)
        second, size = fuse_conv_bn_eval(conv2, bn2), conv1.out_channels // groups
        bias = second.bias
        assert bias is not None  # of BatchNorm
        self.register_buffer("bias", bias.detach().view(-1, 1, 1), persistent=False)
        self.shortcut = getattr(block, "downsample", None) or getattr(block, "shortcut", None) or nn.Identity()
        found = [fold(_group(conv1, bn1, second, i * size, size), in_shape) for i in range(groups)]
        self.groups = _settled(nn.ModuleList(found))
        x = torch.zeros((1, *in_shape), device=bias.device)
        self.group_macs, self.rest_macs = count_macs(self.groups[0], x), count_macs(self.shortcut, x)

    def run(self, x: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """Return the block's features with the groups that are kept, and what they cost."""
        total = self.shortcut(x) + self.get_buffer("bias")
        macs: Tensor | int = self.rest_macs
        nothing = partial(_nothing, total.shape[1:])
        for index, group in enumerate(self.groups):
            part = choice.part(index)
            total = total + part.among([nothing, group], x)
            macs = macs + part.cost([0, self.group_macs])
        assert isinstance(macs, Tensor)
        return F.relu(total), macs


def _group(conv1: nn.Conv2d, bn1: nn.BatchNorm2d, conv2: nn.Conv2d, start: int, size: int) -> nn.Module:
    """Return what some of the channels between two convolutions add, the second's bias apart."""
    second = copy.deepcopy(conv2)
    second.bias = None
    whole = nn.Sequential(OrderedDict(conv1=conv1, bn1=bn1, relu=nn.ReLU(), conv2=second))
    return kept(whole, range(start, start + size))


def _nothing(shape: torch.Size, x: Tensor) -> Tensor:
    return x.new_zeros((x.shape[0], *shape))
