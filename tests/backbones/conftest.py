import pytest
import torch

from skipgym.backbones import make_backbone
from skipgym.backbones.recipe import Recipe
from skipgym.backbones.trainer import Trainer
from skipgym.data import Augment, ImageData, Part, load


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


def check_training_of_all(name: str) -> None:
    """Assert that one pass over the digits moves every parameter of a network, and twice the same way."""
    data, found = load("digits"), []
    for _ in range(2):
        torch.manual_seed(0)
        trainer = Trainer(make_backbone(name, **data.shape), data, Recipe(epochs=1, batch_size=128))
        before = {key: value.clone() for key, value in trainer.backbone.network.named_parameters()}
        trainer.run_epoch()
        found.append(trainer.finish().fingerprint())
        after = dict(trainer.backbone.network.named_parameters())
        assert all(not torch.equal(after[key], value) for key, value in before.items())
    assert found[0] == found[1]
