"""Resolution adaptive networks: sub-networks from low to high resolution (Yang et al. 2020, arXiv 2003.07326)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stepped import Scales, Start, SteppedNet, bottleneck, check_scales


class RANet(SteppedNet):
    """Sub-networks from low to high resolution; each uses what the one before has found, and answers several times.

    The first layer makes a base map at every resolution. Sub-network h begins with the base map that is h times finer
    than the coarsest (by 2^h) and comes down to the coarsest in h fusion blocks: dense layers that also see the earlier
    sub-network's features of the next coarser resolution, scaled up, and then a strided convolution beside another of
    those same features. Dense blocks at the coarsest resolution follow, each with a classifier. A map that is s times
    halved has `width` · 2^s channels at first, and layers add as many.

    Differs from the released code in that a fusion block sees the last features of the earlier sub-network's block
    instead of one layer's each, and in that dense blocks have no transitions.

    Args:
        exits: Answers, the last one's included; a multiple of `scales`.
        scales: Sub-networks, each of twice the resolution of the one before.
        width: Channels of the finest base map.
        layers: In each block.
        num_classes: Outputs.
        input_shape: (C, H, W) of the images.

    Raises:
        ValueError: If a number is out of range, or the images are too small for so many scales.
    """

    def __init__(
        self,
        *,
        exits: int = 6,
        scales: int = 3,
        width: int = 8,
        layers: int = 2,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
    ):
        check_scales("ranet", input_shape, scales)
        if exits < 2 or exits % scales or width < 2:
            raise ValueError(
                f"ranet: expected exits that are a multiple of its {scales} scales, from 2 on, and 2 or more channels, "
                f"got {exits} exits and {width} channels. Name such ones, as ranet6-s3-w8."
            )
        start = Start(nn.Sequential(Scales(input_shape[0], width, scales), InOrderOfUse()), input_shape)
        bodies: list[nn.Module] = []
        after: list[int] = []
        lower: list[int] = []  # channels of the earlier sub-network's maps, by resolution, the finest first
        for subnet in range(scales):
            channels, found = width << (scales - 1 - subnet), []
            for block in range(subnet):
                growth = width << (scales - 1 - subnet + block)
                fusion = Fusion(scales - 1 - subnet, channels, lower[block], growth, layers, keep=subnet < scales - 1)
                found.append(channels + layers * growth)
                bodies.append(fusion if block else nn.Sequential(NextSubnet(), fusion))
                channels = fusion.out_channels
            for _ in range(exits // scales):
                bodies.append(Dense(channels, width << (scales - 1), layers))
                channels += layers * (width << (scales - 1))
                after.append(len(bodies))
            lower = [*found, channels]
        super().__init__(start, bodies, after=after, width=2 * (width << (scales - 1)), num_classes=num_classes)


class InOrderOfUse(nn.Module):
    """Base maps as the sub-networks use them: the second's, the third's, …, and last the first's, the coarsest."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the maps, given the finest first."""
        return [*maps[-2::-1], maps[-1]]


class NextSubnet(nn.Module):
    """The step to the next sub-network: its base map becomes what is worked on, what was found is what it sees."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the maps with the first as the last."""
        return [*maps[1:], maps[0]]


class Dense(nn.Module):
    """Dense layers on the last map; the others pass."""

    def __init__(self, channels: int, growth: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(bottleneck(channels + i * growth, growth, 2) for i in range(layers))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the maps, the last with more channels."""
        x = maps[-1]
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return [*maps[:-1], x]


class Fusion(nn.Module):
    """Dense layers that see an earlier sub-network's coarser map too, and the way down to its resolution.

    Maps come as base maps yet to be used, the earlier sub-network's yet to be used, those that this sub-network leaves
    to the next one, and what is worked on.

    Args:
        bases: Number of base maps yet to be used.
        channels: Of what is worked on.
        lower: Channels of the earlier sub-network's map.
        growth: Channels that a layer adds, half of them from the earlier sub-network's map.
        layers: Dense layers.
        keep: Whether there is a next sub-network.

    Attributes:
        out_channels: Of what is worked on, afterwards.
    """

    def __init__(self, bases: int, channels: int, lower: int, growth: int, layers: int, *, keep: bool):
        super().__init__()
        self.bases, self.keep = bases, keep
        widths, half = [channels + i * growth for i in range(layers + 1)], growth // 2
        self.own = nn.ModuleList(bottleneck(width, growth - half, 2) for width in widths[:-1])
        self.lower = nn.ModuleList(bottleneck(lower, half, 2) for _ in range(layers))
        self.down = bottleneck(widths[-1], growth, 2, 2)
        self.beside = bottleneck(lower, growth, 2)
        self.out_channels = 2 * growth

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the maps after the block."""
        low, x = maps[self.bases], maps[-1]
        for own, lower in zip(self.own, self.lower, strict=True):
            x = torch.cat([x, own(x), _enlarged(lower(low), x)], 1)
        kept = [x] if self.keep else []
        down = torch.cat([self.down(x), self.beside(low)], 1)
        return [*maps[: self.bases], *maps[self.bases + 1 : -1], *kept, down]


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Return a map at another's resolution, bilinear."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
