"""Squeeze-and-excitation and deformable convolutions in CIFAR ResNets: where they are, what they do and cost."""

import pytest
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from skipgym.backbones import backbone_names, make_backbone
from skipgym.backbones.cifar_resnet import CifarBlock, CifarResNet
from skipgym.backbones.dynamic import Deformable, DynamicResNet, squeeze_excitation

from .conftest import check_training_of_all

X = torch.rand((2, 4, 6, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["se-resnet8", "deform-resnet56"])
def test_names_are_listed(name):
    assert name in backbone_names()


@pytest.mark.parametrize(("name", "width"), [("se-resnet14-w6", 6), ("deform-resnet14", 16)])
def test_every_depth_and_width_has_a_name(name, width):
    backbone = make_backbone(name, input_shape=(1, 8, 8))
    assert [block.out_shape[0] // width for block in backbone.blocks] == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize("kind", ["se", "deform"])
def test_other_depths_are_refused(kind):
    with pytest.raises(ValueError, match=r"expected 6n\+2 .*, got 9"):
        make_backbone(f"{kind}-resnet9")


@pytest.mark.parametrize("kind", ["se", "deform"])
def test_training_moves_every_parameter_and_is_repeatable(kind):
    check_training_of_all(f"{kind}-resnet8-w4")


class TestSqueezeExcitation:
    def test_is_in_every_block(self):
        network = DynamicResNet(14, "se", width=4)
        blocks = [*network.layer1, *network.layer2, *network.layer3]
        assert [isinstance(block.se, SqueezeExcitation) for block in blocks] == [True] * 6

    @pytest.mark.parametrize(("channels", "hidden"), [(4, 4), (64, 4), (128, 8)])
    def test_a_sixteenth_of_the_channels_lies_between_but_four_at_least(self, channels, hidden):
        made = squeeze_excitation(channels)
        assert made.fc1.weight.shape == (hidden, channels, 1, 1)
        assert made.fc2.weight.shape == (channels, hidden, 1, 1)

    def test_computes_what_torchvisions_does(self):
        torch.manual_seed(0)
        ours, theirs = squeeze_excitation(4), SqueezeExcitation(4, 4)
        theirs.load_state_dict(ours.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(ours(X), theirs(X))

    @pytest.mark.parametrize(("bias", "share"), [(0.0, 0.5), (100.0, 1.0), (-100.0, 0.0)])
    def test_scales_the_branch_and_not_the_shortcut(self, randomise, bias, share):
        torch.manual_seed(0)
        block = randomise(CifarBlock(4, 4, 1))
        with torch.no_grad():
            branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(X)))))
            block.se = squeeze_excitation(4)
            nn.init.zeros_(block.se.fc2.weight)
            nn.init.constant_(block.se.fc2.bias, bias)
            torch.testing.assert_close(block(X), torch.relu(X + share * branch))  # sigmoid(0) = 1/2

    def test_costs_its_two_layers(self):
        plain = make_backbone("resnet8-w32", input_shape=(1, 8, 8)).block_macs
        squeezed = make_backbone("se-resnet8-w32", input_shape=(1, 8, 8)).block_macs
        more = [after - before for before, after in zip(plain, squeezed, strict=True)]
        assert more == [2 * 32 * 4, 2 * 64 * 4, 2 * 128 * 8]


class TestDeformable:
    def test_is_the_second_convolution_in_the_last_stage(self):
        found = [name for name, one in DynamicResNet(14, "deform").named_modules() if isinstance(one, Deformable)]
        assert found == ["layer3.0.conv2", "layer3.1.conv2"]

    def test_begins_as_the_convolution_in_its_place(self, randomise):
        torch.manual_seed(0)
        plain = randomise(CifarResNet(8, in_channels=1, width=4))
        made = randomise(DynamicResNet(8, "deform", in_channels=1, width=4))
        offset = made.layer3[0].conv2.offset
        nn.init.zeros_(offset.weight)
        weights = {key.replace("conv2.conv.", "conv2."): value for key, value in made.state_dict().items()}
        plain.load_state_dict({key: value for key, value in weights.items() if "offset" not in key})
        x = torch.rand(2, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(made(x), plain(x))

    def test_offsets_are_zero_at_first(self):
        made = DynamicResNet(8, "deform").layer3[0].conv2
        assert not any(value.any() for value in made.offset.state_dict().values())

    @pytest.mark.parametrize("shift", [0.25, 0.5, 1.0])
    def test_samples_where_its_offsets_say(self, shift):
        torch.manual_seed(0)
        plain = nn.Conv2d(4, 5, 3, padding=1, bias=False)
        made = Deformable(plain)
        with torch.no_grad():
            made.offset.bias[::2] = shift  # down, of each pair of down and right
            whole = plain(X)
            expected = (1 - shift) * whole[:, :, :-1] + shift * whole[:, :, 1:]
            torch.testing.assert_close(made(X)[:, :, :-1], expected)

    def test_each_row_has_offsets_of_its_own(self, randomise):
        torch.manual_seed(0)
        made = randomise(Deformable(nn.Conv2d(4, 5, 3, padding=1, bias=False)))
        with torch.no_grad():
            assert not torch.allclose(*made.offset(X))
            torch.testing.assert_close(made(X), torch.cat([made(row.unsqueeze(0)) for row in X]))

    def test_costs_its_offsets_and_samples(self):
        plain = make_backbone("resnet8-w4", input_shape=(1, 8, 8)).block_macs
        deformed = make_backbone("deform-resnet8-w4", input_shape=(1, 8, 8)).block_macs
        places, channels = 2 * 2, 16
        more = places * 9 * (channels * 18 + channels * 4)  # 18 offsets of each place; values between four pixels
        assert deformed == [*plain[:2], plain[2] + more]
