"""Data by name or by path."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

from ..registry import Registry, first_line
from .decode import SUFFIXES as IMAGES
from .folder import load_folder
from .images import ImageData
from .listing import holds
from .npz import load_npz
from .splits import PolicyFrom, Source, assemble
from .text import SUFFIXES as TEXTS
from .text import load_text_folder, load_tsv
from .video import SUFFIXES as VIDEOS
from .video_folder import load_video_folder

Builder = Callable[[], Source]
Built = TypeVar("Built", bound=Callable[..., Source])


def _adopt(name: str, found: Any) -> tuple[Builder, str]:
    """Take a plug-in's function."""
    build: Builder = found
    if not callable(build):
        raise TypeError(f"expected a function that returns a skipgym.data.Source, got {found!r}")
    return build, first_line(build)


REGISTRY: Registry[Builder] = Registry("data", group="skipgym.data", adopt=_adopt)


def register_data(name: str, *, description: str) -> Callable[[Built], Built]:
    """Register a function that returns a `Source` under a name for `load`.

    Args:
        name: What users type.
        description: One line for `skipgym list`.

    Raises:
        ValueError: If the name is taken.
    """

    def register(builder: Built) -> Built:
        REGISTRY.add(name, builder, description, module=builder.__module__)
        return builder

    return register


def data_names() -> dict[str, str]:
    """Return the known names with their descriptions."""
    return dict(sorted(REGISTRY.names().items()))


def load(spec: str | Path, *, policy_from: PolicyFrom = "held-out", image_size: int | None = None) -> ImageData:
    """Load data and split it, the same way each time.

    Args:
        spec: A registered name, an ImageFolder directory (DIR/{train,test[,val]}/CLASS/* or DIR/CLASS/*) of images, of
            videos or of `.txt` files, a `.tsv` of lines label<TAB>text, or an `.npz` in MedMNIST layout. A name wins
            over a path; write ./NAME for a directory that bears one.
        policy_from: `held-out` keeps the policy's images from the backbone's training; `train` gives both parts all
            training images outside val and sets `seen`, for backbones that came trained on everything.
        image_size: Height and width in pixels to bring the images to. None leaves them as they are; an ImageFolder
            then takes its most common size, at most 224.

    Raises:
        ValueError: If the spec is unknown, an option is out of range, or the data is unfit.
        FileNotFoundError: If a path leads nowhere, or named data is neither here nor to be downloaded.
    """
    if policy_from not in get_args(PolicyFrom):
        raise ValueError(f"Unknown policy_from: expected one of {get_args(PolicyFrom)}, got {policy_from!r}.")
    if image_size is not None and image_size < 1:
        raise ValueError(f"The image size is too small: expected at least 1 pixel, got {image_size}.")
    return assemble(_source(spec, image_size), policy_from=policy_from, image_size=image_size)


def _source(spec: str | Path, image_size: int | None) -> Source:
    if build := REGISTRY.find(str(spec)):
        return build()
    path = Path(spec).expanduser()
    if path.is_dir():
        return _directory(path, image_size)
    if path.is_file():
        return load_tsv(path) if path.suffix.lower() in (".tsv", ".txt") else load_npz(path)
    if path.suffix == ".npz" or len(path.parts) > 1:
        raise FileNotFoundError(
            f"No data at {spec}: expected a directory of images or videos, or an .npz file, got a path that does not "
            "exist. Remedy: correct the path; a relative one starts at the working directory."
        )
    close = difflib.get_close_matches(str(spec), REGISTRY.known(), n=3)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    names = ", ".join(sorted(REGISTRY.known()))
    raise ValueError(
        f"Unknown data{hint}: expected one of {names}, got {str(spec)!r}. Remedy: pick one of these, or give the path "
        "of an ImageFolder directory, of a directory or .tsv of texts, or of an .npz in MedMNIST layout."
    )


def _directory(root: Path, image_size: int | None) -> Source:
    """Read a directory by what it holds; images, the usual case, are found at once."""
    if not holds(root, IMAGES):
        if holds(root, VIDEOS):
            return load_video_folder(root, image_size=image_size)
        if holds(root, TEXTS):
            return load_text_folder(root)
    return load_folder(root, image_size=image_size)
