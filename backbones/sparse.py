"""Residual blocks at some places of the feature map: what is needed there is gathered, run and scattered."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from .block import Block
from .cifar_resnet import CifarBlock


class SparseConvolution(nn.Module):
    """A convolution as a matrix product at some of its places.

    Args:
        convolution: With BatchNorm folded in.
        size: Height and width of its input.

    Raises:
        ValueError: If it is grouped or dilated, or not padded so that at stride 1 the size stays.

    Attributes:
        place_macs: Cost of one place, in MACs.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, convolution: nn.Conv2d, size: Sequence[int]):
        super().__init__()
        self.size, self.kernel, self.stride = tuple(size), convolution.kernel_size[0], convolution.stride[0]
        half = self.kernel // 2
        kept = self.kernel % 2 == 1 and convolution.padding == (half, half)
        if not kept or convolution.groups != 1 or convolution.dilation != (1, 1):
            raise ValueError(
                "backbone: expected convolutions of odd kernels that keep the size, without groups and dilation, got "
                f"{convolution}. Use one such as resnet20."
            )
        out, channels = convolution.weight.shape[:2]
        self.place_macs = self.kernel**2 * channels * out
        self.register_buffer("weight", convolution.weight.detach().permute(2, 3, 1, 0).reshape(-1, out).clone())
        bias = convolution.weight.new_zeros(out) if convolution.bias is None else convolution.bias.detach().clone()
        self.register_buffer("bias", bias)

    def forward(self, maps: Tensor, places: Sequence[Tensor]) -> Tensor:
        """Return the outputs at some places. Shape (P, C').

        Args:
            maps: Shape (N, H, W, C).
            places: Number of the map, row and column of each output. Each (P,).
        """
        number, row, column = places
        x = F.pad(maps, (0, 0, *(self.kernel // 2,) * 4))
        height, width = x.shape[1:3]
        reach = torch.arange(self.kernel, device=x.device)
        first = (number * height + self.stride * row) * width + self.stride * column
        index = first.unsqueeze(1) + (reach.unsqueeze(1) * width + reach).flatten()
        gathered = x.flatten(0, 2).index_select(0, index.flatten()).view(-1, len(self.weight))
        return torch.addmm(self.bias, gathered, self.weight)

    def reach(self, mask: Tensor) -> Tensor:
        """Return where the input is needed for the output under a mask; of shares the largest.

        Shape (N, H', W') to (N, H, W).
        """
        wide = mask
        if self.stride > 1:
            wide = mask.new_zeros((len(mask), *self.size))
            wide[:, :: self.stride, :: self.stride] = mask
        return F.max_pool2d(wide.unsqueeze(1), self.kernel, 1, self.kernel // 2).squeeze(1)


class SparseBlock(nn.Module):
    """A residual block whose branch runs at some places; the shortcut alone fills the others.

    The last convolution runs at the places of the mask, each before it wherever the next one reaches: kept places and
    their halo, computed once where they share it. So the output at kept places is that of the whole block, and under a
    mask of ones the cost too.

    Args:
        block: In the frozen backbone.
        source: The module that it was cut from, in evaluation mode.

    Raises:
        ValueError: If that is no residual block that is known, or one whose places depend on more than neighbours.
    """

    def __init__(self, block: Block, source: nn.Module):
        super().__init__()
        if not isinstance(source, CifarBlock | BasicBlock | Bottleneck):
            raise ValueError(
                f"block {block.name}: expected a residual block of a CIFAR ResNet or of torchvision's ResNets, got "
                f"{type(source).__name__}. Use a backbone such as resnet20 or resnet18."
            )
        if isinstance(source, CifarBlock) and (source.se is not None or not isinstance(source.conv2, nn.Conv2d)):
            what = "squeeze-and-excitation" if source.se is not None else "a deformable convolution"
            raise ValueError(
                f"block {block.name}: expected one whose places depend on their neighbours only, got one with {what}. "
                "Use a plain ResNet such as resnet20."
            )
        shortcut = source.shortcut if isinstance(source, CifarBlock) else source.downsample
        self.shortcut = nn.Identity() if shortcut is None else copy.deepcopy(shortcut)
        self.bypass_macs, size = block.bypass_macs, tuple(block.in_shape[1:])
        found: list[SparseConvolution] = []
        for name in (name for name in "123" if hasattr(source, f"conv{name}")):
            fused = fuse_conv_bn_eval(getattr(source, f"conv{name}"), getattr(source, f"bn{name}"))
            found.append(SparseConvolution(fused, size))
            size = tuple(-(-side // found[-1].stride) for side in size)
        self.convolutions: Sequence[SparseConvolution] = nn.ModuleList(found)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Execute the branch at the kept places.

        Args:
            x: Shape (N, C, H, W).
            mask: Where the branch runs, 0 or 1. Shape (N, H', W').

        Returns:
            Shape (N, C', H', W').
        """
        maps = x.permute(0, 2, 3, 1)
        *before, last = zip(self.convolutions, self.needed(mask), strict=True)
        for convolution, needed in before:
            places = needed.nonzero(as_tuple=True)
            maps = _scattered(F.relu(convolution(maps, places)), places, needed.shape)
        places = mask.nonzero(as_tuple=True)
        branch = _scattered(last[0](maps, places), places, mask.shape)
        return F.relu(self.shortcut(x) + branch.permute(0, 3, 1, 2))

    def needed(self, mask: Tensor) -> list[Tensor]:
        """Return where each convolution runs, for a mask of the output. Each of shape (N, rows, columns)."""
        found = [mask]
        for convolution in list(self.convolutions)[:0:-1]:
            found.insert(0, convolution.reach(found[0]))
        return found

    def cost(self, mask: Tensor) -> Tensor:
        """Return what the block costs under a mask, which may hold shares, in MACs. Shape (N, H', W') to (N,)."""
        pairs = zip(self.needed(mask), self.convolutions, strict=True)
        return self.bypass_macs + torch.stack([needed.sum((1, 2)) * one.place_macs for needed, one in pairs]).sum(0)


def _scattered(values: Tensor, places: tuple[Tensor, ...], shape: Sequence[int]) -> Tensor:
    """Return maps (N, H, W, C) that have values at some places, and zeros elsewhere."""
    return values.new_zeros((*shape, values.shape[1])).index_put(places, values)
