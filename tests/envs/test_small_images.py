"""Images of a pixel or two: a task takes them, or says before any work what it wants."""

import pytest
import torch

from skipgym.backbones import make_backbone
from skipgym.envs import make_task

NETWORKS = {"token-skip": "vit3-w16-p2"}
NAMES = ("layer-skip", "block-drop", "channel-gate", "resolution", "pixel-mask", "token-skip")


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_tiny_images_are_taken_or_refused_at_once(name, side):
    images = torch.zeros((2, 1, side, side), dtype=torch.uint8)
    try:
        network = NETWORKS.get(name, "resnet8-w4")
        task = make_task(name, make_backbone(network, num_classes=4, input_shape=(1, side, side)))
    except ValueError as error:
        assert name in ("resolution", "pixel-mask", "token-skip")
        assert "expected" in str(error)  # noqa: PT017
        assert "got" in str(error)  # noqa: PT017
        return
    state = task.begin(task.prepare(images))
    assert task.observe(state).shape == (2, *task.observation_shape)
    assert task.untouched(images).isfinite().all()
