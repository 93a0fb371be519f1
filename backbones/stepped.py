"""Networks that go by steps and answer at some of them: several maps between two steps, packed in one tensor."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


class Packing(nn.Module):
    """Several feature maps of an image as one row of numbers, and back; exact.

    Maps lie one after the other, each with its channels innermost, so that maps in channels_last are copied once.

    Args:
        shapes: (C, H, W) of each map.
    """

    def __init__(self, shapes: Sequence[Shape]):
        super().__init__()
        self.shapes = tuple(shapes)
        self.sizes = [math.prod(shape) for shape in self.shapes]

    def pack(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the maps as rows. Each (N, C, H, W), to (N, numbers)."""
        return torch.cat([one.permute(0, 2, 3, 1).flatten(1) for one in maps], 1)

    def unpack(self, x: Tensor) -> list[Tensor]:
        """Return the maps of rows, each in channels_last. Shape (N, numbers)."""
        parts = x.split(self.sizes, 1)
        return [_map(parts[index], shape) for index, shape in enumerate(self.shapes)]

    def last(self, x: Tensor) -> Tensor:
        """Return the last map of rows alone."""
        return _map(x.split([sum(self.sizes[:-1]), self.sizes[-1]], 1)[1], self.shapes[-1])


def _map(x: Tensor, shape: Shape) -> Tensor:
    channels, height, width = shape
    rows = x.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)
    return rows.contiguous(memory_format=torch.channels_last)


class Start(nn.Module):
    """What makes the first maps of an image; a module from (N, C, H, W) to a list of maps, packed."""

    def __init__(self, body: nn.Module, input_shape: Shape):
        super().__init__()
        self.body = body
        self.gives = Packing(_shapes(body, torch.zeros((1, *input_shape))))

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of images. Shape (N, C, H, W) to (N, numbers)."""
        return self.gives.pack(self.body(x))


class Step(nn.Module):
    """A piece between two packings; nothing can take its place, since later steps use what it adds.

    Args:
        body: From a list of maps to a list of maps.
        takes: How the maps are packed that it is given.
    """

    skippable = False

    def __init__(self, body: nn.Module, takes: Packing):
        super().__init__()
        self.body, self.takes = body, takes
        self.gives = Packing(_shapes(body, [torch.zeros((1, *shape)) for shape in takes.shapes]))

    def forward(self, x: Tensor) -> Tensor:
        """Take the step. Shape (N, numbers) to (N, other numbers)."""
        return self.gives.pack(self.body(self.takes.unpack(x)))


class Answer(nn.Module):
    """A classifier of the last map: two strided convolutions, the mean, a linear layer (MSDNet's for small images).

    Args:
        takes: How the maps are packed that it is given.
        width: Channels of the convolutions.
        num_classes: Outputs.
    """

    def __init__(self, takes: Packing, width: int, num_classes: int):
        super().__init__()
        self.takes = takes
        first, second = conv_bn(takes.shapes[-1][0], width, 3, 2), conv_bn(width, width, 3, 2)
        self.classifier = nn.Sequential(
            *first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits. Shape (N, numbers) to (N, classes)."""
        return self.classifier(self.takes.last(x))


class SteppedNet(nn.Module):
    """A network of steps whose answers, at some of them, are part of it and are trained with it.

    Args:
        start: Makes the first maps.
        bodies: Of the steps, each from a list of maps to a list of maps.
        after: After how many steps there are answers, rising; the last is the number of steps.
        width: Channels of the classifiers' convolutions.
        num_classes: Outputs.

    Attributes:
        after: Likewise.
        answers: The answers' modules, in their order; the last is the network's own.
    """

    def __init__(
        self, start: Start, bodies: Sequence[nn.Module], *, after: Sequence[int], width: int, num_classes: int
    ):
        super().__init__()
        self.start, self.after = start, tuple(after)
        steps: list[Step] = []
        for body in bodies:
            steps.append(Step(body, steps[-1].gives if steps else start.gives))
        self.steps = nn.ModuleList(steps)
        self.answers = nn.ModuleList(Answer(steps[count - 1].gives, width, num_classes) for count in self.after)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @property
    def step_names(self) -> list[str]:
        """Return the qualified names of the steps."""
        return [f"steps.{index}" for index in range(len(self.steps))]

    def exits(self) -> list[tuple[int, Answer]]:
        """Return the answers before the last, each with the number of steps that it comes after."""
        return [(after, one) for after, one in zip(self.after, self.answers, strict=True) if after < len(self.steps)]  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor) -> Tensor:
        """Take all steps and give the last answer. Shape (N, C, H, W) to (N, classes)."""
        x = self.start(x)
        for step in self.steps:
            x = step(x)
        return self.answers[-1](x)


class Scales(nn.Module):
    """An image at several scales: each a strided convolution of the finer one, with twice its channels.

    Args:
        in_channels: Of the image.
        width: Of the finest scale.
        count: Of scales.
    """

    def __init__(self, in_channels: int, width: int, count: int):
        super().__init__()
        finest = conv_bn(in_channels, width, 3)
        self.scales = nn.ModuleList([finest, *(conv_bn(width << s, width << s + 1, 3, 2) for s in range(count - 1))])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a map for each scale, the finest first. Shape (N, C, H, W)."""
        maps = []
        for scale in self.scales:
            x = scale(x)
            maps.append(x)
        return maps


def conv_bn(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution, BatchNorm and ReLU."""
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def bottleneck(in_channels: int, channels: int, factor: int, stride: int = 1) -> nn.Sequential:
    """Return a 1x1 convolution to `factor` times as many channels, where that is fewer, and a 3x3 convolution."""
    inner = factor * channels
    if in_channels <= inner:
        return conv_bn(in_channels, channels, 3, stride)
    return nn.Sequential(*conv_bn(in_channels, inner, 1), *conv_bn(inner, channels, 3, stride))


def check_scales(name: str, input_shape: Shape, scales: int) -> None:
    """Raise a ValueError unless the coarsest of so many scales has two pixels on a side."""
    least = 2**scales
    if scales < 1 or min(input_shape[1:]) < least:
        raise ValueError(
            f"{name}: expected images of at least {least} x {least} pixels for {scales} scales, got "
            f"{input_shape[1]} x {input_shape[2]}. Use larger images (pretrain: --image-size), or fewer scales in its "
            "name, as -s2."
        )


@torch.no_grad()
def _shapes(body: nn.Module, x: Tensor | list[Tensor]) -> list[Shape]:
    """Return of each map that a module gives its shape."""
    maps = body.eval()(x)
    body.train()
    return [tuple(one.shape[1:]) for one in maps]
