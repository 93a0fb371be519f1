from dataclasses import replace

import pytest
import torch

from skipgym.backbones import load_backbone
from skipgym.data import Augment, Part
from skipgym.envs import build_engine, make_task


@pytest.fixture
def build(tiny_backbone, tiny_images):
    def build(task="layer-skip", **options):
        return build_engine(task, **{"backbone": tiny_backbone, "data": tiny_images, **options})

    return build


class TestParts:
    def test_task_reward_price_and_slots_are_as_named(self, build):
        engine = build("block-drop", reward="skipnet", price=(0.1, 0.5), num_envs=3, policy_macs=8)
        assert (engine.task.name, engine.num_envs, engine.policy_macs) == ("block-drop", 3, 8)
        assert engine.reward.config() == {"name": "skipnet", "alpha": 0.1}
        assert (engine.low, engine.high, engine.layout.priced) == (0.1, 0.5, True)

    def test_policys_part_is_dealt_unless_told_otherwise(self, build, tiny_images):
        assert torch.equal(build().images, tiny_images.policy.images)
        assert torch.equal(build(part="val").labels, tiny_images.val.labels)

    def test_backbone_is_frozen_and_given_one_left_alone(self, build, tiny_backbone):
        engine = build()
        assert engine.task.backbone.is_frozen
        assert not tiny_backbone.is_frozen
        assert engine.task.backbone.fingerprint() == tiny_backbone.fingerprint()

    def test_task_options_reach_the_task(self, build):
        assert build(task_options={"grid": 2}).task.observation_shape == (32,)

    def test_task_of_ones_own_is_taken_as_it_is(self, build, leave):
        assert build(leave).task is leave

    def test_weights_are_loaded_with_the_datas_classes(self, random_backbone, tiny_images, tmp_path):
        trained = random_backbone(seed=4)
        torch.save(trained.network.state_dict(), tmp_path / "w.pt")
        engine = build_engine("layer-skip", backbone="resnet8-w4", data=tiny_images, weights=tmp_path / "w.pt")
        assert engine.task.backbone.fingerprint() == trained.fingerprint()
        assert engine.task.backbone.class_names == ("a", "b", "c", "d")

    def test_augmentation_is_strong_only_where_the_backbone_has_seen_the_images(self, build, tiny_images):
        seen = replace(tiny_images, seen=True)
        assert build().augment == Augment(pad=1)  # light: what the data declares
        assert build(data=seen).augment == Augment.strong(seen)
        assert build(data=seen, augment="none").augment == Augment()
        assert build(augment="light").augment == Augment(pad=1)
        assert build(augment="strong").augment == Augment.strong(tiny_images)

    def test_grey_data_suits_a_colour_backbone(self, random_backbone, tiny_images):
        engine = build_engine("layer-skip", backbone=random_backbone(input_shape=(3, 8, 8)), data=tiny_images)
        assert engine.reset().shape == (1, 8 + 3)


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task": "layer-skp"}, "unknown task: .*Did you mean layer-skip"),
            ({"reward": "skip-net"}, "unknown reward: .*Did you mean skipnet"),
            ({"backbone": "resnet8-w4"}, "backbone resnet8-w4 for noise: expected a file with its weights, got none"),
            ({"data": "digitz"}, r"Unknown data \(did you mean digits"),
            ({"part": "tset"}, "Unknown part of the data: expected one of train, policy, val, test, got 'tset'"),
            ({"task_options": {"gird": 1}}, "options of task layer-skip: .*gird"),
            ({"task_options": {"grid": 20}}, "grid: expected 1 … 8, got 20"),
            ({"price": -1}, "price: expected a number >= 0"),
            ({"price": (1, 0)}, r"price: expected .* got \(1, 0\)"),
            ({"num_envs": 0}, "num_envs: expected at least 1, got 0"),
            ({"augment": "storng"}, "unknown augment: .*Did you mean strong"),
        ],
    )
    def test_unknown_names_and_values_out_of_range(self, build, options, message):
        with pytest.raises(ValueError, match=message):
            build(**options)

    def test_unknown_backbone_is_told_with_close_matches(self):
        with pytest.raises(ValueError, match=r"unknown backbone: .*got 'resnt20'\. Did you mean resnet20"):
            build_engine("layer-skip", backbone="resnt20", data="digits")

    def test_missing_weights(self, tiny_images, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"expected a file, got .*nothing\.pt"):
            build_engine("layer-skip", backbone="resnet8-w4", data=tiny_images, weights=tmp_path / "nothing.pt")

    def test_images_of_another_size(self, build, random_backbone):
        backbone = random_backbone(input_shape=(1, 16, 16))
        with pytest.raises(ValueError, match=r"data noise: expected 1 x 16 x 16 images .* got 1 x 8 x 8\. Resize"):
            build(backbone=backbone)

    def test_colour_images_for_a_grey_backbone(self, build, tiny_images):
        def colour(part):
            return Part(part.images.expand(-1, 3, -1, -1).contiguous(), part.labels)

        data = replace(tiny_images, train=colour(tiny_images.train), policy=colour(tiny_images.policy))
        with pytest.raises(ValueError, match=r"expected 1 x 8 x 8 images .* got 3 x 8 x 8"):
            build(data=data)

    def test_another_number_of_classes(self, build, tiny_images):
        with pytest.raises(ValueError, match="expected 4 classes as the backbone has, got 3"):
            build(data=replace(tiny_images, class_names=("a", "b", "c")))

    def test_own_task_on_data_that_does_not_fit(self, leave, tiny_images):
        with pytest.raises(ValueError, match="expected 4 classes as the backbone has, got 5"):
            build_engine(leave, data=replace(tiny_images, class_names=tuple("abcde")))


def test_unknown_task_is_told_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("skipgym.envs.build.load_data", lambda *_, **__: pytest.fail("data was read"))
    with pytest.raises(ValueError, match="unknown task"):
        build_engine("layer-skp")


def test_loading_and_making_give_the_same_task(random_backbone, tmp_path):
    trained = random_backbone(seed=4)
    torch.save(trained.network.state_dict(), tmp_path / "w.pt")
    loaded = load_backbone("resnet8-w4", tmp_path / "w.pt", num_classes=4, input_shape=(1, 8, 8))
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        first, second = (make_task("layer-skip", net).backbone(x) for net in (trained, loaded))
    assert torch.equal(first, second)
