"""Images for backbones and policies: four disjoint parts, decoded once, kept as uint8 tensors.

`load` takes the name of registered data, an ImageFolder directory, texts, or an `.npz` in MedMNIST layout. To add data
under a name, write a function that returns a `Source`, decorate it with `register_data` and import its
module here.
"""

from . import cifar, cluttered, digit_clips, digits, noisy, phrases  # noqa: F401 - importing them registers their names
from .augment import Augment
from .decode import read_image
from .images import ImageData, Part, PartName
from .registry import data_names, load, register_data
from .splits import Shares, Source

__all__ = [
    "Augment",
    "ImageData",
    "Part",
    "PartName",
    "Shares",
    "Source",
    "data_names",
    "load",
    "read_image",
    "register_data",
]
