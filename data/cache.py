"""Where downloads and decoded images are kept, and how they get there whole."""

import os
import tempfile
import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def cache_dir() -> Path:
    """Return the directory named by SKIPGYM_CACHE, by default ~/.cache/skipgym."""
    return Path(os.environ.get("SKIPGYM_CACHE") or "~/.cache/skipgym").expanduser()


def read_cached(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return tensors and metadata of a cache file, or None if it is absent or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError):
        return None


def write_cached(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a cache file in one step, so that no reader and no crash ever meets half of it.

    A cache that cannot be written costs time, not the run: it is a warning.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            whole = Path(scratch) / path.name
            save_file(tensors, whole, metadata)
            os.replace(whole, path)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"Decoded images are not kept: cannot write {path} ({error}). Remedy: set SKIPGYM_CACHE to a directory "
            "with room and write permission.",
            stacklevel=2,
        )
