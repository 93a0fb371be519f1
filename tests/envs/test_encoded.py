"""Looking at pieces that were encoded before."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from skipgym.data import Augment, ImageData
from skipgym.envs import Engine, Hard, Soft, make_reward, make_task
from skipgym.envs.choice import one_hot
from skipgym.envs.encoded import Sights
from skipgym.envs.table import tabulate

from .conftest import follow

LOOKS = {
    "crops": ("crops", "patch-crop", {"grid": 3}),
    "frames": ("frames", "frame-select", {}),
    "slots": ("slots", "frame-select", {}),
    "signs": ("frames", "frame-select", {"signs_only": True}),
}
"""Reader, task, options. At six looks nobody would follow all ways through: 1 + 9 + … + 9⁶, or 1 + 4 + … + 4⁶."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPGYM_CACHE", str(tmp_path))


@pytest.fixture(params=LOOKS)
def live(request, random_backbone):
    reader, name, options = LOOKS[request.param]
    return make_task(name, random_backbone(reader=reader), looks=6, **options)


@pytest.fixture
def data(live, make_noise) -> ImageData:
    return make_noise(policy=12, test=10, shape=(5, 1, 8, 8) if live.takes_clips else (1, 8, 8))


@pytest.fixture
def encoded(live, data):
    return tabulate(live, data, versions=1, augment=Augment(), quiet=True)


def ways(live, count):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(live.decisions[0], (count, live.horizon), generator=generator)


def test_ways_too_many_to_list_come_to_what_the_live_task_does(live, data, encoded):
    table, ticketed = encoded
    assert live.paths is None
    actions = ways(live, len(data.test))
    for task, images in ((live, data.test.images), (table, ticketed.test.images)):
        run = follow(task, task.prepare(images), lambda state: Hard(actions[state.rows, state.position]))
        if task is live:
            expected = run
    assert torch.allclose(run.logits, expected.logits, atol=1e-5)
    assert torch.equal(run.macs, expected.macs)


def test_network_is_not_run(live, encoded):
    table, ticketed = encoded

    def refuse(*_):
        raise AssertionError("the network ran")

    handles = [m.register_forward_pre_hook(refuse) for m in live.backbone.modules() if isinstance(m, nn.Conv2d)]
    engine = Engine(table, ticketed.policy, reward=make_reward("accuracy"), price=0.1, num_envs=8)
    engine.reset()
    for step in range(12):
        engine.step(torch.full((8,), 1 + step % (live.decisions[0] - 1)))
    for handle in handles:
        handle.remove()
    assert engine.tally.episodes == 16  # two episodes of six looks in each slot


def test_one_hot_mixtures_are_actions_and_others_remember_a_mixture_of_sights(live, data, encoded):
    table, ticketed = encoded
    start = table.begin(table.prepare(ticketed.val.images))
    options = live.decisions[0]
    actions = torch.arange(8) % options
    hard = table.step(start, one_hot(actions, (options,)))
    sights = Sights(live).task.encode(data.val.images)[2]
    weights = torch.zeros(8, options)
    weights[:, 1:3] = torch.tensor([0.25, 0.75])
    mixed = table.step(start, Soft(weights))
    memory = live.reader.remember(table.parts(start.features)[1], 0.25 * sights[:, 0] + 0.75 * sights[:, 1])
    assert torch.allclose(table.answer_now(mixed), live.reader.answer(memory), atol=1e-5)
    sole = table.step(start, Soft(torch.nn.functional.one_hot(actions, options).float().requires_grad_()))
    stay = actions > 0
    assert torch.allclose(table.answer_now(sole)[stay], table.answer_now(hard)[stay], atol=1e-6)
    assert torch.allclose(sole.macs, hard.macs)


def test_mixtures_have_a_gradient_in_what_is_looked_at(live, encoded):
    table, ticketed = encoded
    start = table.begin(table.prepare(ticketed.val.images))
    logits = torch.zeros(8, live.decisions[0], requires_grad=True)
    table.answer_now(table.step(start, Soft(logits.softmax(1)))).square().sum().backward()
    assert logits.grad is not None
    assert float(logits.grad[:, 1:].abs().min(0).values.max()) > 0


def test_row_holds_first_sight_what_is_shown_all_pieces_and_the_answer(live):
    details = live.observation_shape[0] - 4 - (live.decisions[0] - 1)
    shown = 0 if live.signs_only else details - live.reader.shown_size
    width = live.reader.sight_size * live.decisions[0] + shown + live.backbone.num_classes
    assert Sights(live).width == width
    assert Sights(live).rows(live.blank()).shape == (1, width)


def test_other_options_have_another_table(live, data, tmp_path):
    for looks in (2, 3):
        task = make_task(live.name, live.backbone, **{**live.options, "looks": looks})
        tabulate(task, replace(data, name="noise"), versions=1, augment=Augment(), quiet=True)
    assert len(list(tmp_path.glob("tables/*.f32"))) == 2
