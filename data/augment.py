"""Augmentation as a pure function of images and numbers drawn elsewhere."""

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .images import ImageData


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to uint8 images that leave their labels true.

    `apply` draws nothing itself: each row of its result depends on that row's image and uniforms alone, so that single
    and vector environments agree and a run can be repeated. An Augment that changes nothing is false.

    Raises:
        ValueError: If a strength is out of range.
    """

    pad: int = 0
    """Crop at random from the image with this many black pixels around it."""
    flip: bool = False
    """Mirror with probability 1/2."""
    rotate: float = 0.0
    """Largest rotation to either side, in degrees, 0..180."""
    brightness: float = 0.0
    """Largest relative change of all pixels, 0..1."""
    contrast: float = 0.0
    """Largest relative change of the distance from the image's mean, 0..1."""
    cutout: int = 0
    """Side of a black square around a random pixel (DeVries & Taylor 2017), in pixels."""

    draws: ClassVar[int] = 8
    """Uniforms for each image, whatever is switched on."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        largest = {"pad": math.inf, "flip": 1, "rotate": 180, "brightness": 1, "contrast": 1, "cutout": math.inf}
        for name, limit in largest.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(
                    f"Augment.{name} is out of range: expected 0..{limit:g}, got {getattr(self, name)}. Remedy: 0 "
                    "switches it off."
                )

    def __bool__(self) -> bool:
        """Return whether any image can change."""
        return any(getattr(self, field.name) for field in fields(self))

    @classmethod
    def light(cls, data: "ImageData") -> "Augment":
        """Return what the data declares: for images that the backbone was not trained on."""
        return data.augment

    @classmethod
    def strong(cls, data: "ImageData") -> "Augment":
        """Return what the data declares and more: for images that the backbone knows by heart.

        The strength is set so that a published ResNet-32 is about as often right on its own training images of CIFAR-10
        (92.1 % of 2,000, untouched 99.9 %) as it is on unseen ones (92.6 %). Texts stay as they are.
        """
        if data.vocabulary:
            return data.augment
        size = min(data.image_shape[1:])
        return replace(data.augment, rotate=10.0, brightness=0.2, contrast=0.2, cutout=size // 8)

    def apply(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Augment each image by its own uniforms; all frames of a clip by those of the clip.

        Args:
            images: Shape (N, C, H, W) or (N, T, C, H, W), uint8, on any device.
            uniforms: Shape (N, draws), floats in [0, 1), on the same device.

        Returns:
            Shape and dtype of `images`, which are left as they are.

        Raises:
            ValueError: If a shape or dtype differs from the above.
        """
        self._check(images, uniforms)
        if images.ndim == 5:
            frames = self.apply(images.flatten(0, 1), uniforms.repeat_interleave(images.shape[1], 0))
            return frames.view(images.shape)
        u = uniforms.float()
        if self.rotate:
            images = rotated(images, self.rotate * (2 * u[:, 0] - 1))
        if self.pad or self.flip:
            down, right = ((_whole(u[:, k], 2 * self.pad + 1) - self.pad) for k in (1, 2))
            images = shifted(images, down, right, (u[:, 3] < 0.5) & self.flip)
        if self.brightness or self.contrast:
            gain, spread = 1 + self.brightness * (2 * u[:, 4] - 1), 1 + self.contrast * (2 * u[:, 5] - 1)
            images = jittered(images, gain, spread)
        if self.cutout:
            row, column = _whole(u[:, 6], images.shape[2]), _whole(u[:, 7], images.shape[3])
            images = cut_out(images, row, column, self.cutout)
        return images

    def _check(self, images: Tensor, uniforms: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim not in (4, 5):
            raise ValueError(
                "Cannot augment: expected uint8 images of shape (N, C, H, W), or clips (N, T, C, H, W), got "
                f"{images.dtype} of shape {tuple(images.shape)}. Remedy: augment before normalising."
            )
        if uniforms.shape != (len(images), self.draws) or not uniforms.is_floating_point():
            raise ValueError(
                f"Uniforms do not fit the images: expected floats of shape {(len(images), self.draws)}, got "
                f"{uniforms.dtype} of shape {tuple(uniforms.shape)}. Remedy: torch.rand(len(images), Augment.draws)."
            )


def shifted(images: Tensor, down: Tensor, right: Tensor, flip: Tensor) -> Tensor:
    """Mirror where `flip` is true, then move each image; what comes in is black.

    Args:
        images: Shape (N, C, H, W).
        down: Pixels to move down by. Shape (N,), int64.
        right: Pixels to move to the right by. Shape (N,), int64.
        flip: Shape (N,), bool.
    """
    n, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) - down[:, None]  # (N, H): where each pixel comes from
    columns = torch.arange(width, device=images.device) - right[:, None]  # (N, W)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]  # (N, H, W)
    source = source.reshape(n, 1, height * width).expand(-1, channels, -1)
    return images.reshape(n, channels, height * width).gather(2, source).reshape(images.shape) * inside[:, None]


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image clockwise about its centre, bilinearly; what comes in is black.

    Args:
        images: Shape (N, C, H, W), uint8.
        degrees: Shape (N,).
    """
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    cos, sin = (f(torch.deg2rad(degrees))[:, None, None] for f in (torch.cos, torch.sin))
    # elementwise on purpose: a matrix product may round differently for another batch size
    from_x = cos * x[None, None, :] + sin * y[None, :, None]  # (N, H, W), pixels from the centre
    from_y = cos * y[None, :, None] - sin * x[None, None, :]
    grid = torch.stack([from_x * (2 / width), from_y * (2 / height)], dim=-1)
    return _levels(F.grid_sample(images.float(), grid, align_corners=False))


def jittered(images: Tensor, gain: Tensor, spread: Tensor) -> Tensor:
    """Scale each image's distance from its mean by `spread`, then everything by `gain`.

    Args:
        images: Shape (N, C, H, W), uint8.
        gain: Shape (N,).
        spread: Shape (N,).
    """
    # an integer sum is exact, whatever order a batch is summed in
    mean = (images.long().sum((1, 2, 3)).float() / math.prod(images.shape[1:]))[:, None, None, None]
    return _levels(((images.float() - mean) * spread[:, None, None, None] + mean) * gain[:, None, None, None])


def cut_out(images: Tensor, row: Tensor, column: Tensor, side: int) -> Tensor:
    """Blacken the square of the given side around a pixel, as far as it lies within the image.

    Args:
        images: Shape (N, C, H, W).
        row: Shape (N,), int64.
        column: Shape (N,), int64.
        side: Pixels.
    """
    y = torch.arange(images.shape[2], device=images.device) - (row[:, None] - side // 2)  # (N, H)
    x = torch.arange(images.shape[3], device=images.device) - (column[:, None] - side // 2)  # (N, W)
    hole = ((y >= 0) & (y < side))[:, :, None] & ((x >= 0) & (x < side))[:, None, :]
    return images * ~hole[:, None]


def _whole(uniform: Tensor, n: int) -> Tensor:
    return (uniform * n).long().clamp(max=n - 1)  # 0..n-1; a float64 just below 1 is 1 in float32


def _levels(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
