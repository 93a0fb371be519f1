"""Slimmable backbones: a slice is the network's first channels, and costs what a network of its size costs."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skipgym.backbones import make_backbone
from skipgym.backbones.recipe import Recipe
from skipgym.backbones.slimmable import SlimmableResNet, fit_channels, recalibrate, slices
from skipgym.backbones.trainer import Trainer, check_widths, width_accuracy
from skipgym.backbones.width_training import draw_widths, make_teacher, soft_label_loss, width_loss
from skipgym.data import load

X = torch.randn((6, 1, 8, 8), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
KINDS = ("slim", "us")


@pytest.fixture(scope="module", params=KINDS)
def backbone(request, random_backbone):
    return random_backbone(f"{request.param}-resnet8-w8")


def macs_by_hand(width, *, per_stage=1, side=8, colours=1, classes=4):
    """Return a CIFAR ResNet's MACs: 3x3 convolutions at a side, half and a quarter of it, then one linear layer."""
    first = colours * width + per_stage * 2 * width**2
    second = width * 2 * width + (2 * per_stage - 1) * (2 * width) ** 2
    third = 2 * width * 4 * width + (2 * per_stage - 1) * (4 * width) ** 2
    return 9 * (first * side**2 + second * (side // 2) ** 2 + third * (side // 4) ** 2) + 4 * width * classes


class TestSlices:
    def test_full_width_is_the_ordinary_network(self, backbone):
        net = backbone.network.eval()
        torch.testing.assert_close(net.forward_at(X, (8, 8, 8)), net(X))
        torch.testing.assert_close(backbone.frozen()(X), net(X), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(backbone(X), net(X))

    def test_every_width_answers_as_it_does_in_training(self, backbone):
        net = backbone.network.eval()
        for channels, one in zip(net.widths, slices(backbone, [w / 8 for w in net.widths]), strict=True):
            expected = net.forward_at(X, (channels,) * 3)
            torch.testing.assert_close(one(X), expected, rtol=1e-3, atol=1e-4)
            assert one.is_frozen

    def test_convolutions_really_are_smaller(self, backbone):
        for width, one in zip((2, 4, 6, 8), slices(backbone, (0.25, 0.5, 0.75, 1)), strict=True):
            assert one.full_macs == macs_by_hand(width)
            first = next(m for m in one.stem.modules() if isinstance(m, nn.Conv2d))
            assert first.weight.shape == (width, 1, 3, 3)

    def test_widths_are_quarters_or_every_step_from_a_quarter_on(self):
        assert SlimmableResNet(8, "slim", width=16).widths == (4, 8, 12, 16)
        assert SlimmableResNet(8, "us", width=8).widths == (2, 3, 4, 5, 6, 7, 8)
        assert SlimmableResNet(8, "us", width=32).widths == tuple(range(8, 33, 2))

    def test_scale_and_shift_are_private_only_of_slimmable_networks(self):
        names = {kind: {name for name, _ in SlimmableResNet(8, kind, width=8).named_parameters()} for kind in KINDS}
        assert {name for name in names["slim"] if "norms." in name}
        assert not {name for name in names["us"] if "norms." in name}

    def test_making_slices_changes_nothing_and_draws_nothing(self, backbone):
        before, state = backbone.fingerprint(), torch.get_rng_state()
        slices(backbone, (0.25, 1))
        assert backbone.fingerprint() == before
        assert torch.equal(torch.get_rng_state(), state)

    def test_channels_keep_their_order_where_they_are_added_or_left_out(self):
        x = torch.arange(3.0).view(1, 3, 1, 1)
        assert fit_channels(x, 5).flatten().tolist() == [0, 1, 2, 0, 0]
        assert fit_channels(x, 2).flatten().tolist() == [0, 1]
        shortcut = SlimmableResNet(8, "slim", width=4).get_submodule("layer2.0.shortcut")
        assert shortcut(torch.ones(1, 4, 2, 2)).flatten().tolist() == [1] * 4 + [0] * 4


class TestErrors:
    @pytest.mark.parametrize(
        ("width", "message"),
        [
            (0.2, r"within the trained range, 0\.25 … 1, got 0\.2\. Choose one of 0\.25, 0\.5, 0\.75, 1"),
            (1.5, r"within the trained range.*got 1\.5"),
            (0.3, r"one that was trained, got 0\.3, which is 2\.4 of 8 channels"),
            (0.375, r"one that was trained, got 0\.375, which is 3 of 8"),
        ],
    )
    def test_width_that_was_not_trained(self, random_backbone, width, message):
        with pytest.raises(ValueError, match=message):
            slices(random_backbone("slim-resnet8-w8"), [width])

    def test_backbone_of_one_width(self, tiny_backbone):
        with pytest.raises(ValueError, match="expected a slimmable backbone, got resnet8-w4"):
            slices(tiny_backbone, [0.5])

    @pytest.mark.parametrize(("name", "unit"), [("slim-resnet8-w6", 4), ("us-resnet8-w2", 4), ("us-resnet8-w20", 16)])
    def test_channels_that_cannot_be_divided(self, name, unit):
        with pytest.raises(ValueError, match=f"channels divisible by {unit}.*got {name.rpartition('w')[2]}"):
            make_backbone(name)

    def test_recipes_that_do_not_fit(self, tiny_backbone, random_backbone):
        with pytest.raises(ValueError, match=r"width_training: expected a slimmable backbone, got resnet8-w4"):
            check_widths(tiny_backbone, Recipe(width_training="universal"))
        with pytest.raises(ValueError, match="stochastic_depth: expected 0 for slim-resnet8-w4"):
            check_widths(random_backbone("slim-resnet8-w4"), Recipe(stochastic_depth=0.5))
        with pytest.raises(ValueError, match="width_training: expected one of"):
            Recipe(width_training="all")  # pyright: ignore[reportArgumentType]


class TestTraining:
    def entropy(self, logits):
        return F.cross_entropy(logits, LABELS)

    def test_slimmable_training_sums_the_labels_loss_of_every_width(self, random_backbone):
        net = random_backbone("slim-resnet8-w8").network.eval()
        expected = sum(self.entropy(net.forward_at(X, (width,) * 3)) for width in (2, 4, 6, 8))
        torch.testing.assert_close(width_loss(net, X, "slimmable", self.entropy), expected)

    @pytest.mark.parametrize("how", ["universal", "stagewise"])
    def test_others_learn_what_the_largest_says(self, random_backbone, how):
        net = random_backbone("us-resnet8-w8").network.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawn = draw_widths(net, how)
            torch.manual_seed(0)
            found = width_loss(net, X, how, self.entropy)
        full = net(X)
        others = sum(soft_label_loss(net.forward_at(X, widths), full) for widths in [(2, 2, 2), *drawn])
        torch.testing.assert_close(found, self.entropy(full) + others)

    def test_bootstrap_lets_the_smallest_learn_from_the_teachers_ensemble(self, random_backbone):
        net = random_backbone("slim-resnet8-w8").network.eval()
        teacher = make_teacher(net)
        other = teacher.module
        assert isinstance(other, SlimmableResNet)
        with torch.no_grad():
            other.linear.bias += torch.tensor([2.0, 0, 0, 0])  # so that it says something else
        drawn = [(4, 4, 4), (6, 6, 6)]
        with patch("skipgym.backbones.width_training.draw_widths", return_value=drawn):
            found = width_loss(net, X, "bootstrap", self.entropy, teacher)
        told = [other.forward_at(X, widths).softmax(1) for widths in [(8, 8, 8), *drawn]]

        def divergence(widths, target):
            return (target * (target.log() - net.forward_at(X, widths).log_softmax(1))).sum(1).mean()

        between = sum(divergence(widths, told[0]) for widths in drawn)
        smallest = divergence((2, 2, 2), sum(told) / 3)
        torch.testing.assert_close(found, self.entropy(net(X)) + between + smallest)
        found.backward()
        assert all(weight.grad is None for weight in teacher.parameters())

    def test_teacher_follows_fast_at_first_and_slowly_later(self, random_backbone):
        net = random_backbone("slim-resnet8-w4").network
        teacher, bias = make_teacher(net), net.linear.bias
        other = teacher.module
        assert isinstance(other, SlimmableResNet)
        with torch.no_grad():
            bias.fill_(1)
            teacher.update_parameters(net)  # the first time it takes the weights as they are
            bias.fill_(2)
            teacher.update_parameters(net)
        torch.testing.assert_close(other.linear.bias, torch.full((4,), 1 * 2 / 11 + 2 * 9 / 11))
        teacher.n_averaged.fill_(100_000)
        with torch.no_grad():
            bias.fill_(0)
            teacher.update_parameters(net)
        torch.testing.assert_close(other.linear.bias, torch.full((4,), 0.999 * (2 / 11 + 18 / 11)))

    def test_stagewise_draws_one_network_with_a_width_for_each_stage(self, random_backbone):
        net = random_backbone("us-resnet8-w8").network
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawn = [draw_widths(net, "stagewise") for _ in range(20)]
        assert all(len(set(alike)) == 1 for alike, _ in drawn)
        assert any(len(set(each)) > 1 for _, each in drawn)
        assert {width for pair in drawn for widths in pair for width in widths} == set(net.widths)

    @pytest.mark.parametrize(
        ("name", "how"),
        [("slim-resnet8-w4", "stagewise"), ("us-resnet8-w4", "stagewise"), ("slim-resnet8-w4", "bootstrap")],
    )
    def test_stopped_and_resumed_training_ends_with_the_same_weights(self, name, how, tiny_images):
        recipe = Recipe(epochs=2, batch_size=4, width_training=how)

        def trainer():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return Trainer(make_backbone(name, num_classes=4, input_shape=(1, 8, 8)), tiny_images, recipe)

        whole, first, second = trainer(), trainer(), trainer()
        for _ in range(2):
            whole.run_epoch()
        first.run_epoch()
        second.load_state_dict(first.state_dict())
        second.run_epoch()
        assert second.finish().fingerprint() == whole.finish().fingerprint()

    def test_statistics_are_those_of_the_images_and_only_of_narrower_widths(self, random_backbone):
        backbone = random_backbone("us-resnet8-w8")
        net, before = backbone.network, backbone.network.bn1.running_mean.clone()
        recalibrate(backbone, [X[:3], X[3:]])
        for width in net.widths[:-1]:
            stem = net.get_submodule(f"norms.{width}.0")
            torch.testing.assert_close(stem.running_mean, net.conv1(X).mean((0, 2, 3))[:width])
        assert torch.equal(net.bn1.running_mean, before)
        assert not net.training
        kept = random_backbone("slim-resnet8-w8")
        same = kept.fingerprint()
        recalibrate(kept, [X])
        assert kept.fingerprint() == same

    def test_without_statistics_of_their_own_narrower_widths_collapse(self):
        digits = load("digits")
        digits = replace(digits, train=digits.train.subset(512))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            backbone = make_backbone("us-resnet8-w8", input_shape=(1, 8, 8), mean=digits.mean, std=digits.std)
        trainer = Trainer(backbone, digits, Recipe(epochs=6, batch_size=32))
        for _ in range(6):
            trainer.run_epoch()
        own = width_accuracy(trainer.finish(), digits.val)
        state = backbone.network.state_dict()
        norms = [name for name in state if name.endswith(("bn1.running_mean", "bn2.running_mean"))]
        for width in (2, 3, 4, 5, 6, 7):
            for index, name in enumerate(norms):
                for mean_or_var in ("running_mean", "running_var"):
                    own_value = state[f"norms.{width}.{index}.{mean_or_var}"]
                    own_value.copy_(state[name.replace("running_mean", mean_or_var)][: len(own_value)])
        borrowed = width_accuracy(backbone, digits.val)
        assert own["width 0.5"] > borrowed["width 0.5"] + 0.2
        assert own["width 0.25"] > borrowed["width 0.25"] + 0.2
