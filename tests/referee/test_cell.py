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
from skipgym.agents.controller import Controller
from skipgym.agents.evaluate import Measured, measure
from skipgym.agents.policy import StaticPolicy
from skipgym.data import Part
from skipgym.data.words import as_clips
from skipgym.envs import PatchCrop, make_task
from skipgym.envs.recorded import tickets
from skipgym.referee.cell import EXAMPLES, PICTURES, _affordable, examples, execution_by_class, png
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


TASK: Any = SimpleNamespace(
    backbone=SimpleNamespace(class_names=("even", "odd")),
    pictures=lambda images: images,
    has_masks=False,
    has_exits=False,
)
CONTROLLER: Any = SimpleNamespace(task=TASK)


def test_examples_are_those_that_took_least_and_most(twenty):
    found = examples(twenty[0], twenty[1], CONTROLLER)
    shares = torch.arange(20) / 20
    assert [e["compute"] for e in found["easiest"]] == shares[:EXAMPLES].tolist()
    assert [e["compute"] for e in found["hardest"]] == shares.flip(0)[:EXAMPLES].tolist()


def test_example_tells_of_one_image(twenty):
    first = examples(twenty[0], twenty[1], CONTROLLER)["easiest"][1]  # 7 · 3 = 1 modulo 20: the fourth image
    assert (first["label"], first["answer"], first["path"]) == ("odd", "even", [3, -1])
    assert set(np.asarray(decoded(first["png"])).flatten()) == {3}


class TestPictures:
    """Of a controller that looks at two places of any image, or reads the middle of five frames."""

    def told(self, task, way, images):
        controller = Controller(task, StaticPolicy(way, 1))
        part = Part(images, torch.zeros(len(images), dtype=torch.long))
        return examples(measure(controller, part), part, controller)

    def check(self, found, looked):
        for kept in found.values():
            assert [example.get("looked") for example in kept] == [looked] * PICTURES + [None] * (4 - PICTURES)
            assert all(decoded(example["picture"]).width > 500 for example in kept[:PICTURES])

    @pytest.mark.parametrize("places", ["grid", "continuous"])
    def test_crops_are_drawn_and_named_by_place(self, random_backbone, places):
        images = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        task = PatchCrop(random_backbone(), looks=2, places=places)
        found = self.told(task, task.onward, images)
        self.check(found, ["8 x 8 at (4, 4)", "8 x 8 at (2, 2)"])  # the centre, then a corner, at two scales

    @pytest.mark.parametrize("table", [0, 1])
    def test_frames_are_named_by_number(self, random_backbone, tiny_images, table):
        task = make_task("frame-select", random_backbone(reader="frames"))
        clips = torch.stack([tiny_images.test.images.roll(shift, 0) for shift in range(10)], 1)[:4]
        if table:
            record = task.record()
            task = record.open(record.rows(clips), clips, torch.arange(4))
            clips = tickets(torch.arange(4))
        self.check(self.told(task, (task.decisions[0] - 1, 1, 0), clips), ["frame 10", "frame 1"])

    def test_words_that_were_read_are_named(self, random_backbone):
        task = make_task("time-skip", random_backbone("words-w8", reader="steps"), skip="1")
        texts = as_clips([["a", "b", "c"]] * 4, task.backbone.vocabulary, task.blank().shape[1])
        self.check(self.told(task, task.rules["first"][1], texts), ["a", "b"])

    def test_other_tasks_are_not_drawn(self, random_backbone, tiny_images):
        task = make_task("layer-skip", random_backbone())
        found = self.told(task, task.onward, tiny_images.test.images)
        assert not any("picture" in example for kept in found.values() for example in kept)


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
