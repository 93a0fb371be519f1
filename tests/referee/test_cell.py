"""What a cell keeps of each image, by hand."""

import base64
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from skipgym.agents.baselines import StaticPoint
from skipgym.agents.evaluate import Measured
from skipgym.data import Part
from skipgym.referee.cell import EXAMPLES, _affordable, examples, execution_by_class, png
from skipgym.referee.plan import Budget


def decoded(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_execution_by_class_counts_what_was_decided():
    actions = torch.tensor([[1, 0], [0, -1], [2, 1], [1, -1]])
    labels = torch.tensor([0, 0, 2, 2])
    rates = execution_by_class(actions, labels, ("a", "b", "c"))
    assert rates == {"a": [0.5, 0.0], "c": [1.0, 1.0]}  # no image of b; the second piece was decided once in each


def test_execution_of_a_piece_that_is_never_decided_is_zero():
    assert execution_by_class(torch.tensor([[1, -1]]), torch.tensor([0]), ("a",)) == {"a": [1.0, 0.0]}


@pytest.fixture
def twenty():
    """Twenty images of grey level i, each with another compute, and the answers of a policy."""
    count = 20
    part = Part(torch.arange(count).byte().view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), torch.arange(count) % 2)
    compute = (torch.arange(count) * 7 % count) / count
    measured = Measured(
        accuracy=0.0,
        macs=0.0,
        policy_macs=0.0,
        compute=0.0,
        execution=[],
        unique_paths=0,
        correct=torch.zeros(count, dtype=torch.bool),
        actions=torch.stack([torch.arange(count), torch.full((count,), -1)], 1),
        answers=1 - part.labels,
        compute_of=compute,
        count=count,
    )
    return measured, part


TASK: Any = SimpleNamespace(backbone=SimpleNamespace(class_names=("even", "odd")), pictures=lambda images: images)


def test_examples_are_those_that_took_least_and_most(twenty):
    found = examples(twenty[0], twenty[1], TASK)
    shares = torch.arange(20) / 20
    assert [e["compute"] for e in found["easiest"]] == shares[:EXAMPLES].tolist()
    assert [e["compute"] for e in found["hardest"]] == shares.flip(0)[:EXAMPLES].tolist()


def test_example_tells_of_one_image(twenty):
    first = examples(twenty[0], twenty[1], TASK)["easiest"][1]  # 7 · 3 = 1 modulo 20: the fourth image
    assert (first["label"], first["answer"], first["path"]) == ("odd", "even", [3, -1])
    assert set(np.asarray(decoded(first["png"])).flatten()) == {3}


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_the_image(channels):
    image = torch.randint(256, (channels, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = torch.from_numpy(np.array(decoded(png(image)))).view(5, 7, channels)
    assert torch.equal(pixels.permute(2, 0, 1), image)


POINTS = [StaticPoint((0,), 0.2, 0.5), StaticPoint((1,), 0.5, 0.8), StaticPoint((1,), 0.9, 0.9)]


@pytest.mark.parametrize(
    ("budget", "index"),
    [
        (Budget(target=0.1), None),  # below the cheapest
        (Budget(target=0.2), 0),
        (Budget(target=0.49), 0),
        (Budget(target=0.5), 1),
        (Budget(target=1.0), 2),
        (Budget(price=0.0), 2),
        (Budget(price=0.5), 1),  # 0.4, 0.55, 0.45
        (Budget(price=2.0), 0),  # 0.1, -0.2, -0.9
    ],
)
def test_budget_takes_the_best_fixed_subset_that_it_can_pay(budget, index):
    assert _affordable(POINTS, budget) == index
