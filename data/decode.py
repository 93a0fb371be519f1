"""Image files to uint8 tensors of one size."""

import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_SIZES_LOOKED_AT = 1000
_LARGEST_DEFAULT = 224
_QUIET_UP_TO = 2000


def read_image(path: str | Path, *, image_size: int, channels: int = 3) -> Tensor:
    """Read one image as an ImageFolder's are read: upright, shorter side resized, centre cropped.

    Transparent pixels become white; 16-bit levels are scaled to 8 bits.

    Args:
        path: An image file.
        image_size: Height and width of the result in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        Shape (channels, image_size, image_size), uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no readable image, or `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"Images cannot have {channels} channels: expected 1 (grey) or 3 (RGB).")
    try:
        return torch.from_numpy(_pixels(Path(path), image_size, "RGB" if channels == 3 else "L"))
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read: expected an image file, got: {error}.") from error


def read_images(paths: Sequence[Path], image_size: int) -> tuple[Tensor, dict[int, str]]:
    """Read many images in threads, with a progress bar when there are many.

    Args:
        paths: Image files.
        image_size: Height and width of the result in pixels.

    Returns:
        Images of shape (N, 3, image_size, image_size), uint8, and what is wrong with those that cannot be read, by
        their number; their pixels are undefined.
    """
    images = np.empty((len(paths), 3, image_size, image_size), np.uint8)

    def read(row: int) -> str | None:
        try:
            images[row] = _pixels(paths[row], image_size, "RGB")
        except _UNREADABLE as error:
            return str(error) or type(error).__name__
        return None

    with ThreadPoolExecutor() as pool:
        quiet = len(paths) <= _QUIET_UP_TO
        problems = list(tqdm(pool.map(read, range(len(paths))), "decoding", len(paths), disable=quiet, unit="image"))
    return torch.from_numpy(images), {row: problem for row, problem in enumerate(problems) if problem}


def common_size(paths: Sequence[Path]) -> int:
    """Return the most common shorter side among (at most 1,000 of) the images, at most 224."""
    sizes: Counter[int] = Counter()
    for path in paths[:: len(paths) // _SIZES_LOOKED_AT + 1]:
        try:
            with Image.open(path) as image:
                sizes[min(image.size)] += 1
        except _UNREADABLE:
            continue  # reported when it is decoded
    return min(max(sizes, key=lambda size: (sizes[size], size), default=_LARGEST_DEFAULT), _LARGEST_DEFAULT)


def _pixels(path: Path, size: int, mode: str) -> np.ndarray:
    with Image.open(path) as image:
        image.draft(None, (2 * size, 2 * size))  # lets JPEG decode large photographs at a fraction of their size
        upright = _eight_bit(ImageOps.exif_transpose(image)).convert(mode)
    return fitted(upright, size)


def fitted(image: Image.Image, size: int) -> np.ndarray:
    """Return pixels with the shorter side resized and the centre cropped. Shape (C, size, size), uint8."""
    pixels = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    return pixels.reshape(size, size, -1).transpose(2, 0, 1).copy()  # (H, W, C) -> (C, H, W)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which older Pillows open as 32-bit integers
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return image
