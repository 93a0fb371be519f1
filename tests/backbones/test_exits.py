"""Exits: where they may be, what they cost, how they are trained and kept, and that the network is not touched."""

import json

import pytest
import torch
from torch.nn import functional as F

from skipgym.backbones import load_backbone, make_backbone
from skipgym.backbones.embedded import pretrained_exits
from skipgym.backbones.exit_training import ExitRecipe, exits_loss, features_at, train_exits
from skipgym.backbones.exits import Exit, check_places, digest, even_places, exit_tensors
from skipgym.backbones.pretrain import pretrain
from skipgym.backbones.recipe import PretrainConfig

RECIPE = ExitRecipe(places=(1, 2), epochs=2, batch_size=4)


@pytest.fixture
def bare(randomise):
    """A random network without exits."""
    torch.manual_seed(0)
    backbone = make_backbone("resnet8-w4", num_classes=4, input_shape=(1, 8, 8), mean=(0.5,), std=(0.25,))
    randomise(backbone.network)
    return backbone


class TestPlaces:
    @pytest.mark.parametrize("places", [(), (2, 1), (1, 1), (0,), (3,), (1.5,), (True,), ("1",)])
    def test_those_out_of_order_or_range_are_refused(self, places):
        with pytest.raises(ValueError, match="exits: expected one or more rising numbers of blocks from 1 to 2, got"):
            check_places(places, 3)

    def test_even_ones_part_the_cost(self):
        assert even_places([1] * 8) == (2, 4, 6)
        assert even_places([6, 1, 1, 1, 1, 2]) == (1, 4)
        assert even_places([1, 1]) == (1,)


class TestHead:
    def test_cost_is_that_of_its_products(self):
        assert Exit(1, (16, 8, 8), 10).macs == 16 * 4 * 4 * 10
        assert Exit(1, (16, 2, 2), 10).macs == 16 * 2 * 2 * 10
        assert Exit(1, (16, 8, 8), 10, kind="conv").macs == 9 * 16 * 32 * 4 * 4 + 32 * 4 * 4 * 10
        assert Exit(1, (65, 64), 10).macs == 2 * 64 * 10

    def test_unknown_kind_is_refused(self):
        with pytest.raises(ValueError, match="exit head: expected one of pool, conv, got 'attention'"):
            Exit(1, (4, 8, 8), 4, kind="attention")

    def test_one_of_another_network_is_refused(self, bare):
        with pytest.raises(ValueError, match=r"exit after block 2: expected one from \(8, 4, 4\).* another network"):
            bare.with_exits([Exit(2, (4, 8, 8), 4)])
        with pytest.raises(ValueError, match="rising numbers"):
            bare.with_exits([Exit(2, (8, 4, 4), 4), Exit(1, (4, 8, 8), 4)])


class TestTraining:
    def test_network_stays_bit_identical(self, bare, tiny_images):
        before = {key: value.clone() for key, value in bare.network.state_dict().items()}
        trained = train_exits(bare, tiny_images, RECIPE)
        assert not bare.exits
        for network in (bare.network, trained.network):
            assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        x = torch.randn(3, 1, 8, 8)
        bare.eval()
        trained.eval()
        assert torch.equal(bare(x), trained(x))

    def test_same_recipe_gives_the_same_exits(self, bare, tiny_images):
        first, again = (exit_tensors(train_exits(bare, tiny_images, RECIPE).exits) for _ in range(2))
        other = exit_tensors(
            train_exits(bare, tiny_images, ExitRecipe(places=(1, 2), epochs=2, batch_size=4, seed=1)).exits
        )
        assert digest(first) == digest(again) != digest(other)

    def test_loss_is_that_of_the_papers(self):
        torch.manual_seed(0)
        answers, last, labels = [torch.randn(5, 4) for _ in range(2)], torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
        recipe = ExitRecipe(places=(1, 2), alpha=0.3, weights=(1.0, 2.0))
        teacher = last.softmax(1)
        expected = sum(
            weight * (0.3 * F.cross_entropy(z, labels) + 0.7 * (teacher * (teacher / z.softmax(1)).log()).sum(1).mean())
            for weight, z in zip((1.0, 2.0), answers, strict=True)
        )
        assert exits_loss(answers, last, labels, recipe) == pytest.approx(float(expected), rel=1e-5)

    def test_exits_learn(self, bare, tiny_images):
        """Distilled alone, an exit comes to agree with the network that it was put on."""
        recipe = ExitRecipe(places=(2,), epochs=200, batch_size=8, alpha=0.0, lr=0.02)
        trained = train_exits(bare, tiny_images, recipe).frozen()
        (x,), last = features_at(trained, trained.prepare(tiny_images.train.images), (2,))
        assert (
            F.kl_div(trained.exits[0](x).log_softmax(1), last.log_softmax(1), reduction="batchmean", log_target=True)
            < 0.2
        )

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"alpha": 1.5}, "exit_alpha: expected 0 … 1, got 1.5"),
            ({"weights": (1.0, 0.0)}, "exit_weights: expected numbers above 0"),
            ({"weights": (1.0,), "places": (1, 2)}, "exit_weights: expected one for each of 2 exits, got 1"),
            ({"epochs": 0}, "exit_epochs: expected at least 1"),
        ],
    )
    def test_bad_recipes_are_refused(self, options, match):
        with pytest.raises(ValueError, match=match):
            ExitRecipe(**options)

    def test_without_embedded_data_the_command_is_told(self, bare, tiny_images):
        with pytest.raises(
            ValueError, match=r"exits of resnet8-w4: expected them beside its weights.*pretrain .*--init"
        ):
            pretrained_exits(bare, tiny_images)


class TestPretrain:
    @pytest.fixture(scope="class")
    def trunk(self, tmp_path_factory, tiny_images):
        out = tmp_path_factory.mktemp("trunk") / "out"
        config = PretrainConfig(backbone="resnet8-w4", data="noise", epochs=1, batch_size=8, out=out)
        pretrain(config, data=tiny_images, quiet=True)
        return out / "backbone.safetensors"

    def config(self, trunk, out, **options):
        options = {"exits": (1, 2), "batch_size": 4, "exit_epochs": 1, **options}
        return PretrainConfig(backbone="resnet8-w4", data="noise", init=trunk, out=out, device="cpu", **options)

    def test_heads_alone_leave_the_weights_as_they_are(self, trunk, tmp_path, tiny_images):
        trained = pretrain(self.config(trunk, tmp_path / "x"), data=tiny_images, quiet=True)
        weights = tmp_path / "x" / "backbone.safetensors"
        assert weights.read_bytes() == trunk.read_bytes()
        assert weights.with_suffix(".json").read_text() == trunk.with_suffix(".json").read_text()
        loaded = load_backbone("resnet8-w4", weights, num_classes=4, input_shape=(1, 8, 8))
        assert [one.after for one in loaded.exits] == [1, 2]
        assert loaded.identity() == trained.identity() != loaded.fingerprint()
        card = json.loads((tmp_path / "x" / "backbone.exits.json").read_text())
        assert card["macs"] == [one.macs for one in loaded.exits]
        assert len(card["accuracy"]["test"]["of each"]) == 3
        again = pretrain(self.config(trunk, tmp_path / "x"), data=tiny_images, quiet=True)
        assert again.identity() == trained.identity()

    def test_exits_of_another_network_or_changed_ones_are_refused(self, trunk, tmp_path, tiny_images):
        pretrain(self.config(trunk, tmp_path / "x"), data=tiny_images, quiet=True)
        page = tmp_path / "x" / "backbone.exits.json"
        whole = page.read_text()
        options = {"num_classes": 4, "input_shape": (1, 8, 8)}
        for key, match in (("trunk", "expected exits of a network with fingerprint"), ("fingerprint", "as their card")):
            page.write_text(json.dumps({**json.loads(whole), key: "0" * 16}))
            with pytest.raises(ValueError, match=match + ".*Train them again"):
                load_backbone("resnet8-w4", tmp_path / "x" / "backbone.safetensors", **options)

    def test_places_are_refused_before_anything_is_written(self, trunk, tmp_path, tiny_images):
        with pytest.raises(ValueError, match="exits: expected rising numbers of blocks"):
            self.config(trunk, tmp_path / "x", exits=(2, 1))
        with pytest.raises(ValueError, match="from 1 to 2, got 1 7"):
            pretrain(self.config(trunk, tmp_path / "x", exits=(1, 7)), data=tiny_images, quiet=True)
        assert not (tmp_path / "x").exists()

    def test_command_repeats_the_options(self, trunk, tmp_path):
        command = self.config(trunk, tmp_path / "x").command()
        assert "--exits 1 2" in command
        assert "--exit-epochs 1" in command
