"""Beginning from stored features instead of images."""

import numpy as np
import pytest
import torch
from torch import nn

from skipgym import Controller, wrap
from skipgym.agents.evaluate import measure
from skipgym.agents.gate import Gate
from skipgym.agents.policy import GatePolicy
from skipgym.data import Augment, ImageData, Part
from skipgym.envs import Engine, Hard, SkipVectorEnv, make_reward, make_task
from skipgym.envs.begun import Prefix
from skipgym.envs.choice import Soft
from skipgym.envs.observation import Layout
from skipgym.envs.rollout import relax
from skipgym.envs.table import PARTS, TableFile, keep, tabulate

from .conftest import CASES, VARIANTS

FREE = ("channel-width", "resolution")
"""Tasks whose first decision is about the image itself."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPGYM_CACHE", str(tmp_path))
    return tmp_path / "tables"


def noise(task, policy: int = 20) -> ImageData:
    generator = torch.Generator().manual_seed(3)

    def part(count: int) -> Part:
        images = torch.randint(256, (count, *task.blank().shape[1:]), dtype=torch.uint8, generator=generator)
        return Part(images, torch.arange(count) % 4)

    return ImageData(
        name="noise", train=part(8), policy=part(policy), val=part(20), test=part(30), class_names=tuple("abcd"),
        mean=(0.5,), std=(0.3,), augment=Augment(pad=1), fingerprint="f" * 16, note="",
    )  # fmt: skip


def kept(task, data, **changes):
    return keep(Prefix(task), data, **{"versions": 1, "augment": Augment(), "quiet": True, **changes})


@pytest.fixture(scope="module")
def skipping(make_world):
    task = make_world("layer-skip", "resnet8-w4").task
    return task, noise(task, 300)


def gate_of(task, images) -> GatePolicy:
    """Return a gate that tells noise from noise at the first block: its logits are even in the middle."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gate = Gate(Layout.of(task, priced=False), task.decisions, hidden=8, alike=task.alike)
        nn.init.normal_(gate.head.weight, std=3.0)
        logits, _ = gate.at(0, task.observe(task.begin(task.prepare(images))), torch.zeros(len(images)))
        gate.head.bias.data -= logits.median(0).values
    return GatePolicy(gate)


@pytest.mark.parametrize("case", [case for case in CASES if case[0] not in FREE], ids="-".join)
def test_decisions_come_to_what_the_live_task_does(case, make_world):
    world = make_world(*case)
    live, data = world.task, noise(world.task)
    begun, ticketed = kept(live, data)
    for name in PARTS:
        images, numbers = data.part(name).images[:9], ticketed.part(name).images[:9]
        starts = live.begin(live.prepare(images)), begun.begin(begun.prepare(numbers))
        assert torch.allclose(begun.observe(starts[1]), live.observe(starts[0]), atol=1e-5)
        assert starts[1].features.shape == starts[0].features.shape
        actions = world.actions(1, 9)
        expected = world.follow(actions, inputs=live.prepare(images))
        found = type(world)(begun, begun.prepare(numbers)).follow(actions)
        assert torch.allclose(found.logits, expected.logits, atol=1e-4)
        assert torch.equal(found.macs, expected.macs)
        assert torch.allclose(begun.untouched(numbers), live.untouched(images), atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if case[0] not in (*FREE, *VARIANTS)], ids="-".join)
def test_declarations_are_those_of_the_live_task(case, make_world):
    live = make_world(*case).task
    begun, _ = kept(live, noise(live))
    for word in ("name", "options", "horizon", "decisions", "coordinates", "observation_shape", "least_macs",
                 "full_macs", "most_macs", "has_exits", "has_masks", "alike", "adds_up", "reaches_full", "onward",
                 "pieces", "spares_features", "action_space"):  # fmt: skip
        assert getattr(begun, word) == getattr(live, word)
    assert [begun.stays_in_view(i) for i in range(live.horizon)] == [live.stays_in_view(i) for i in range(live.horizon)]


@pytest.mark.parametrize("case", [("pixel-mask", "resnet8-w4"), ("token-skip", "vit3-w16-p2")], ids="-".join)
def test_masks_are_those_of_the_original(case, make_world):
    live = make_world(*case).task
    begun, ticketed = kept(live, data := noise(live))
    way = make_world(*case).actions(0, 1).flatten().tolist()
    expected = live.masks(data.test.images[2], way)
    found = begun.masks(ticketed.test.images[2], way)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    assert 0 < min(float(mask.mean()) for mask in expected.values()) < 1


def test_policy_decides_and_spends_what_it_does_live(skipping):
    live, data = skipping
    begun, ticketed = kept(live, data)
    policy = gate_of(live, data.test.images)
    expected, found = (
        measure(Controller(task, policy), part) for task, part in ((live, data.test), (begun, ticketed.test))
    )
    assert len(expected.actions.unique(dim=0)) > 1
    assert torch.equal(found.actions, expected.actions)
    assert (found.accuracy, found.macs, found.compute) == (expected.accuracy, expected.macs, expected.compute)


def test_mixtures_have_the_values_and_gradients_of_the_live_task(skipping):
    live, data = skipping
    begun, ticketed = kept(live, data)
    found = []
    for task, images in ((live, data.val.images), (begun, ticketed.val.images)):
        gate = torch.tensor([[0.3, -0.2], [0.1, 0.4], [0.2, 0.1]], requires_grad=True)

        def decide(state, gate=gate):
            return Soft((gate[state.position] + torch.linspace(-3, 3, len(state)).unsqueeze(1)).softmax(1))

        run = relax(task, task.begin(task.prepare(images)), decide)
        (run.logits.square().sum() + run.macs.sum() / task.full_macs).backward()
        found.append((run.logits.detach(), run.macs.detach(), gate.grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_what_precedes_the_only_blocks_that_are_decided_on_is_stored(random_backbone, monkeypatch):
    whole = random_backbone("resnet8-w4")
    task = make_task("layer-skip", wrap(whole.network, [whole.blocks[-1].name], input_shape=(1, 8, 8)))
    begun, ticketed = kept(task, data := noise(task))
    start = begun.begin(begun.prepare(ticketed.test.images))
    assert task.horizon == 1
    assert begun.begun == whole.stem_macs + sum(whole.block_macs[:-1])
    after = begun.step(start, Hard(torch.ones(30, dtype=torch.long)))
    assert torch.allclose(after.answer, whole.frozen()(task.prepare(data.test.images)), atol=1e-4)
    assert (after.macs == whole.full_macs).all()


def environments(live, data, begun, ticketed):
    for task, part in ((live, data.val), (begun, ticketed.val)):
        engine = Engine(task, part, reward=make_reward("accuracy"), price=0.3, num_envs=6)
        yield SkipVectorEnv(engine=engine)


def test_vector_environment_shows_and_pays_what_it_does_live_and_runs_no_stem(skipping, cache):
    live, data = skipping
    begun, ticketed = kept(live, data)
    file = next(cache.glob("*.f32"))
    before, told = file.read_bytes(), []
    for env in environments(live, data, begun, ticketed):
        ran = []
        hook = live.backbone.stem.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        seen, _ = env.reset(seed=5)
        generator = np.random.default_rng(0)
        steps = [env.step(generator.integers(2, size=6)) for _ in range(9)]  # three episodes: rows are overwritten
        hook.remove()
        told.append(([seen, *(step[0] for step in steps)], [step[1] for step in steps], len(ran)))
    (seen, paid, ran), (seen_stored, paid_stored, ran_stored) = told
    assert (ran, ran_stored) == (4, 0)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(seen, seen_stored, strict=True))
    assert np.allclose(paid, paid_stored)
    assert file.read_bytes() == before


def test_versions_are_varied_images_of_their_originals(skipping):
    live, data = skipping
    begun, ticketed = kept(live, data, versions=2, augment=Augment(pad=2))
    assert len(ticketed.policy) == 600
    assert torch.equal(begun.pictures(ticketed.policy.images), data.policy.images.repeat(2, 1, 1, 1))
    first, second = begun.begin(begun.prepare(ticketed.policy.images)).features.split(300)
    unvaried = live.begin(live.prepare(data.policy.images)).features
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first, unvaried, atol=1e-3)


def test_file_that_a_killed_process_left_is_gone_on_with(skipping, killed_at_second_batch, monkeypatch):
    task, data = skipping
    seen = killed_at_second_batch(task)
    with pytest.raises(KeyboardInterrupt):
        kept(task, data)
    begun, ticketed = kept(task, data)
    assert seen == [1, 256, 94, 1, 94]  # 350 rows; the first 256 were not computed again
    monkeypatch.undo()
    for name in PARTS:
        found = begun.begin(begun.prepare(ticketed.part(name).images)).features
        assert torch.allclose(found, task.begin(task.prepare(data.part(name).images)).features, atol=1e-5)


@pytest.mark.parametrize("damage", ["truncate", "page", "other beginning"])
def test_damaged_file_is_made_anew(skipping, cache, damage):
    task, data = skipping
    kept(task, data)
    rows, page = next(cache.glob("*.f32")), next(cache.glob("*.json"))
    size = rows.stat().st_size
    rows.write_bytes(bytes(size - 4 * (damage == "truncate")))
    if damage != "truncate":
        old, new = {"page": ("{", ""), "other beginning": ('"begun": ', '"begun": 1')}[damage]
        page.write_text(page.read_text().replace(old, new))
    begun, ticketed = kept(task, data)
    assert torch.allclose(begun.untouched(ticketed.test.images), task.untouched(data.test.images), atol=1e-5)


def test_another_network_has_another_file_and_a_table_too(random_backbone, skipping, cache):
    data = skipping[1]
    for count, seed in enumerate((0, 1), 1):
        task = make_task("layer-skip", random_backbone(seed=seed))
        begun, ticketed = kept(task, data)
        assert len(list(cache.glob("*.f32"))) == count
        assert torch.allclose(begun.untouched(ticketed.test.images), task.untouched(data.test.images), atol=1e-5)
    table, ticketed = tabulate(task, data, versions=1, augment=Augment(), quiet=True)
    assert len(list(cache.glob("*.f32"))) == 3
    assert torch.allclose(table.untouched(ticketed.test.images), task.untouched(data.test.images), atol=1e-5)


def test_size_is_told_before_work_starts(skipping, capsys, monkeypatch):
    task, data = skipping
    monkeypatch.setattr(TableFile, "fill", lambda self, batches: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        kept(task, data, quiet=False)
    share = task.backbone.stem_macs / task.full_macs
    numbers = 4 * 8 * 8 + 4  # 4 channels of 8 x 8, and 4 classes
    expected = f"prefix: 350 images x {numbers} numbers after the first {share:.1%} of the MACs of skipgym/LayerSkip-v0"
    assert f"{expected}, 0.4 MB in" in capsys.readouterr().out


def test_no_room_is_told(skipping, monkeypatch):
    def full(descriptor, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skipgym.envs.table._reserve", full)
    with pytest.raises(ValueError, match=r"prefix .*expected room for 0\.0 GB, got .*No space left.*\(--prefix\)"):
        kept(*skipping)


@pytest.mark.parametrize("case", [case for case in CASES if case[0] in FREE], ids="-".join)
def test_task_that_begins_with_the_image_is_told(case, make_world):
    with pytest.raises(ValueError, match=rf"expected {case[0]} to compute something .*, got nothing.*--prefix 0"):
        Prefix(make_world(*case).task)


def test_beginnings_that_no_row_can_hold_are_told(leave, skipping, monkeypatch):
    begin = leave.begin

    def whole(inputs):
        state = begin(inputs)
        state.memory["visits"] = state.memory["visits"].long()
        return state

    monkeypatch.setattr(leave, "begin", whole)
    with pytest.raises(ValueError, match=r"single precision, got torch\.int64 for visits.*--prefix 0"):
        Prefix(leave)
    monkeypatch.setattr(leave, "begin", lambda inputs: begin(inputs).finish(torch.zeros(len(inputs), 4)))
    with pytest.raises(ValueError, match="not to answer before the first decision, got answers"):
        Prefix(leave)


def test_images_that_cost_otherwise_are_told(leave, skipping, monkeypatch):
    begin = leave.begin

    def dearer(inputs):
        state = begin(inputs)
        state.macs[inputs.amax((1, 2, 3)) > 0] += 5  # none of the blank image
        return state

    monkeypatch.setattr(leave, "begin", dearer)
    with pytest.raises(ValueError, match=r"to charge every image [\d,]+ MACs before the first decision, got .* to "):
        kept(leave, skipping[1])


def test_memory_of_single_numbers_is_kept(leave, skipping):
    begun, ticketed = kept(leave, skipping[1])
    start = begun.begin(begun.prepare(ticketed.val.images))
    assert {name: one.shape for name, one in start.memory.items()} == {"visits": (20,)}
    after = begun.step(start, Hard(torch.zeros(20, dtype=torch.long)))
    assert after.memory["visits"].tolist() == [1.0] * 20
