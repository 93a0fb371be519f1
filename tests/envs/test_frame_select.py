"""Frame-select: its cost by hand, all frames, clips of any length, and what does not fit."""

import pytest
import torch
from safetensors.torch import save_file

from skipgym.agents.controller import Controller
from skipgym.agents.evaluate import measure, measure_full
from skipgym.agents.policy import StaticPolicy
from skipgym.backbones import load_backbone, make_backbone
from skipgym.backbones.glimpses import encode
from skipgym.backbones.moments import preview, time_code
from skipgym.backbones.pretrain import pretrain
from skipgym.backbones.reader import Reader
from skipgym.backbones.reader_training import ReaderRecipe, reader_accuracy, seen_versions, train_reader
from skipgym.backbones.recipe import PretrainConfig
from skipgym.backbones.registry import held_out
from skipgym.data import ImageData
from skipgym.data.clips import padded
from skipgym.envs import Hard, build_engine, make_task, rollout
from skipgym.envs.frame_select import spread

CLASSES, MOMENTS = 4, 4


def noise(count: int, *, frames: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, frames, 1, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture
def task(random_backbone):
    return make_task("frame-select", random_backbone(reader="frames"))


@pytest.fixture(scope="module")
def clips(make_noise) -> ImageData:
    return make_noise(train=16, policy=16, shape=(6, 1, 8, 8))


def follow(task, images, *paths):
    actions = torch.tensor(paths)
    return rollout(task, task.prepare(images), lambda s: Hard(actions[s.rows, s.position]))


@pytest.mark.parametrize(
    ("name", "reader", "options"), [("frame-select", "frames", MOMENTS), ("patch-crop", "crops", 18)]
)
def test_policy_that_sees_signs_only_sees_no_features(name, reader, options, random_backbone):
    """Two clips or images that differ, with the same answer and the same looks, are the same to it."""
    task = make_task(name, random_backbone(reader=reader), signs_only=True)
    assert task.observation_shape == (4 + options,)
    state = task.begin(task.prepare(noise(2) if task.takes_clips else noise(2)[:, 0]))
    state = task.step(state, Hard(torch.tensor([2, 2])))
    seen = task.observe(state)
    assert seen[:, 4:].tolist() == [[0.0, 1.0] + [0.0] * (options - 2)] * 2
    sure = task.answer_now(state).softmax(1).amax(1)
    torch.testing.assert_close(seen[:, 0], sure)


class TestCost:
    def test_by_hand(self, task):
        """A GRU of 8: two products with 3 x 8 outputs; the preview 4 moments of 2 x 2; the answer 8 x 4."""
        network = task.backbone.stem_macs + sum(task.backbone.block_macs)
        core = 2 * 8 * 3 * 8 + 8 * CLASSES
        width = task.backbone.blocks[-1].out_shape[0]
        assert task.least_macs == MOMENTS * 2 * 2 * 8 + core
        assert task.look_macs == network + (width + 1) * 8 + core
        run = follow(task, noise(4), (0, 0, 0), (2, 0, 0), (4, 4, 0), (1, 2, 3))
        assert run.macs.tolist() == [task.least_macs + looks * task.look_macs for looks in range(4)]
        assert task.full_macs == task.least_macs + MOMENTS * task.look_macs
        assert task.most_macs == task.least_macs + 3 * task.look_macs

    def test_only_chosen_frames_are_encoded(self, task):
        frames, block = [], task.backbone.blocks[0]
        block.body.register_forward_pre_hook(lambda _, inputs: frames.append(len(inputs[0])))
        follow(task, noise(3), (0, 0, 0), (2, 0, 0), (4, 1, 0))
        assert frames == [2, 1]


class TestAnswers:
    def test_looks_are_the_readers_own(self, task):
        """Frames 2 and 4 of the four, step by step."""
        images = noise(3)
        frames, reader = task.prepare(images), task.reader
        memory = reader.begin(preview(frames, 2))
        for moment in (1, 3):
            features = encode(task.backbone, frames[:, moment]).mean((2, 3))
            memory = reader.read(memory, features, time_code(torch.full((3,), moment), MOMENTS))
        run = follow(task, images, *[(2, 4, 0)] * 3)
        torch.testing.assert_close(run.logits, reader.answer(memory), rtol=1e-4, atol=1e-5)

    def test_all_frames_in_order_are_the_untouched_answer(self, random_backbone):
        task = make_task("frame-select", random_backbone(reader="frames"), looks=MOMENTS)
        run = follow(task, noise(3), *[(1, 2, 3, 4)] * 3)
        torch.testing.assert_close(run.logits, task.untouched(noise(3)), rtol=1e-4, atol=1e-5)
        assert set(run.macs.tolist()) == {task.full_macs}

    def test_full_row_measures_all_frames(self, task, clips):
        found = measure_full(task, clips.test)
        assert found.macs == task.full_macs
        assert torch.equal(found.answers, task.untouched(clips.test.images).argmax(1))

    def test_frames_after_the_end_change_nothing(self, task):
        images, lengths = noise(3), torch.tensor([6, 3, 1])
        longer = torch.cat([images, noise(3, frames=4, seed=9)], 1)
        with_end = [padded(clips, lengths) for clips in (images, longer)]
        runs = [follow(task, one, *[(4, 3, 0)] * 3) for one in with_end]
        assert torch.equal(runs[0].logits, runs[1].logits)

    def test_controller_keeps_its_answers_through_a_file(self, task, tmp_path):
        controller = Controller(task, StaticPolicy((3, 1, 0), 1))
        controller.save(tmp_path / "controller")
        again = Controller.load(tmp_path / "controller")
        assert torch.equal(again(noise(5)).logits, controller(noise(5)).logits)
        assert again(noise(5, frames=1)).actions.tolist() == [[3, 1, 0]] * 5  # of one frame


def test_fixed_way_spreads_from_the_middle_outwards(random_backbone):
    task = make_task("frame-select", random_backbone(reader="frames"), looks=2)
    assert spread(8, 1) == [5]
    assert spread(8, 2) == [3, 7]
    assert spread(12, 3) == [3, 7, 11]
    assert sorted(task.onward) == spread(MOMENTS, 2) == [2, 4]


def test_rules_are_the_ways_that_people_would_try(random_backbone):
    rules = make_task("frame-select", random_backbone(reader="frames")).rules
    assert rules["uniform"] == [(3, 0, 0), (2, 4, 0), (1, 3, 4)]
    assert rules["first"] == [(1, 0, 0), (1, 2, 0), (1, 2, 3)]
    assert rules["middle"] == [(2, 0, 0), (2, 3, 0), (2, 3, 1)]
    assert rules["last"] == [(4, 0, 0), (4, 3, 0), (4, 3, 2)]
    assert rules["first-last"] == [(1, 0, 0), (1, 4, 0), (1, 4, 2)]


def test_pictures_are_strips_in_which_regions_lie(task):
    images = noise(2)
    strip = task.pictures(images)
    assert strip.shape == (2, 1, 8, MOMENTS * 8)
    top, left, height, width = (int(value) for value in task.region(0, MOMENTS))
    assert torch.equal(strip[:, :, top : top + height, left : left + width], images[:, -1])
    assert task.region(0, 0) is None


class TestReader:
    def test_training_leaves_the_network_and_sees_every_number_of_frames(self, random_backbone, clips):
        backbone = random_backbone()
        recipe = ReaderRecipe(moments=3, preview=2, epochs=1, batch_size=8)
        trained = train_reader(backbone, clips, recipe)
        assert trained.fingerprint() == backbone.fingerprint()
        assert trained.reader.config["moments"] == 3
        assert len(reader_accuracy(trained, clips.val, recipe.most_looks)) == 1 + 3

    def test_network_sees_each_version_once(self, random_backbone, clips):
        backbone, seen = random_backbone(), []
        recipe = ReaderRecipe(moments=3, preview=2, epochs=5, batch_size=8, versions=2)
        trained = train_reader(backbone, clips, recipe)
        assert trained.fingerprint() == backbone.fingerprint()
        trunk, reader = backbone.frozen(), recipe.build(backbone)
        trunk.blocks[0].body.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        tiny, features = seen_versions(trunk, reader, clips, recipe, "cpu")
        assert sum(seen) == 2 * 16 * 3
        assert (tiny.shape[0], features.shape[:3]) == (2 * 16, (2 * 16, 1, 3))
        before = reader.linear.weight
        assert not torch.equal(trained.reader.linear.weight, before)
        with pytest.raises(ValueError, match="versions: expected 0"):
            ReaderRecipe(glance=4, patch=4, versions=2)

    def test_crops_and_frames_are_not_mixed(self, random_backbone, clips, tiny_images):
        with pytest.raises(ValueError, match="expected clips for a reader of frames, got single images"):
            train_reader(random_backbone(), tiny_images, ReaderRecipe(moments=3, preview=2, batch_size=8))
        with pytest.raises(ValueError, match="expected single images for a reader of crops, got clips"):
            train_reader(random_backbone(), clips, ReaderRecipe(glance=4, patch=4, batch_size=8))
        with pytest.raises(ValueError, match="crops or of frames, got both"):
            Reader(8, 4, moments=3, preview=2, patch=4)


def test_weights_of_other_classes_carry_a_reader_and_have_not_seen_the_data(random_backbone, clips, tmp_path):
    """A published network that knows 9 other classes: features are kept, its answers are not."""
    published = make_backbone("resnet8-w4", num_classes=9, input_shape=(1, 8, 8))
    save_file(published.network.state_dict(), tmp_path / "published.safetensors")
    config = PretrainConfig(
        backbone="resnet8-w4",
        init=tmp_path / "published.safetensors",
        moments=3,
        preview=2,
        reader_epochs=1,
        batch_size=8,
        out=tmp_path / "out",
        device="cpu",
    )
    backbone = pretrain(config, data=clips, quiet=True)
    assert backbone.reader.moments == 3
    kept, given = backbone.network.state_dict(), published.network.state_dict()
    assert [key for key in given if kept[key].shape != given[key].shape or not torch.equal(kept[key], given[key])] == [
        key for key in given if len(given[key].shape) and len(given[key]) == 9
    ]
    assert held_out(tmp_path / "out" / "backbone.safetensors", clips.fingerprint)
    again = load_backbone("resnet8-w4", tmp_path / "out" / "backbone.safetensors", **clips.shape)
    assert again.reader.moments == 3


class TestErrors:
    def test_backbone_without_a_reader_of_frames_is_told(self, random_backbone):
        with pytest.raises(ValueError, match="reader of frames, got resnet8-w4 with one of crops.*--moments"):
            make_task("frame-select", random_backbone())

    def test_other_sizes_than_the_readers_are_told(self, random_backbone):
        with pytest.raises(ValueError, match="moments: expected 4, as the reader .*got 5"):
            make_task("frame-select", random_backbone(reader="frames"), moments=5)

    def test_images_are_refused_before_anything_is_trained(self):
        with pytest.raises(ValueError, match="expected clips for frame-select, got single images.*digit-clips"):
            build_engine("frame-select", data="digits")

    def test_clips_are_refused_by_tasks_on_images(self, tiny_backbone, clips):
        with pytest.raises(ValueError, match="expected single images for layer-skip, got clips"):
            build_engine("layer-skip", backbone=tiny_backbone, data=clips)

    @pytest.mark.parametrize(
        "images",
        [noise(2)[:, 0], noise(2)[..., :5], noise(2)[:, :0], noise(2).float(), noise(2).expand(-1, -1, 2, -1, -1)],
    )
    def test_unfit_clips_are_told(self, task, images):
        with pytest.raises(ValueError, match="expected"):
            Controller(task, StaticPolicy((1, 0, 0), 1))(images)

    def test_fitting_clips_make_an_environment(self, random_backbone, clips):
        engine = build_engine("frame-select", backbone=random_backbone(reader="frames"), data=clips)
        assert engine.reset().shape == (1, *engine.layout.space.shape)
        assert 0 <= measure(Controller(engine.task, StaticPolicy((1, 0, 0), 1)), clips.val).accuracy <= 1


def test_run_tells_the_numbers_of_the_frames_looked_at_in_their_order(task):
    clip = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 1, 8, 8)
    assert task.executed(clip, (task.moments, 1, 0)) == ["frame 9", "frame 1"]
    padded = torch.cat([clip, clip[-1:].expand(4, -1, -1, -1)])
    assert task.executed(padded, (task.moments, 2, 1), frames=range(0, 26, 2)) == ["frame 17", "frame 7", "frame 1"]
