"""A multi-scale supernet: each layer has a cell at every scale, and one of them is enough.

After "Learning Dynamic Routing for Semantic Segmentation" (Li et al. 2020): from layer to layer an input goes up to
a finer scale, keeps its own, or goes down. Here a stream of features stays at the finest scale. A cell averages it down
to its own, and its result is brought up again, so that every scale can follow every other, and results can be mixed.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from .crossing import Crossing
from .routing import evenly, route


class Cell(nn.Module):
    """Two convolutions at one scale, whose inner channels double with each halving of the side.

    Args:
        channels: Of the stream.
        factor: By which the scale is coarser than the stream.
    """

    def __init__(self, channels: int, factor: int):
        super().__init__()
        self.factor = factor
        self.conv1 = nn.Conv2d(channels, channels * factor, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels * factor)
        self.conv2 = nn.Conv2d(channels * factor, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add to the stream what is seen at this scale. Shape (N, C, H, W) to the same."""
        y = F.avg_pool2d(x, self.factor) if self.factor > 1 else x
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(y)))))
        y = F.interpolate(y, scale_factor=float(self.factor), mode="nearest") if self.factor > 1 else y
        return F.relu(y + x)


class Layer(Crossing):
    """A cell at each scale, from the coarsest to the finest.

    In evaluation the finest runs. In training every row draws a scale, all equally often, so that each is trained after
    whatever may have come before.
    """

    option_name = "scale"

    def __init__(self, channels: int, scales: int):
        super().__init__(Cell(channels, 2**scale) for scale in reversed(range(scales)))

    def forward(self, x: Tensor) -> Tensor:
        """Run one scale. Shape (N, C, H, W) to the same."""
        if self.training:
            return route(list(self.cells), x, evenly(len(x), len(self.cells), x.device))
        return self.cells[-1](x)


class Supernet(nn.Module):
    """Stem, layers, head.

    Args:
        layers: Their number.
        scales: Cells of a layer; each halves the side of the one before.
        width: Channels of the stream.
        num_classes: Outputs.
        input_shape: (C, H, W) of an image.

    Raises:
        ValueError: If there is nothing to choose among, or the coarsest scale does not divide the image.
    """

    def __init__(self, *, layers: int, scales: int, width: int, num_classes: int, input_shape: tuple[int, int, int]):
        super().__init__()
        if scales < 2 or layers < 1 or width < 1:
            raise ValueError(
                "supernet: expected at least one layer, two scales and one channel, got "
                f"supernet{layers}-s{scales}-w{width}. Between one scale and itself there is nothing to choose."
            )
        coarsest = 2 ** (scales - 1)
        if any(side % coarsest for side in input_shape[1:]):
            raise ValueError(
                f"supernet of {scales} scales: expected images whose sides {coarsest} divides, got "
                f"{input_shape[1]} x {input_shape[2]}. Use fewer scales, as in supernet{layers}-s{scales - 1}."
            )
        self.conv, self.bn = nn.Conv2d(input_shape[0], width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.layers = nn.Sequential(*(Layer(width, scales) for _ in range(layers)))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Run the finest scale everywhere. Shape (N, C, H, W) to (N, classes)."""
        x = self.layers(F.relu(self.bn(self.conv(x))))
        return self.fc(x.mean((2, 3)))
