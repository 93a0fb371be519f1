"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), downloaded once through torchvision."""

from typing import TYPE_CHECKING

import torch

from .cache import cache_dir
from .images import Part
from .registry import register_data
from .splits import Source

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


@register_data("cifar10", description="60,000 photographs in 10 classes, 32x32 colour, downloaded (170 MB)")
def cifar10() -> Source:
    """Return CIFAR-10 with its published test images."""
    from torchvision.datasets import CIFAR10

    return _source("cifar10", CIFAR10)


@register_data("cifar100", description="60,000 photographs in 100 classes, 32x32 colour, downloaded (169 MB)")
def cifar100() -> Source:
    """Return CIFAR-100 (fine labels) with its published test images."""
    from torchvision.datasets import CIFAR100

    return _source("cifar100", CIFAR100)


def _source(name: str, dataset: "type[CIFAR10]") -> Source:
    train, test = _fetch(name, dataset, train=True), _fetch(name, dataset, train=False)
    return Source(
        name=name,
        parts={"train": _part(train), "test": _part(test)},
        class_names=tuple(train.classes),
        flip=True,
    )


def _fetch(name: str, dataset: "type[CIFAR10]", *, train: bool) -> "CIFAR10":
    root = cache_dir() / name
    try:
        # torchvision unpickles the archive's files, but only after their published checksums fit
        return dataset(str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:  # offline; damaged or incomplete download
        raise FileNotFoundError(
            f"{name} is not to be had: expected it in {root} or a network to download it from, got: {error}. Remedy: "
            f"connect once, set SKIPGYM_CACHE to where it lies, or give an .npz in MedMNIST layout (train_images, "
            f"train_labels, test_images, test_labels) instead of {name!r}."
        ) from error


def _part(data: "CIFAR10") -> Part:
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()  # (N, H, W, C) -> (N, C, H, W)
    return Part(images, torch.tensor(data.targets))
