"""Glances and crops of images, and what a frozen network makes of them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .backbone import Backbone
from .cost import count_macs


def glance(images: Tensor, side: int) -> Tensor:
    """Return whole images scaled down by averaging. Shape (N, C, H, W) to (N, C, side, side)."""
    return F.adaptive_avg_pool2d(images, side)


def crop(images: Tensor, centres: Tensor, side: int, *, zoom: int = 1, scales: int = 1) -> Tensor:
    """Return square pieces of images, sampled bilinearly, with gradients in the centres.

    Each is a retina as in RAM (Mnih et al. 2014): `scales` concentric squares, each twice as wide as the one before, at
    the same number of pixels; they are cut out of the image scaled down by averaging. What lies outside is 0, which is
    the mean colour in prepared images.

    Args:
        images: Shape (N, C, H, W).
        centres: Row and column of each centre, in pixels from the upper left corner. Shape (N, 2).
        side: Of the result, in pixels.
        zoom: Width of the innermost square, as a multiple of `side`: 1, 2, 4, ….
        scales: Number of squares.

    Returns:
        Shape (N, scales, C, side, side).
    """
    factors = [zoom * 2**scale for scale in range(scales)]
    return torch.stack([_window(shrunk(images, factor), centres / factor, side) for factor in factors], 1)


def shrunk(images: Tensor, factor: int) -> Tensor:
    """Return images scaled down by averaging. Shape (N, C, H, W) to (N, C, ceil(H / factor), ceil(W / factor))."""
    return images if factor == 1 else F.avg_pool2d(images, factor, ceil_mode=True)


def _window(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """Return squares of pixels around centres. Shape (N, C, side, side)."""
    reach = torch.arange(side, device=images.device) + 0.5 - side / 2
    rows, columns = (centres[:, axis, None] + reach for axis in (0, 1))  # (N, side), in pixels
    rows, columns = 2 * rows / images.shape[2] - 1, 2 * columns / images.shape[3] - 1
    grid = torch.stack(
        [columns[:, None, :].expand(-1, side, -1), rows[:, :, None].expand(-1, -1, side)], 3
    )  # grid_sample wants x before y
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


def place_code(centres: Tensor, zoom: int, size: Sequence[int]) -> Tensor:
    """Return where crops are as numbers for a reader. Shape (N, 2) to (N, 3).

    Args:
        centres: In pixels. Shape (N, 2).
        zoom: As for `crop`.
        size: Height and width of the images.
    """
    relative = 2 * centres / torch.tensor(size, dtype=centres.dtype, device=centres.device) - 1
    zooms = relative.new_full((relative.shape[0], 1), float(zoom)).log2()
    return torch.cat([relative, zooms], 1)


def encode(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the feature maps of a network before its head, of images of any size. Shape (N, D, h, w)."""
    x = backbone.stem(images)
    for block in backbone.blocks:
        x = block.run(x)
    return x


def encode_macs(backbone: Backbone, height: int, width: int = 0) -> int:
    """Return the cost of `encode` for one image, square unless a width is given, in MACs.

    Raises:
        ValueError: If the network takes no images of that size, or gives no feature maps.
    """
    device = next(backbone.network.parameters()).device
    size = height, width or height
    example = torch.zeros((1, backbone.input_shape[0], *size), device=device)
    was_training = backbone.training
    backbone.eval()  # in training BatchNorm would learn from the example
    try:
        maps = len(backbone.blocks[-1].out_shape) == 3
        macs = count_macs(lambda x: encode(backbone, x), example)
    except (RuntimeError, AssertionError, ValueError) as error:  # torchvision asserts the size of a transformer
        raise ValueError(_unfit(backbone, size, str(error).rstrip("."))) from error
    finally:
        backbone.train(was_training)
    if not maps:
        raise ValueError(_unfit(backbone, size, f"rows of shape {backbone.blocks[-1].out_shape}"))
    return macs


def _unfit(backbone: Backbone, size: tuple[int, int], got: str) -> str:
    return (
        f"backbone {backbone.name}: expected one whose blocks take images of {size[0]} x {size[1]} pixels and give "
        f"feature maps, got {got}. Use a convolutional network, or larger crops."
    )
