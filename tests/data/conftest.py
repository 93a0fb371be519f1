import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what a test caches away from the user's cache."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SKIPGYM_CACHE", str(path))
    return path


@pytest.fixture
def outside() -> Callable[[str], Path]:
    """Return a function that finds data outside the repository, or skips."""

    def find(name: str) -> Path:
        path = Path(os.environ.get("SKIPGYM_TEST_DATA", "~/.cache/skipgym-data")).expanduser() / name
        if not path.exists():
            pytest.skip(f"{name} is not in {path.parent}; SKIPGYM_TEST_DATA names another directory")
        return path

    return find


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Return a sound little data set in MedMNIST layout: 3 classes, 6x6 colour."""
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (60, 6, 6, 3), dtype=np.uint8),
        "train_labels": np.arange(60) % 3,
        "test_images": rng.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8),
        "test_labels": np.arange(12) % 3,
    }


@pytest.fixture
def save_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes n random images for each class directory."""

    def save(*classes: str, n: int = 5, size: tuple[int, int] = (12, 12), root: str = "photos") -> Path:
        rng = np.random.default_rng(0)
        for name in classes:
            directory = tmp_path / root / name
            directory.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (*reversed(size), 3), dtype=np.uint8)
                Image.fromarray(pixels).save(directory / f"{i:02}.png")
        return tmp_path / root

    return save
