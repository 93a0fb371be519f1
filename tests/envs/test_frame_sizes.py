"""Frame-select with frames at several sizes: a smaller frame is what the network sees, and costs less."""

import pytest
import torch

from skipgym.agents.controller import Controller
from skipgym.agents.policy import StaticPolicy
from skipgym.backbones import make_backbone
from skipgym.backbones.cost import count_macs
from skipgym.backbones.glimpses import encode
from skipgym.backbones.moments import frame_macs, preview
from skipgym.backbones.reader import Reader, build_reader
from skipgym.backbones.reader_training import ReaderRecipe, frame_features, train_reader
from skipgym.backbones.recipe import PretrainConfig
from skipgym.data import Augment, ImageData
from skipgym.envs import Hard, make_task, rollout
from skipgym.envs.choice import Masked, Soft, one_hot
from skipgym.envs.rollout import relax
from skipgym.envs.table import tabulate
from skipgym.testing import check_task

MOMENTS, SIZES, CLASSES = 3, 2, 4


def noise(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, MOMENTS, 1, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture
def clips(make_noise) -> ImageData:
    return make_noise(train=16, policy=8, shape=(MOMENTS, 1, 8, 8))


@pytest.fixture
def task(random_backbone, randomise):
    backbone = random_backbone()
    reader = Reader(backbone.blocks[-1].out_shape[0], CLASSES, moments=MOMENTS, preview=2, sizes=SIZES, hidden=8)
    randomise(reader)
    return make_task("frame-select", backbone.with_reader(reader), looks=2)


def follow(task, images, *paths, choice=Hard):
    actions = torch.tensor(paths)
    return rollout(task, task.prepare(images), lambda state: choice(actions[state.rows, state.position]))


def test_it_passes_the_kit(task):
    check_task(task)


def test_half_a_frame_costs_what_the_network_costs_on_it(task):
    backbone, reader = task.backbone, task.reader
    half = count_macs(lambda x: encode(backbone, x), torch.zeros(1, 1, 4, 4))
    assert 3.5 < frame_macs(backbone) / half < 4.5
    looks = [frame_macs(backbone) + reader.look_macs, half + reader.look_macs]
    run = follow(task, noise(4), (1, 0), (MOMENTS + 1, 0), (MOMENTS + 3, 2), (0, 0))
    spent = [looks[0], looks[1], looks[1] + looks[0], 0]
    assert run.macs.tolist() == [task.least_macs + macs for macs in spent]
    assert task.full_macs == task.least_macs + MOMENTS * looks[0]
    assert task.most_macs == task.least_macs + 2 * looks[0]


def test_reader_reads_the_smaller_frame_and_is_told_so(task):
    images, reader = noise(3), task.reader
    frames = task.prepare(images)
    small = frames[:, 1].unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))  # by hand: means of 2 x 2 pixels
    features = encode(task.backbone, small).mean((2, 3))
    memory = reader.read(reader.begin(preview(frames, 2)), features, torch.tensor([[0.0, 1.0]]).expand(3, -1))
    found = follow(task, images, *[(MOMENTS + 2, 0)] * 3)
    torch.testing.assert_close(found.logits, reader.answer(memory), atol=1e-5, rtol=1e-4)


def test_mixed_batches_masked_and_soft_execution_agree(task):
    images, paths = noise(6), [(1, 5), (4, 0), (6, 6), (0, 0), (2, 3), (5, 1)]
    routed, masked = follow(task, images, *paths), follow(task, images, *paths, choice=Masked)
    torch.testing.assert_close(routed.logits, masked.logits, atol=1e-5, rtol=1e-4)
    assert torch.equal(routed.macs, masked.macs)
    actions = torch.tensor(paths)
    soft = relax(
        task, task.begin(task.prepare(images)), lambda state: one_hot(actions[:, state.position], task.decisions)
    )
    torch.testing.assert_close(soft.logits, routed.logits, atol=1e-5, rtol=1e-4)
    assert torch.equal(soft.macs, routed.macs)


def test_those_who_have_half_left_do_not_dim_what_the_others_see(task):
    """A mixture of an answer and one frame remembers the frame as it is."""
    start = task.begin(task.prepare(noise(1)))
    weights = torch.zeros(1, 1 + MOMENTS * SIZES)
    weights[0, 0], weights[0, 5] = 0.75, 0.25
    mixed = task.step(start, Soft(weights))
    alone = task.step(start, Hard(torch.tensor([5])))
    torch.testing.assert_close(task.answer_now(mixed), task.answer_now(alone), atol=1e-5, rtol=1e-4)


def test_table_answers_and_charges_as_the_live_task(task, clips):
    table, ticketed = tabulate(task, clips, versions=1, augment=Augment(), quiet=True)
    paths = [(1, 5), (4, 0), (6, 6), (0, 0), (2, 3), (5, 1), (3, 4), (6, 0)]
    live, looked_up = follow(task, clips.policy.images, *paths), follow(table, ticketed.policy.images, *paths)
    torch.testing.assert_close(looked_up.logits, live.logits, atol=1e-5, rtol=1e-4)
    assert torch.equal(looked_up.macs, live.macs)


def test_frames_are_named_with_their_size(task):
    assert task.executed(noise(1)[0], (2, MOMENTS + 3)) == ["frame 2", "frame 3 at 1/2"]
    assert task.region(0, MOMENTS + 2) == task.region(0, 2)
    assert task.rules["uniform"] == [(2, 0), (1, 3)]
    assert task.rules["uniform-half"] == [(5, 0), (4, 6)]


def test_saved_controller_knows_the_sizes(task, tmp_path):
    Controller(task, StaticPolicy((5, 1), 1), price=0.1).save(tmp_path / "c")
    again = Controller.load(tmp_path / "c")
    images = noise(3)
    assert again.task.sizes == SIZES
    assert torch.equal(again(images).logits, Controller(task, StaticPolicy((5, 1), 1), price=0.1)(images).logits)


def test_training_draws_a_size_for_each_look(random_backbone, clips, monkeypatch):
    backbone, codes = random_backbone(), []
    read = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, *seen: codes.append(seen[2]) or read(self, *seen))
    trained = train_reader(backbone, clips, ReaderRecipe(moments=3, preview=2, sizes=3, epochs=1, batch_size=8))
    assert {size for code in codes for size in code[:, 1].tolist()} == {0.0, 1.0, 2.0}
    assert trained.reader.config["sizes"] == 3
    again = build_reader(trained.reader.config, trained.reader.state_dict())
    assert isinstance(again, Reader)
    assert again.sizes == 3
    features = frame_features(trained, trained.prepare(noise(2).flatten(0, 1)).unflatten(0, (2, MOMENTS)), 3)
    assert features.shape[:3] == (2, 3, MOMENTS)


def test_one_size_leaves_readers_as_they_were():
    assert "sizes" not in Reader(8, 4, moments=3, preview=2).config
    assert ReaderRecipe(moments=3, preview=2).digest() == ReaderRecipe(moments=3, preview=2, sizes=1).digest()
    assert ReaderRecipe(moments=3, preview=2).digest() != ReaderRecipe(moments=3, preview=2, sizes=2).digest()


def test_sizes_that_do_not_fit_are_told(random_backbone, tmp_path):
    with pytest.raises(ValueError, match="frame_sizes: expected 1 without --moments, got 2"):
        PretrainConfig(out=tmp_path, frame_sizes=2)
    four = random_backbone().with_reader(Reader(16, CLASSES, moments=3, preview=2, sizes=4))
    with pytest.raises(ValueError, match=r"sizes: expected 1 … 3, got 4"):
        make_task("frame-select", four)
    with pytest.raises(ValueError, match="sizes: expected 4, as the reader of resnet8-w4 was trained, got 2"):
        make_task("frame-select", four, sizes=2)
    vit = make_backbone("vit4-w8-p4", input_shape=(1, 8, 8), num_classes=CLASSES)
    with pytest.raises(ValueError, match="expected one whose blocks"):
        ReaderRecipe(moments=3, preview=2, sizes=2).build(vit)
