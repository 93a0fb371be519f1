from dataclasses import replace
from itertools import product

import pytest
import torch

from skipgym import Controller
from skipgym.agents.baselines import random_policy
from skipgym.agents.evaluate import measure
from skipgym.agents.learner import make_learner
from skipgym.data import Augment, ImageData, Part
from skipgym.envs import Engine, Hard, make_reward, make_task
from skipgym.envs.choice import Soft, one_hot
from skipgym.envs.recorded import tickets
from skipgym.envs.rollout import relax
from skipgym.envs.table import PARTS, TableFile, tabulate
from skipgym.envs.tabulated import Tabulated, Ways

from .conftest import follow

SMALL = ["layer-skip", "block-drop", "early-exit", "cascade", "resolution", "patch-crop", "frame-select"]
COMBS = ["early-exit", "cascade"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPGYM_CACHE", str(tmp_path))
    return tmp_path / "tables"


@pytest.fixture(scope="module")
def data(make_noise) -> ImageData:
    return make_noise(policy=300, val=20, test=30)


@pytest.fixture(params=SMALL)
def pair(request, make_world, random_backbone, data):
    """Return a live task, the tabulated one, the data of that, and the data of the live one."""
    if request.param == "patch-crop":
        live = make_task("patch-crop", random_backbone(), grid=2, looks=2)  # fewer places than by default
    else:
        live = make_world(request.param, "resnet8-w4").task
    if live.takes_clips:
        data = in_clips(data)
    return live, *tabulate(live, data, versions=1, augment=Augment(), quiet=True), data


def in_clips(data: ImageData) -> ImageData:
    """Return clips of three frames: each image and two others of its part."""
    parts = {
        name: Part(torch.stack([part.images.roll(shift, 0) for shift in range(3)], 1), part.labels)
        for name, part in ((name, data.part(name)) for name in PARTS)
    }
    return replace(data, **parts)


def paths(task):
    return torch.tensor(list(task.paths or product(*map(range, list(task.decisions) * task.horizon))))


def decide(task, actions, kind=Hard):
    """Return a decider for actions of shape (N, pieces)."""
    parts = len(task.decisions)

    def of(state):
        chosen = actions.view(len(actions), -1, parts)[state.rows, state.position]
        return kind(chosen[:, 0] if parts == 1 else chosen)

    return of


def test_mixed_decisions_come_to_what_the_live_task_does(pair):
    live, table, ticketed, data = pair
    for name in PARTS:
        own = paths(live)[torch.arange(len(data.part(name))) % len(paths(live))]
        expected = follow(live, live.prepare(data.part(name).images), decide(live, own))
        found = follow(table, table.prepare(ticketed.part(name).images), decide(table, own))
        assert torch.allclose(found.logits, expected.logits, atol=1e-5)
        assert torch.equal(found.macs, expected.macs)
        assert torch.equal(ticketed.part(name).labels, data.part(name).labels)


def test_observations_are_those_of_the_live_task(pair):
    live, table, ticketed, data = pair
    for one, images in ((live, data.val.images), (table, ticketed.val.images)):
        engine = Engine(one, Part(images, data.val.labels), reward=make_reward("accuracy"), price=0.3, num_envs=6)
        engine.seed(5)
        seen = [engine.reset()]
        generator = torch.Generator().manual_seed(0)
        shape = (6, len(one.decisions)) if len(one.decisions) > 1 else (6,)
        steps = [engine.step(torch.randint(min(one.decisions), shape, generator=generator)) for _ in range(9)]
        seen += [step.observation for step in steps]
        rewards = torch.stack([step.reward for step in steps])
        if one is live:
            expected = seen, rewards
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(seen, expected[0], strict=True))
    assert torch.allclose(rewards, expected[1], atol=1e-6)


def test_declarations_are_those_of_the_live_task(pair):
    live, table, ticketed, data = pair
    for word in ("name", "options", "horizon", "decisions", "observation_shape", "least_macs", "full_macs",
                 "most_macs", "has_exits", "alike", "reaches_full", "onward", "paths", "pieces"):  # fmt: skip
        assert getattr(table, word) == getattr(live, word)
    images = data.test.images
    expected = live.untouched(images) if live.takes_clips else live.backbone(live.prepare(images))
    assert torch.allclose(table.untouched(ticketed.test.images), expected, atol=1e-5)
    assert torch.equal(table.pictures(ticketed.test.images), live.pictures(images))
    assert live.takes_clips or torch.equal(table.pictures(ticketed.test.images), images)


@pytest.mark.parametrize("name", COMBS)
def test_mixtures_of_exits_have_the_values_and_gradients_of_the_live_task(make_world, data, name):
    live = make_world(name, "resnet8-w4").task
    table, ticketed = tabulate(live, data, versions=1, augment=Augment(), quiet=True)
    found = []
    for task, images in ((live, data.val.images), (table, ticketed.val.images)):
        gate = torch.tensor([[0.3, -0.2], [0.1, 0.4]], requires_grad=True)
        visited = []

        def decide(state, gate=gate, visited=visited):
            visited.append(state.position)
            noise = torch.linspace(-3, 3, len(state)).unsqueeze(1) * torch.tensor([[1.0, -0.7]])
            return Soft((gate[state.position] + noise).softmax(1))  # sums of such weights are not exactly 1

        run = relax(task, task.begin(task.prepare(images)), decide)
        assert visited == [0, 1]
        loss = run.logits.square().sum() + run.macs.sum() / task.full_macs
        loss.backward()
        found.append((run.logits.detach(), run.macs.detach(), gate.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_mixtures_of_features_are_refused(make_world, data):
    table, ticketed = tabulate(make_world("layer-skip", "resnet8-w4").task, data, versions=1, augment=Augment(),
                               quiet=True)  # fmt: skip
    start = table.begin(table.prepare(ticketed.val.images))
    table.step(start, one_hot(torch.ones(20, dtype=torch.long), (2,)))  # one-hot weights are actions
    with pytest.raises(TypeError, match=r"expected actions, got mixtures.*--table 0"):
        table.step(start, Soft(torch.full((20, 2), 0.5)))
    for agent in ("gumbel", "skipnet", "ds-gate"):
        with pytest.raises(ValueError, match=r"expected actions, got mixtures.*--table 0"):
            make_learner(agent).check(table, {})


def test_versions_are_varied_images_of_their_originals(make_world, data):
    live = make_world("early-exit", "resnet8-w4").task
    table, ticketed = tabulate(live, data, versions=2, augment=Augment(pad=2), quiet=True)
    assert len(ticketed.policy) == 600
    assert ticketed.varied
    assert torch.equal(ticketed.policy.labels, data.policy.labels.repeat(2))
    assert torch.equal(table.pictures(ticketed.policy.images), data.policy.images.repeat(2, 1, 1, 1))
    first, second = table.untouched(ticketed.policy.images).split(300)
    unvaried = live.untouched(data.policy.images)
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first, unvaried, atol=1e-3)
    assert torch.allclose(table.untouched(ticketed.val.images), live.untouched(data.val.images), atol=1e-5)


def test_table_is_made_once_and_kept(make_world, data, cache, monkeypatch):
    task = make_world("early-exit", "resnet8-w4").task
    tabulate(task, data, versions=1, augment=Augment(), quiet=True)
    before = [path.stat().st_mtime_ns for path in sorted(cache.iterdir())]
    monkeypatch.setattr(task, "begin", lambda inputs, begin=task.begin: begin(inputs[:1]))  # only the probe may run
    again, ticketed = tabulate(task, data, versions=1, augment=Augment(), quiet=True)
    assert [path.stat().st_mtime_ns for path in sorted(cache.iterdir())][1:] == before[1:]  # but the lock's
    assert torch.allclose(again.untouched(ticketed.test.images), task.untouched(data.test.images), atol=1e-5)


def test_unfinished_table_is_gone_on_with(make_world, data, killed_at_second_batch, monkeypatch):
    task = make_world("early-exit", "resnet8-w4").task
    seen = killed_at_second_batch(task)
    with pytest.raises(KeyboardInterrupt):
        tabulate(task, data, versions=1, augment=Augment(), quiet=True)
    table, ticketed = tabulate(task, data, versions=1, augment=Augment(), quiet=True)
    assert seen == [1, 256, 94, 1, 94]  # 350 rows; the first 256 were not computed again
    monkeypatch.undo()
    assert torch.allclose(table.untouched(ticketed.test.images), task.untouched(data.test.images), atol=1e-5)


@pytest.mark.parametrize("damage", ["truncate", "page", "other tree"])
def test_damaged_table_is_made_anew(make_world, data, cache, damage):
    task = make_world("cascade", "resnet8-w4").task
    tabulate(task, data, versions=1, augment=Augment(), quiet=True)
    rows, page = next(cache.glob("*.f32")), next(cache.glob("*.json"))
    if damage == "truncate":
        rows.write_bytes(rows.read_bytes()[:-4])
    elif damage == "page":
        page.write_text("{")
    else:
        page.write_text(page.read_text().replace('"begun": ', '"begun": 1'))
    table, ticketed = tabulate(task, data, versions=1, augment=Augment(), quiet=True)
    assert torch.allclose(table.untouched(ticketed.test.images), task.untouched(data.test.images), atol=1e-5)


def test_reader_cannot_change_the_file(make_world, data, cache):
    task = make_world("cascade", "resnet8-w4").task
    table, _ = tabulate(task, data, versions=1, augment=Augment(), quiet=True)
    before = next(cache.glob("*.f32")).read_bytes()
    assert isinstance(table, Tabulated)
    table.answers.windows[0].fill_(7)
    assert next(cache.glob("*.f32")).read_bytes() == before


def test_another_network_has_another_table(random_backbone, data, cache):
    for seed in (0, 1):
        task = make_task("early-exit", random_backbone(seed=seed))
        tabulate(task, data, versions=1, augment=Augment(), quiet=True)
    assert len(list(cache.glob("*.f32"))) == 2


def test_size_is_told_before_work_starts(make_world, data, capsys, monkeypatch):
    task = make_world("early-exit", "resnet8-w4").task
    monkeypatch.setattr(TableFile, "fill", lambda self, batches: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tabulate(task, data, versions=1, augment=Augment())
    told = capsys.readouterr().out
    assert "350 images x 3 ways through of skipgym/EarlyExit-v0, 0.0 MB in" in told


def test_size_is_that_of_what_is_shown_and_answered(make_world, cache):
    task = make_world("early-exit", "resnet8-w4").task
    size = TableFile(cache, "key", Ways(task), 350).size
    assert size == 350 * 4 * (2 * 4 + 3 * 4)  # 2 exits of 4 signs, 3 answers of 4 classes


def test_no_room_is_told(make_world, data, monkeypatch):
    def full(descriptor, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skipgym.envs.table._reserve", full)
    with pytest.raises(ValueError, match=r"expected room for 0\.0 GB, got .*No space left.*SKIPGYM_CACHE"):
        tabulate(make_world("cascade", "resnet8-w4").task, data, versions=1, augment=Augment(), quiet=True)


def test_images_instead_of_tickets_are_refused(make_world, data):
    table, _ = tabulate(make_world("cascade", "resnet8-w4").task, data, versions=1, augment=Augment(), quiet=True)
    with pytest.raises(ValueError, match=r"expected tickets of a table.*load the controller that was saved"):
        table.check_images(data.val.images)
    table.check_images(tickets(torch.arange(3)))


def test_chance_costs_what_it_costs_live_where_features_would_be_mixed(make_world, data):
    live = make_world("experts", "experts-resnet8-w4").task
    table, ticketed = tabulate(live, data, versions=1, augment=Augment(), quiet=True)
    policy = random_policy(table, 0.6)
    assert policy.rate == random_policy(live, 0.6).rate
    assert measure(Controller(table, policy), ticketed.test).compute == pytest.approx(0.6, abs=0.1)
