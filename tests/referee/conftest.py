from dataclasses import replace

import pytest
import torch
from torch import nn

from skipgym.envs import make_task
from skipgym.referee.plan import CompareConfig


@pytest.fixture(scope="session")
def backbone(random_backbone):
    """A random network of 3 blocks whose answers to noise are spread over its classes."""
    backbone = random_backbone()
    images = torch.randint(256, (256, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    head = next(module for module in backbone.network.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        head.bias -= backbone(backbone.prepare(images)).mean(0)
    return backbone


@pytest.fixture(scope="session")
def task(backbone):
    return make_task("layer-skip", backbone)


@pytest.fixture(scope="session")
def data(backbone, make_noise):
    """Noise, labelled as the full network answers, but for every fifth image."""
    noise = make_noise(policy=96, val=64, test=60)

    def labelled(part):
        with torch.no_grad():
            labels = backbone(backbone.prepare(part.images)).argmax(1)
        return replace(part, labels=torch.where(torch.arange(len(part)) % 5 == 0, (labels + 1) % 4, labels))

    return replace(noise, **{name: labelled(noise.part(name)) for name in ("policy", "val", "test")})


@pytest.fixture(scope="session")
def tiny_config():
    """Return a function that builds a configuration whose cells take a second."""

    def build(**changes):
        small = {"agents": ("reinforce",), "targets": (0.4, 0.7), "seeds": 1, "images": 200, "num_envs": 32}
        return CompareConfig(
            **small | {"hidden": 8, "oracle_images": 16, "task": "layer-skip", "data": "noise"} | changes
        )

    return build
