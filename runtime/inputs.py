"""What calls are given, as an exported file takes it."""

import numpy as np

from .file import Card

FLOAT32, UINT8, UINT32 = np.dtype(np.float32), np.dtype(np.uint8), np.dtype(np.uint32)
ONE = np.float32(1).view(np.uint32)


def check_price(card: Card, price: float) -> float:
    """Return a price as the file takes it.

    Raises:
        ValueError: If it is out of range.
    """
    least, most = card.prices
    if not (least <= price < float("inf") and (most is None or price <= most)):
        upper = "upwards" if most is None else f"… {most:g}"
        raise ValueError(f"price: expected {least:g} {upper}, which the policy knows, got {price}. Choose within it.")
    return float(price)


def prepare(card: Card, images: np.ndarray) -> np.ndarray:
    """Return images as the file takes them; grey ones are repeated where it wants colour.

    Raises:
        ValueError: If shape, type or values do not fit.
    """
    if _as_wanted(card, images):
        return images
    images = np.asarray(images)
    shape, grey = card.input_shape, (1, *card.input_shape[1:])
    if images.ndim != 4 or images.shape[1:] not in (shape, grey) or not len(images):
        raise ValueError(
            f"images: expected shape (N, C, H, W) with C x H x W = {' x '.join(map(str, shape))}, got {images.shape}. "
            "Resize them, or convert their colours."
        )
    if images.dtype != np.uint8:
        inside = np.issubdtype(images.dtype, np.floating) and bool(((images >= 0) & (images <= 1)).all())
        if not inside:  # NaN too
            got = f"{images.dtype} from {images.min():g} to {images.max():g}"
            raise ValueError(f"images: expected uint8 or finite floats in 0…1, got {got}. Convert or scale them.")
        if card.input_type == "uint8":
            raise ValueError(f"images: expected uint8, which this file takes, got {images.dtype}. Convert them.")
    elif card.input_type != "uint8":
        images = images / np.float32(255)
    wanted = np.uint8 if card.input_type == "uint8" else np.float32
    return np.ascontiguousarray(np.broadcast_to(images, (len(images), *shape)), dtype=wanted)


def _as_wanted(card: Card, images: np.ndarray) -> bool:
    """Return whether images are surely what the file takes: a look that costs little.

    As whole numbers floats in 0…1 are at most what 1 is; negative ones, infinities and NaN are larger.
    """
    if type(images) is not np.ndarray or images.shape[1:] != card.input_shape or not images.flags.c_contiguous:
        return False
    if images.dtype is UINT8:
        return card.input_type == "uint8" and len(images) > 0
    return (
        images.dtype is FLOAT32
        and card.input_type == "float32"
        and len(images) > 0
        and np.maximum.reduce(images.view(UINT32), axis=None) <= ONE
    )
