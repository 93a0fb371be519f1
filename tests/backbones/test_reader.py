"""Glances, crops and readers: what is sampled, what it costs, how readers are trained and kept."""

import copy
import json
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from skipgym.backbones import load_backbone, make_backbone
from skipgym.backbones.carried import carried_tensors, describe_carried, with_carried
from skipgym.backbones.embedded import pretrained_reader
from skipgym.backbones.exits import digest
from skipgym.backbones.glimpses import crop, encode_macs, glance, place_code
from skipgym.backbones.moments import time_code
from skipgym.backbones.pretrain import pretrain
from skipgym.backbones.reader import Reader, reader_tensors
from skipgym.backbones.reader_training import ReaderRecipe, random_centres, train_reader
from skipgym.backbones.recipe import PretrainConfig

RECIPE = ReaderRecipe(glance=4, patch=4, looks=2, epochs=2, batch_size=4)


@pytest.fixture
def bare(randomise):
    """A random network without a reader."""
    torch.manual_seed(0)
    backbone = make_backbone("resnet8-w4", num_classes=4, input_shape=(1, 8, 8), mean=(0.5,), std=(0.25,))
    randomise(backbone.network)
    return backbone


class TestSlots:
    """A memory in which each frame has its own place."""

    @pytest.fixture
    def reader(self):
        torch.manual_seed(0)
        return Reader(3, 4, moments=4, preview=1, memory="slots", hidden=5)

    def read(self, reader, order, features):
        memory = reader.begin(torch.zeros(2, 4))
        for moment in order:
            memory = reader.read(memory, features[:, moment], time_code(torch.full((2,), moment), 4))
        return memory

    def test_order_does_not_matter_but_the_moment_does(self, reader):
        features = torch.randn(2, 4, 3)
        forth, back = self.read(reader, [0, 3], features), self.read(reader, [3, 0], features)
        torch.testing.assert_close(forth, back)
        assert not torch.allclose(reader.answer(forth), reader.answer(self.read(reader, [0, 3], features.flip(1))))

    def test_each_frame_is_kept_at_its_place_and_others_are_empty(self, reader):
        features = torch.randn(2, 4, 3)
        slots = self.read(reader, [2], features).unflatten(1, (5, 6))
        own = reader.sight(features[:, 2], time_code(torch.full((2,), 2), 4))[:, -5:]
        torch.testing.assert_close(slots[:, 2, :5], own)
        assert slots[:, :, 5].tolist() == [[0, 0, 1, 0, 1]] * 2  # the preview is in the last
        assert slots[:, [0, 1, 3]].abs().sum() == 0

    def test_seen_twice_changes_nothing(self, reader):
        features = torch.randn(2, 4, 3)
        torch.testing.assert_close(self.read(reader, [1, 1, 1], features), self.read(reader, [1], features))

    def test_policy_sees_the_answer(self, reader):
        memory = self.read(reader, [1], torch.randn(2, 4, 3))
        logits = reader.answer(memory)
        torch.testing.assert_close(reader.shown(memory, logits), logits.softmax(1))

    def test_dropout_is_for_training_alone(self):
        reader = Reader(3, 4, moments=4, preview=1, memory="slots", hidden=5, dropout=0.5)
        features = torch.randn(2, 4, 3)
        torch.testing.assert_close(self.read(reader, [1], features), self.read(reader, [1], features))
        assert "dropout" not in reader.config
        reader.train()
        assert not torch.allclose(
            reader.answer(torch.ones(64, reader.memory_size)), reader.answer(torch.ones(64, reader.memory_size))
        )

    def test_crops_have_no_slots(self):
        with pytest.raises(ValueError, match="expected gru or mean for crops, got slots"):
            Reader(3, 4, glance=4, patch=4, memory="slots")


class TestCrop:
    def test_whole_pixels_are_copied(self):
        images = torch.randn(2, 3, 9, 7)
        cut = crop(images, torch.tensor([[2.0, 3.0], [7.0, 2.0]]), 4)
        assert cut.shape == (2, 1, 3, 4, 4)
        torch.testing.assert_close(cut[0, 0], images[0, :, 0:4, 1:5])
        torch.testing.assert_close(cut[1, 0], images[1, :, 5:9, 0:4])

    def test_between_pixels_is_their_mean(self):
        images = torch.tensor([[[[1.0, 3.0, 5.0]]]])
        assert crop(images, torch.tensor([[0.5, 1.0]]), 1).item() == pytest.approx(2.0)

    def test_outside_is_zero(self):
        cut = crop(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0.0]]), 4)[0, 0, 0]
        expected = torch.zeros(4, 4)
        expected[2:, 2:] = 1
        torch.testing.assert_close(cut, expected)

    def test_zooms_and_scales_average_concentric_squares(self):
        images, centre = torch.randn(1, 1, 8, 8), torch.tensor([[4.0, 4.0]])
        wide = glance(images[:, :, 2:6, 2:6], 2)
        torch.testing.assert_close(crop(images, centre, 2, zoom=2)[:, 0], wide)
        both = crop(images, centre, 2, scales=2)
        torch.testing.assert_close(both[:, 0], images[:, :, 3:5, 3:5])
        torch.testing.assert_close(both[:, 1], wide)

    def test_gradient_in_the_centre_is_that_of_finite_differences(self):
        torch.manual_seed(0)
        images = torch.randn(2, 1, 8, 8, dtype=torch.double)
        centres = torch.tensor([[3.3, 4.2], [4.6, 3.7]], dtype=torch.double, requires_grad=True)
        assert torch.autograd.gradcheck(lambda c: crop(images, c, 3, scales=2).sin(), (centres,))

    def test_drawn_places_lie_within(self):
        centres = random_centres(500, torch.Size((8, 12)), 4, torch.Generator().manual_seed(0))
        assert centres.min() >= 2
        assert (centres.amax(0) <= torch.tensor([6.0, 10.0])).all()
        assert (centres.amax(0) > torch.tensor([5.8, 9.8])).all()

    def test_place_is_told_from_edge_to_edge(self):
        code = place_code(torch.tensor([[0.0, 12.0], [4.0, 6.0]]), 2, (8, 12))
        assert code.tolist() == [[-1, 1, 1], [0, 0, 1]]

    def test_network_of_fixed_size_is_refused(self, random_backbone):
        with pytest.raises(
            ValueError, match=r"backbone vit_tiny: .* take images of 4 x 4 pixels and give feature maps"
        ):
            encode_macs(random_backbone("vit_tiny"), 4)


class TestReader:
    def test_cost_is_that_of_its_products(self):
        reader = Reader(16, 10, glance=4, patch=4, scales=2, hidden=8)
        core = 3 * 8 * 8 + 3 * 8 * 8 + 8 * 10
        assert reader.glance_macs == 16 * 8 + core
        assert reader.look_macs == (2 * 16 + 3) * 8 + core
        assert Reader(16, 10, glance=4, patch=4, memory="mean", hidden=8).look_macs == (16 + 3) * 8 + 8 * 10

    def test_mean_does_not_depend_on_the_order_and_gru_does(self, randomise):
        torch.manual_seed(0)
        features, places = torch.randn(3, 2, 6), torch.rand(2, 3)
        for kind, alike in (("mean", True), ("gru", False)):
            reader = randomise(Reader(6, 4, glance=4, patch=4, memory=kind, hidden=8))
            answers = []
            for order in ((1, 2), (2, 1)):
                memory = reader.begin(features[0])
                for index in order:
                    memory = reader.read(memory, features[index], places)
                answers.append(reader.answer(memory))
            assert torch.allclose(*answers, atol=1e-6) == alike

    @pytest.mark.parametrize("wrong", [{"patch": 0}, {"glance": 1.5}, {"memory": "lstm"}, {"scales": -1}])
    def test_unfit_one_is_refused(self, wrong):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            Reader(6, 4, **{"glance": 4, "patch": 4, **wrong})

    def test_one_of_another_network_is_refused(self, bare):
        with pytest.raises(ValueError, match="reader: expected one from 16 channels to 4 classes, got one from 8 to 4"):
            bare.with_reader(Reader(8, 4, glance=4, patch=4))


class TestTraining:
    def test_network_stays_and_the_reader_learns(self, bare, tiny_images):
        before = digest(bare.network.state_dict())
        trained = train_reader(bare, tiny_images, RECIPE)
        assert bare.reader is None
        assert digest(trained.network.state_dict()) == before
        assert trained.identity() != bare.identity()
        assert digest(reader_tensors(trained.reader)) != digest(reader_tensors(RECIPE.build(bare)))

    def test_network_can_learn_with_the_reader(self, bare, tiny_images):
        own = copy.deepcopy(bare)
        before = {key: value.clone() for key, value in own.network.state_dict().items()}
        trained = train_reader(own, tiny_images, replace(RECIPE, tune=True))
        after = trained.network.state_dict()
        same = {key for key, value in before.items() if torch.equal(value, after[key])}
        assert {key for key in before if "running" in key or "num_batches" in key} <= same  # statistics are held
        assert same & {"conv1.weight", "layer3.0.conv2.weight", "layer3.0.bn2.bias"} == set()
        assert not trained.training

    def test_versions_are_refused_where_the_network_learns(self):
        with pytest.raises(ValueError, match="versions: expected 0 where the network is trained too, got 2"):
            ReaderRecipe(moments=3, preview=2, versions=2, tune=True)

    def test_same_recipe_gives_the_same_reader(self, bare, tiny_images):
        first, again = (reader_tensors(train_reader(bare, tiny_images, RECIPE).reader) for _ in range(2))
        assert digest(first) == digest(again)

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            ({"glance": 9}, "glance: expected at most the 8 pixels"),
            ({"patch": 12}, "patch: expected at most the 8 pixels"),
            ({"zooms": 3}, "patch at the widest of 3 zooms: expected at most the 8 pixels"),
        ],
    )
    def test_images_smaller_than_a_patch_are_told(self, bare, wrong, told):
        with pytest.raises(ValueError, match=told):
            ReaderRecipe(**{"glance": 4, "patch": 4, **wrong}).build(bare)

    def test_data_that_is_not_embedded_needs_a_file(self, bare, tiny_images):
        with pytest.raises(ValueError, match=r"reader of resnet8-w4: .*--glance … --patch … --out DIR"):
            pretrained_reader(bare, tiny_images, glance=4, patch=4)


class TestKeeping:
    def test_carried_reader_is_built_again(self, bare, tiny_images):
        trained = train_reader(bare, tiny_images, RECIPE)
        described = json.loads(json.dumps(describe_carried(trained)))
        tensors = {f"{name}.safetensors": value for name, value in carried_tensors(trained).items()}
        again = with_carried(bare, described, tensors, "here")
        assert again.identity() == trained.identity()
        assert again.reader.config == trained.reader.config

    def test_pretrain_leaves_it_beside_the_weights(self, tmp_path, tiny_images):
        config = PretrainConfig(
            backbone="resnet8-w4", out=tmp_path / "run", epochs=1, batch_size=4, patch=4, reader_epochs=1, device="cpu"
        )
        trained = pretrain(config, data=tiny_images, quiet=True)
        assert "--patch 4" in config.command()
        shape = {"num_classes": 4, "input_shape": (1, 8, 8)}
        weights = tmp_path / "run" / "backbone.safetensors"
        assert load_backbone("resnet8-w4", weights, **shape).identity() == trained.identity()
        assert pretrain(config, data=tiny_images, quiet=True).identity() == trained.identity()  # not trained again
        card = json.loads((tmp_path / "run" / "backbone.reader.json").read_text())
        assert len(card["accuracy"]["test"]["after each"]) == 4

        card["trunk"] = "0" * 16
        (tmp_path / "run" / "backbone.reader.json").write_text(json.dumps(card))
        with pytest.raises(ValueError, match=r"reader .*expected reader of a network .*Train it again"):
            load_backbone("resnet8-w4", weights, **shape)

    def test_run_killed_while_network_and_reader_learn_ends_as_one_that_was_not(self, tmp_path, tiny_images):
        options = {"epochs": 1, "batch_size": 4, "patch": 4, "reader_epochs": 1, "reader_tunes": True, "device": "cpu"}
        whole, killed = (
            PretrainConfig(backbone="resnet8-w4", out=tmp_path / name, **options) for name in ("whole", "killed")
        )
        trained = pretrain(whole, data=tiny_images, quiet=True)
        assert pretrain(whole, data=tiny_images, quiet=True).identity() == trained.identity()  # not trained again
        killing = patch("skipgym.backbones.pretrain.write_result", side_effect=KeyboardInterrupt)
        with killing, pytest.raises(KeyboardInterrupt):
            pretrain(killed, data=tiny_images, quiet=True)
        assert pretrain(killed, data=tiny_images, quiet=True).identity() == trained.identity()
        found = load_backbone(
            "resnet8-w4", tmp_path / "killed" / "backbone.safetensors", num_classes=4, input_shape=(1, 8, 8)
        )
        assert found.identity() == trained.identity()

    def test_network_learns_only_with_a_reader_of_crops_or_frames(self, tmp_path):
        with pytest.raises(ValueError, match="reader_tunes: expected --patch or --moments with it, got True"):
            PretrainConfig(out=tmp_path, reader_tunes=True)
