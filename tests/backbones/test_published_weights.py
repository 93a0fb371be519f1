"""What is published about CIFAR ResNets, measured on a thousand test images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from skipgym.backbones import load_backbone


@pytest.fixture(scope="module")
def test_images():
    path = Path(os.environ.get("SKIPGYM_TEST_DATA", "~/.cache/skipgym-data")).expanduser() / "cifar10.npz"
    if not path.exists():
        pytest.skip(f"cifar10.npz is not in {path.parent}; SKIPGYM_TEST_DATA names another directory")
    with np.load(path) as data:
        images, labels = data["test_images"][:1000], data["test_labels"][:1000]
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)


@pytest.fixture(scope="module")
def weights():
    if "SKIPGYM_TEST_WEIGHTS" not in os.environ:
        pytest.skip("SKIPGYM_TEST_WEIGHTS does not name a directory with resnet20-*.th")
    directory = Path(os.environ["SKIPGYM_TEST_WEIGHTS"])
    found = sorted(directory.glob("resnet20-*.th"))
    assert found, f"no resnet20-*.th in {directory}"
    return found[0]


def test_published_resnet20_answers_as_the_untouched_network_and_well(weights, test_images):
    images, labels = test_images
    backbone = load_backbone("resnet20", weights).eval()
    frozen = backbone.frozen()
    with torch.no_grad():
        batches = [backbone.prepare(batch) for batch in images.split(250)]
        untouched = torch.cat([backbone.network(x) for x in batches])
        answers = torch.cat([frozen(x) for x in batches])
    assert torch.equal(answers.argmax(1), untouched.argmax(1))
    assert torch.allclose(answers, untouched, atol=1e-3)
    assert (answers.argmax(1) == labels).float().mean() >= 0.9
