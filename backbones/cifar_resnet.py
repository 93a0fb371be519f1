"""ResNets for small images, depth 6n+2, with parameter-free (option A) shortcuts (He et al. 2016, section 4.2).

Parameter names are those of the widely used published checkpoints, so they load as they are.
"""

import re
from collections.abc import Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

_OF_A_BLOCK = re.compile(r"(layer\d+)\.(\d+)\.(.+)")


class OptionA(nn.Module):
    """Shortcut without parameters: take every second pixel, pad the new channels with zeros on both sides."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.pad = (out_channels - in_channels) // 2
        self.rest = out_channels - in_channels - self.pad

    def forward(self, x: Tensor) -> Tensor:
        """Halve the resolution and widen. Shape (N, C, H, W) to (N, C', ceil(H/2), ceil(W/2))."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.rest))


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut, ReLU at the end; between them `inner` channels.

    Attributes:
        se: What scales the branch before the sum; None in a plain ResNet.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, *, inner: int = 0):
        super().__init__()
        inner = inner or channels
        self.conv1 = nn.Conv2d(in_channels, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.se: nn.Module | None = None
        changes = stride != 1 or in_channels != channels
        self.shortcut = OptionA(in_channels, channels) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block. Shape (N, C, H, W) to (N, C', H', W')."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.se is not None:
            out = self.se(out)
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of 6n+2 layers in three stages of n blocks.

    Args:
        depth: 8, 14, 20, …; (depth - 2) must be divisible by 6.
        num_classes: Size of the output.
        in_channels: Channels of the input image.
        width: Channels of the first stage; the others have 2 and 4 times as many.

    Raises:
        ValueError: If the depth is not 6n+2.
    """

    def __init__(self, depth: int, *, num_classes: int = 10, in_channels: int = 3, width: int = 16):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f"depth of a CIFAR ResNet: expected 6n+2 (8, 14, 20, …), got {depth}. Choose such a depth."
            )
        per_stage = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, per_stage, 1)
        self.layer2 = self._stage(width, 2 * width, per_stage, 2)
        self.layer3 = self._stage(2 * width, 4 * width, per_stage, 2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def _stage(self, in_channels: int, channels: int, count: int, stride: int) -> nn.Sequential:
        first = CifarBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(CifarBlock(channels, channels, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Classify normalised images. Shape (N, C, H, W) to (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def thinned(state: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Leave out blocks of a deeper ResNet's weights, so that a shallower one can start from them.

    Args:
        state: Weights by name; those of blocks are called `layerS.I.…`.
        wanted: Names of the shallower network's weights. Of m blocks in a stage it gets n, evenly spread from the
            first to the last; if n is 1, the first.

    Returns:
        Weights by the shallower network's names; unchanged where it has as many blocks, or more.
    """
    given, needed = _blocks_by_stage(state), _blocks_by_stage(wanted)
    source: dict[tuple[str, int], int] = {}
    for stage, count in needed.items():
        spread = (given.get(stage, 1) - 1) / max(1, count - 1)
        source |= {(stage, i): round(i * spread) if spread > 1 else i for i in range(count)}
    renamed = {key: value for key, value in state.items() if not _OF_A_BLOCK.fullmatch(key)}
    for (stage, i), j in source.items():
        prefix = f"{stage}.{j}."
        renamed |= {f"{stage}.{i}.{k.removeprefix(prefix)}": v for k, v in state.items() if k.startswith(prefix)}
    return renamed


def _blocks_by_stage(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for match in filter(None, map(_OF_A_BLOCK.fullmatch, names)):
        counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts
