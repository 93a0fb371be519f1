from itertools import pairwise

import pytest
import torch

from skipgym.backbones import make_backbone
from skipgym.backbones.cifar_resnet import CifarBlock, CifarResNet, OptionA, thinned


def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.arange(9.0).view(1, 1, 3, 3)  # 0 1 2 / 3 4 5 / 6 7 8
    expected = torch.zeros(1, 4, 2, 2)
    expected[0, 1] = torch.tensor([[0.0, 2.0], [6.0, 8.0]])  # 3 new channels: 1 before, 2 after
    assert torch.equal(OptionA(1, 4)(x), expected)


def test_option_a_doubles_channels_with_half_of_the_zeros_on_each_side():
    x = torch.rand(2, 4, 6, 6)
    out = OptionA(4, 8)(x)
    assert torch.equal(out[:, 2:6], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
    assert out[:, :2].eq(0).all()
    assert out[:, 6:].eq(0).all()


@pytest.mark.parametrize(("channels", "stride"), [(4, 1), (8, 2)])
def test_block_without_its_convolutions_is_its_bypass(channels, stride):
    block = CifarBlock(4, channels, stride).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 6, 6)  # what enters a block has passed a ReLU
    with torch.no_grad():
        assert torch.equal(block(x), x if stride == 1 else OptionA(4, 8)(x))


def test_names_are_those_of_the_published_checkpoints():
    layer = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    norm = {f"bn1.{key}" for key in layer}
    blocks = {
        f"layer{stage}.{i}.{key}"
        for stage in (1, 2, 3)
        for i in range(3)
        for key in ["conv1.weight", "conv2.weight", *(f"bn{j}.{key}" for j in (1, 2) for key in layer)]
    }
    expected = {"conv1.weight", "linear.weight", "linear.bias"} | norm | blocks
    assert set(CifarResNet(20).state_dict()) == expected


def test_resnet20_has_the_published_number_of_parameters():
    assert sum(parameter.numel() for parameter in CifarResNet(20).parameters()) == 269_722


@pytest.mark.parametrize("depth", [2, 7, 21])
def test_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ValueError, match=rf"expected 6n\+2 .*, got {depth}"):
        CifarResNet(depth)


def test_blocks_are_named_in_the_order_of_execution():
    names = [block.name for block in make_backbone("resnet14-w4").blocks]
    assert names == ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"]


def picked(count, given):
    """Return which of the blocks of a stage a stage of `count` blocks is given."""
    state = {f"layer1.{i}.bn1.bias": torch.tensor(i) for i in range(given)}
    taken = thinned(state, [f"layer1.{i}.bn1.bias" for i in range(count)])
    return [int(taken[f"layer1.{i}.bn1.bias"]) for i in range(count)]


class TestThinned:
    def test_six_of_seven_blocks(self):
        assert picked(6, 7) == [0, 1, 2, 4, 5, 6]  # 0, 1.2, 2.4, 3.6, 4.8, 6 rounded

    @pytest.mark.parametrize("given", range(2, 19))
    def test_every_number_of_blocks_is_spread_from_first_to_last_in_order(self, given):
        assert picked(1, given) == [0]  # the one that changes the shape
        for count in range(2, given):
            taken = picked(count, given)
            steps = [after - before for before, after in pairwise(taken)]
            assert (taken[0], taken[-1]) == (0, given - 1)
            assert min(steps) >= 1
            assert max(steps) - min(steps) <= 1

    def test_every_weight_is_its_source_blocks(self):
        deeper = CifarResNet(44, width=4).state_dict()
        shallower = CifarResNet(38, width=4)
        shallower.load_state_dict(thinned(deeper, shallower.state_dict()))
        source = [0, 1, 2, 4, 5, 6]
        for key, value in shallower.state_dict().items():
            stage, *rest = key.split(".", 2)
            of = f"{stage}.{source[int(rest[0])]}.{rest[1]}" if stage.startswith("layer") else key
            assert torch.equal(value, deeper[of])

    @pytest.mark.parametrize("depth", [14, 20])
    def test_as_many_blocks_or_more_are_left_as_they_are(self, depth):
        state = CifarResNet(14, width=4).state_dict()
        taken = thinned(state, CifarResNet(depth, width=4).state_dict())
        assert taken.keys() == state.keys()
        assert all(taken[key] is state[key] for key in state)
