import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

from skipgym.backbones import count_macs, make_backbone


def cifar_resnet(depth: int) -> tuple[int, list[int], int]:
    """Return the MACs of stem, blocks and head of a ResNet of 6n+2 layers on 3x32x32 images, 10 classes."""
    n = (depth - 2) // 6
    stem = 3 * 16 * 9 * 32 * 32
    first = [2 * 16 * 16 * 9 * 32 * 32] * n
    second = [(16 * 32 + 32 * 32) * 9 * 16 * 16, *[2 * 32 * 32 * 9 * 16 * 16] * (n - 1)]
    third = [(32 * 64 + 64 * 64) * 9 * 8 * 8, *[2 * 64 * 64 * 9 * 8 * 8] * (n - 1)]
    return stem, first + second + third, 64 * 10


@pytest.mark.parametrize(
    ("depth", "published"), [(20, 40_551_040), (32, 68_862_592), (44, 97_174_144), (56, 125_485_696)]
)
def test_cifar_resnet_costs_the_formula(depth, published):
    backbone = make_backbone(f"resnet{depth}")
    stem, blocks, head = cifar_resnet(depth)
    assert (backbone.stem_macs, backbone.block_macs, backbone.head_macs) == (stem, blocks, head)
    assert backbone.full_macs == published
    assert [block.bypass_macs for block in backbone.blocks] == [0] * len(blocks)
    assert backbone.least_macs == stem + head


def test_width_scales_the_convolutions():
    backbone = make_backbone("resnet8-w4", num_classes=5, input_shape=(1, 8, 8))
    assert backbone.stem_macs == 1 * 4 * 9 * 64
    assert backbone.block_macs == [2 * 4 * 4 * 9 * 64, (4 * 8 + 8 * 8) * 9 * 16, (8 * 16 + 16 * 16) * 9 * 4]
    assert backbone.head_macs == 16 * 5


def test_torchvision_resnet_pays_for_its_downsampling_shortcuts():
    with torch.device("meta"):
        backbone = make_backbone("resnet18", num_classes=1000, input_shape=(3, 224, 224))
    full, first = 2 * 64 * 64 * 9 * 56 * 56, (64 * 128 + 128 * 128) * 9 * 28 * 28
    downsample = 64 * 128 * 28 * 28  # 128 x 256 x 14 x 14 and 256 x 512 x 7 x 7 are as much
    assert backbone.stem_macs == 3 * 64 * 49 * 112 * 112
    assert backbone.block_macs == [full, full, *[first + downsample, full] * 3]
    assert [block.bypass_macs for block in backbone.blocks] == [0, 0, *[downsample, 0] * 3]
    assert backbone.head_macs == 512 * 1000
    assert backbone.full_macs == 1_814_073_344
    assert backbone.least_macs == backbone.stem_macs + 3 * downsample + 512 * 1000


def test_vit_b_16_costs_the_formula_with_attention():
    with torch.device("meta"):
        backbone = make_backbone("vit_b_16", num_classes=1000, input_shape=(3, 224, 224))
    tokens, width = 14 * 14 + 1, 768
    projections, attention, mlp = 4 * tokens * width**2, 2 * tokens**2 * width, 2 * tokens * width * 4 * width
    assert backbone.stem_macs == 14 * 14 * (3 * 16 * 16) * width
    assert backbone.block_macs == [projections + attention + mlp] * 12
    assert backbone.head_macs == width * 1000


@pytest.mark.parametrize("size", [8, 32])
def test_vit_tiny_costs_the_formula(size):
    backbone = make_backbone("vit_tiny", input_shape=(1, size, size))
    tokens, width, patch = 65, 64, size // 8
    assert backbone.stem_macs == 64 * (3 * patch * patch) * width
    assert backbone.block_macs == [4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * 128] * 6
    assert backbone.head_macs == width * 10
    assert backbone.least_macs == backbone.stem_macs + backbone.head_macs


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet20-w8", (1, 8, 8)), ("resnet18", (3, 64, 64)), ("vit_tiny", (3, 32, 32))]
)
def test_stem_blocks_and_head_make_up_the_whole_network(name, shape):
    backbone = make_backbone(name, input_shape=shape)
    whole = count_macs(backbone.network.eval(), torch.zeros(1, *shape))
    assert backbone.stem_macs + sum(backbone.block_macs) + backbone.head_macs == whole
    assert backbone.full_macs == whole


@pytest.mark.parametrize("name", ["resnet14-w4", "vit_tiny", "se-resnet8-w4", "deform-resnet8-w4"])
def test_freezing_changes_no_cost(random_backbone, name):
    backbone = random_backbone(name)
    frozen = backbone.frozen()
    x = torch.zeros(1, *backbone.input_shape)
    assert count_macs(frozen.stem, x) == backbone.stem_macs
    for before, block in zip(backbone.blocks, frozen.blocks, strict=True):
        x = torch.zeros(1, *block.in_shape)
        assert (block.macs, block.bypass_macs) == (before.macs, before.bypass_macs)
        assert (count_macs(block.run, x), count_macs(block.bypass, x)) == (block.macs, block.bypass_macs)
    assert count_macs(frozen.head, torch.zeros(1, *frozen.blocks[-1].out_shape)) == backbone.head_macs


class TestCountMacs:
    def test_linear_layer_is_in_times_out(self):
        assert count_macs(nn.Linear(7, 5), torch.zeros(1, 7)) == 35

    def test_grouped_strided_convolution(self):
        assert count_macs(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), torch.zeros(1, 4, 6, 6)) == 2 * 8 * 9 * 9

    @pytest.mark.parametrize("modulated", [False, True])
    def test_deformable_convolution_pays_for_what_it_samples(self, modulated):
        layer = DeformConv2d(4, 8, 3, stride=2, padding=1, groups=2)
        places = 3 * 3  # of 6 x 6 pixels, each second
        offset, mask = torch.zeros(5, 2 * 9, 3, 3), torch.ones(5, 9, 3, 3) if modulated else None
        found = count_macs(lambda x: layer(x, offset, mask), torch.zeros(5, 4, 6, 6))
        assert found == places * 9 * (8 * 2 + 4 * 4)  # 2 inputs of each output, and 4 channels sampled between 4 pixels

    def test_count_is_that_of_one_row(self):
        assert count_macs(nn.Linear(7, 5), torch.zeros(6, 7)) == 35

    def test_elementwise_work_is_free(self):
        free = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)).eval()
        assert count_macs(free, torch.zeros(1, 4, 6, 6)) == 0

    def test_attention_counts_scores_and_values(self):
        q = torch.zeros(1, 2, 9, 4)  # 2 heads, 9 tokens of 4
        assert count_macs(lambda x: F.scaled_dot_product_attention(x, x, x), q) == 2 * (2 * 9 * 9 * 4)

    def test_work_that_torch_does_not_count_is_told(self):
        with pytest.raises(ValueError, match=r"expected operators that torch can count, got aten\..*(rnn|lstm)"):
            count_macs(nn.LSTM(4, 4), torch.zeros(2, 1, 4))

    @pytest.mark.parametrize("enabled", [True, False])
    def test_setting_for_attention_is_put_back(self, enabled):
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(enabled)
        try:
            count_macs(nn.Linear(7, 5), torch.zeros(1, 7))
            assert torch.backends.mha.get_fastpath_enabled() == enabled
        finally:
            torch.backends.mha.set_fastpath_enabled(before)
