import pytest
import torch

from skipgym.backbones import make_backbone
from skipgym.backbones.cifar_resnet import CifarBlock, CifarResNet, OptionA


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
