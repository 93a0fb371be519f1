"""Multi-scale dense networks, with an answer at each step (Huang et al. 2018, arXiv 1703.09844)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .stepped import Scales, Start, SteppedNet, bottleneck, check_scales, conv_bn

REDUCTION = 2  # a transition divides the channels of each scale by this


class MSDNet(SteppedNet):
    """Dense layers at several scales at once; the coarsest is classified after every step.

    The first layer makes all scales, each by a strided convolution of the finer one, with `width` · 2^s channels. Every
    later layer adds as many again to scale s: from the same scale, and from the second scale on half of them by a
    strided convolution from the finer one. Convolutions that take more than 2^s times the channels that they give have
    a bottleneck of that many. Layers are in as many equal groups as there are scales; the first of each group but the
    first leaves the finest scale out, and a transition halves the channels of the others ("network reduction").

    Differs from the released code for CIFAR in that layers add as many channels as the first layer has (there 6 for
    16), and there are fewer of them; and in that bottlenecks which would not be narrower are left out. Classifiers have
    twice the channels of the coarsest scale's first layer, as there. Small numbers of channels and many layers cost few
    MACs but much time.

    Args:
        exits: Answers, the last one's included.
        scales: Resolutions, each half of the one before.
        width: Channels of the finest scale in the first layer, and of what each layer adds to it.
        layers: In each step; the first step has `first` of them.
        first: Likewise.
        num_classes: Outputs.
        input_shape: (C, H, W) of the images.

    Raises:
        ValueError: If a number is out of range, or the images are too small for so many scales.
    """

    def __init__(
        self,
        *,
        exits: int = 7,
        scales: int = 3,
        width: int = 8,
        layers: int = 1,
        first: int = 2,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
    ):
        if exits < 2 or width < 2:
            raise ValueError(f"msdnet: expected 2 or more exits and channels, got {exits} and {width}. Name such ones.")
        check_scales("msdnet", input_shape, scales)
        start = Start(Scales(input_shape[0], width, scales), input_shape)
        growth = channels = [width << s for s in range(scales)]
        counts = [first, *(layers,) * (exits - 1)]
        group = math.ceil(sum(counts) / scales)
        bodies, done = [], 0
        for count in counts:
            parts: list[nn.Module] = []
            for index in range(done, done + count):
                reduces = index > 0 and index % group == 0
                layer = Layer(channels, growth, drop=reduces)
                parts.append(layer)
                channels = layer.out_channels
                if reduces:
                    transition = Transition(channels)
                    parts.append(transition)
                    channels = transition.out_channels
            bodies.append(nn.Sequential(*parts))
            done += count
        after = range(1, exits + 1)
        super().__init__(start, bodies, after=after, width=2 * growth[-1], num_classes=num_classes)


class Layer(nn.Module):
    """A dense layer at each scale: what was there, what the finer scale gives strided, and what the same scale gives.

    Args:
        channels: Of each scale that comes in, the finest first.
        growth: Channels to add at each of the network's scales, the finest first.
        drop: Whether the finest scale is left out, after the next has taken from it.

    Attributes:
        out_channels: Of each scale that goes out.
    """

    def __init__(self, channels: Sequence[int], growth: Sequence[int], *, drop: bool):
        super().__init__()
        self.first = int(drop)
        gone = len(growth) - len(channels)
        scales = range(self.first, len(channels))
        added = [growth[gone + s] for s in scales]
        halves = [n // 2 if s else 0 for s, n in zip(scales, added, strict=True)]
        self.out_channels = [channels[s] + n for s, n in zip(scales, added, strict=True)]
        self.same = nn.ModuleList(
            bottleneck(channels[s], n - half, 1 << (gone + s)) for s, n, half in zip(scales, added, halves, strict=True)
        )
        self.finer = nn.ModuleList(
            bottleneck(channels[s - 1], half, 1 << (gone + s - 1), 2)
            for s, half in zip(scales, halves, strict=True)
            if s
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the maps with the layer's channels. The finest first."""
        lacking = len(self.same) - len(self.finer)  # the finest scale has nothing finer
        out = []
        for index, same in enumerate(self.same):
            scale = index + self.first
            parts = [maps[scale], same(maps[scale])]
            if index >= lacking:
                parts.insert(1, self.finer[index - lacking](maps[scale - 1]))
            out.append(torch.cat(parts, 1))
        return out


class Transition(nn.Module):
    """Half the channels at each scale, by 1x1 convolutions."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.out_channels = [count // REDUCTION for count in channels]
        self.scales = nn.ModuleList(
            conv_bn(count, less, 1) for count, less in zip(channels, self.out_channels, strict=True)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the maps with fewer channels."""
        return [scale(one) for scale, one in zip(self.scales, maps, strict=True)]
