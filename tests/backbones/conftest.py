import pytest
import torch

from skipgym.data import Augment, ImageData, Part


def squares(count: int, seed: int) -> Part:
    """Return 8x8 images whose class is told by which half is bright."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 2
    images[labels == 0, :, :4] += 120
    images[labels == 1, :, 4:] += 120
    return Part(images, labels)


@pytest.fixture
def data() -> ImageData:
    """Return the squares in four parts: a task that a tiny network learns in seconds."""
    return ImageData(
        name="squares",
        train=squares(48, 0),
        policy=squares(16, 1),
        val=squares(16, 2),
        test=squares(16, 3),
        class_names=("top", "bottom"),
        mean=(0.4,),
        std=(0.3,),
        augment=Augment(pad=1),
        fingerprint="f" * 16,
        note="made in the test",
    )
