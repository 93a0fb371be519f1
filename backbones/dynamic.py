"""ResNets with dynamic parameters: what their blocks compute with depends on the input, and is frozen with them."""

from typing import Literal

from torch import Tensor, nn
from torchvision.ops import DeformConv2d, SqueezeExcitation

from .cifar_resnet import CifarBlock, CifarResNet

Kind = Literal["se", "deform"]
REDUCTION = 16  # of channels in a squeeze, as Hu et al. choose
LEAST_HIDDEN = 4  # 64 channels' share: narrow stages would be left with one or two numbers to tell them by


class Deformable(nn.Module):
    """A deformable convolution: a convolution shifts each of its samples by offsets of its own (Dai et al. 2017).

    The offsets come from an ordinary convolution of the same kernel, which begins with zeros, so that the whole begins
    as the convolution in whose place it is put. Samples are not modulated as in its second version (Zhu et al. 2019).

    Args:
        plain: Whose weights it takes; without bias.
    """

    def __init__(self, plain: nn.Conv2d):
        super().__init__()
        channels, out, side = plain.in_channels, plain.out_channels, plain.kernel_size[0]
        stride, padding = plain.stride[0], int(plain.padding[0])
        self.offset = nn.Conv2d(channels, 2 * side**2, side, stride, padding)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)
        self.conv = DeformConv2d(channels, out, side, stride, padding, bias=False)
        self.conv.load_state_dict(plain.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve. Shape (N, C, H, W) to (N, C', H', W')."""
        return self.conv(x, self.offset(x))


class _Mean(nn.Module):
    """The mean over all places, as of `AdaptiveAvgPool2d(1)`.

    In channels_last torch ends that with `as_strided`, which in an exported file fixes the number of rows.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def squeeze_excitation(channels: int) -> SqueezeExcitation:
    """Return what scales channels by what a pooled glance at all of them says; few channels lie between."""
    made = SqueezeExcitation(channels, max(LEAST_HIDDEN, channels // REDUCTION))
    made.add_module("avgpool", _Mean())
    return made


class DynamicResNet(CifarResNet):
    """A CIFAR ResNet whose blocks have squeeze-and-excitation, or deformable convolutions.

    Args:
        depth: As for `CifarResNet`.
        kind: se: in each block, after the second BatchNorm, channels are scaled by what a pooled glance at all of them
            says (SE-ResNet, Hu et al. 2018); a sixteenth of the channels lies between, at least 4. deform: the second
            convolution of each block of the last stage is deformable (Dai et al. put it into the last stage, too).
        num_classes: As for `CifarResNet`. Likewise `in_channels`.
        width: Channels of the first stage.
    """

    def __init__(self, depth: int, kind: Kind, *, num_classes: int = 10, in_channels: int = 3, width: int = 16):
        super().__init__(depth, num_classes=num_classes, in_channels=in_channels, width=width)
        stages = (self.layer1, self.layer2, self.layer3) if kind == "se" else (self.layer3,)
        for block in (block for stage in stages for block in stage):
            assert isinstance(block, CifarBlock)
            if kind == "se":
                block.se = squeeze_excitation(block.conv2.out_channels)
            else:
                block.add_module("conv2", Deformable(block.conv2))
