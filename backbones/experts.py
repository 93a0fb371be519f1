"""ResNets with experts: each block's convolutions exist in several versions, of which one is enough.

Experts are kernels of different cost with BatchNorm of their own, linear in what they see. So a mixture of them is one
convolution with a mixture of their kernels, attention on weights (CondConv, Yang et al. 2019).
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

from .cifar_resnet import CifarResNet, OptionA
from .routing import evenly, route

Kind = Literal["1x1", "grouped", "3x3"]
KINDS: tuple[Kind, ...] = ("1x1", "grouped", "3x3")
GROUPS = 4  # of a grouped expert's channels: at a side of 3 it costs 9/4 of a 1x1, 1/4 of a 3x3


class Pointwise(nn.Conv2d):
    """A convolution of side 1 that leaves out pixels first: torch 2.14 corrupts memory where oneDNN strides itself.

    (Backwards, with few channels in channels_last.)
    """

    def forward(self, input: Tensor) -> Tensor:  # named as in torch
        """Convolve. Shape (N, C, H, W) to (N, C', H', W')."""
        step = self.stride[0]
        return F.conv2d(input[:, :, ::step, ::step], self.weight, self.bias, groups=self.groups)


class Expert(nn.Module):
    """A convolution without bias, and its BatchNorm."""

    def __init__(self, kind: Kind, in_channels: int, channels: int, stride: int):
        super().__init__()
        side = 1 if kind == "1x1" else 3
        groups = GROUPS if kind == "grouped" else 1
        convolution = Pointwise if kind == "1x1" else nn.Conv2d
        self.conv = convolution(in_channels, channels, side, stride, side // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise. Shape (N, C, H, W) to (N, C', H', W')."""
        return self.bn(self.conv(x))


class ExpertBlock(nn.Module):
    """A CIFAR ResNet's block, each of whose two convolutions is there once for each kind of expert.

    In evaluation the last expert runs. In training every row draws an expert for the block, all equally often, so that
    none of them is left without training.
    """

    def __init__(self, kinds: Sequence[Kind], in_channels: int, channels: int, stride: int):
        super().__init__()
        self.first = nn.ModuleList(Expert(kind, in_channels, channels, stride) for kind in kinds)
        self.second = nn.ModuleList(Expert(kind, channels, channels, 1) for kind in kinds)
        changes = stride != 1 or in_channels != channels
        self.shortcut = OptionA(in_channels, channels) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block. Shape (N, C, H, W) to (N, C', H', W')."""
        if self.training:
            drawn = evenly(len(x), len(self.first), x.device)
            out = route(list(self.second), F.relu(route(list(self.first), x, drawn)), drawn)
        else:
            out = self.second[-1](F.relu(self.first[-1](x)))
        return F.relu(out + self.shortcut(x))


class ExpertResNet(CifarResNet):
    """A CIFAR ResNet with experts in every block.

    Args:
        depth: As for `CifarResNet`.
        kinds: Of experts, from the cheapest to the dearest.
        num_classes: As for `CifarResNet`. Likewise `in_channels`.
        width: Channels of the first stage.

    Raises:
        ValueError: If there is nothing to choose among, or channels cannot be put in groups.
    """

    def __init__(
        self,
        depth: int,
        kinds: Sequence[Kind] = KINDS,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 16,
    ):
        if len(kinds) < 2 or list(kinds) != [kind for kind in KINDS if kind in kinds]:
            raise ValueError(
                f"experts: expected two or more of {', '.join(get_args(Kind))}, in this order, got "
                f"{', '.join(kinds) or 'none'}. Between one expert and itself there is nothing to choose."
            )
        if "grouped" in kinds and (width < GROUPS or width % GROUPS):
            raise ValueError(
                f"width of a ResNet with experts: expected channels divisible by {GROUPS}, the groups of its grouped "
                f"experts, got {width}. Choose such a number, as in experts-resnet{depth}-w{GROUPS}."
            )
        self.kinds = tuple(kinds)
        super().__init__(depth, num_classes=num_classes, in_channels=in_channels, width=width)

    def _stage(self, in_channels: int, channels: int, count: int, stride: int) -> nn.Sequential:
        first = ExpertBlock(self.kinds, in_channels, channels, stride)
        return nn.Sequential(first, *(ExpertBlock(self.kinds, channels, channels, 1) for _ in range(count - 1)))


class FoldedExperts(nn.Module):
    """A block's experts for execution: BatchNorm folded, each by itself or several mixed.

    Args:
        block: In evaluation mode; is left as it is.
    """

    def __init__(self, block: ExpertBlock):
        super().__init__()
        self.first, self.second = (_folded(layer) for layer in (block.first, block.second))
        self.shortcut = block.shortcut

    def run(self, expert: int, x: Tensor) -> Tensor:
        """Run the block with one of its experts. Shape (N, C, H, W) to (N, C', H', W')."""
        out = self.second[expert](F.relu(self.first[expert](x)))
        return F.relu(out + self.shortcut(x))

    def mixed(self, weights: Tensor, x: Tensor) -> Tensor:
        """Run the block with each row's own mixture of kernels. Weights (N, experts)."""
        out = mixed_convolution(self.second, weights, F.relu(mixed_convolution(self.first, weights, x)))
        return F.relu(out + self.shortcut(x))


def mixed_convolution(experts: nn.ModuleList, weights: Tensor, x: Tensor) -> Tensor:
    """Return Σ aₙ(wₙ·x), computed as (Σ aₙwₙ)·x: one convolution with a kernel of its own for each row.

    Args:
        experts: Convolutions of one stride with bias, of side 1 or 3.
        weights: aₙ of each row. Shape (N, experts).
        x: Shape (N, C, H, W).

    Returns:
        Shape (N, C', H', W').
    """
    convolutions = [one for one in experts if isinstance(one, nn.Conv2d)]
    kernels = torch.stack([dense_kernel(one) for one in convolutions])
    biases = torch.stack([one.bias for one in convolutions if one.bias is not None])
    own = torch.einsum("ne,eoihw->noihw", weights, kernels).flatten(0, 1)
    rows = x.contiguous().flatten(0, 1).unsqueeze(0)  # each row is a group of channels of one image
    out = F.conv2d(rows, own, (weights @ biases).flatten(), convolutions[0].stride, 1, groups=len(x))
    return out.squeeze(0).unflatten(0, (len(x), -1))


def dense_kernel(convolution: nn.Conv2d) -> Tensor:
    """Return a convolution's kernel as that of an ungrouped one of side 3. Shape (C', C, 3, 3)."""
    groups, missing = convolution.groups, (3 - convolution.kernel_size[0]) // 2
    parts = F.pad(convolution.weight, (missing,) * 4).chunk(groups)
    inputs = convolution.in_channels // groups
    placed = [
        F.pad(part, (0, 0, 0, 0, i * inputs, (groups - 1 - i) * inputs)) for i, part in enumerate(parts)
    ]  # zeros where a group does not look
    return torch.cat(placed)


def _folded(layer: nn.ModuleList) -> nn.ModuleList:
    experts = [one for one in layer if isinstance(one, Expert)]
    convolutions = nn.ModuleList(fuse_conv_bn_eval(one.conv, one.bn) for one in experts)
    return convolutions.requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
