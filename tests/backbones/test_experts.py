"""Backbones with experts: a mixture of kernels is one convolution, training calls every expert equally often."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skipgym.backbones import make_backbone
from skipgym.backbones.embedded import embedded_recipe
from skipgym.backbones.experts import (
    ExpertBlock,
    ExpertResNet,
    FoldedExperts,
    Pointwise,
    dense_kernel,
    mixed_convolution,
)
from skipgym.backbones.routing import evenly
from skipgym.data import load

from .conftest import check_training_of_all


@pytest.fixture
def block(randomise):
    torch.manual_seed(0)
    return randomise(ExpertBlock(("1x1", "grouped", "3x3"), 4, 8, 2))


@given(weights=st.lists(st.tuples(*[st.floats(-2, 2, width=32)] * 3), min_size=5, max_size=5))
def test_mixture_of_answers_is_one_convolution_of_mixed_kernels(weights):
    generator = torch.Generator().manual_seed(0)
    experts = nn.ModuleList(
        kind(4, 8, side, 2, side // 2, groups=groups)
        for kind, side, groups in ((Pointwise, 1, 1), (nn.Conv2d, 3, 4), (nn.Conv2d, 3, 1))
    )
    x, a = torch.randn((5, 4, 6, 6), generator=generator), torch.tensor(weights)
    expected = sum(a[:, n].view(-1, 1, 1, 1) * one(x) for n, one in enumerate(experts))
    torch.testing.assert_close(mixed_convolution(experts, a, x), expected, rtol=1e-4, atol=1e-4)


def test_grouped_kernel_is_zero_where_a_group_does_not_look():
    kernel = dense_kernel(nn.Conv2d(4, 8, 3, groups=4))
    looks = [bool(kernel[out, channel].any()) for out in range(8) for channel in range(4)]
    assert looks == [out // 2 == channel for out in range(8) for channel in range(4)]


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolution_is_torchs(stride):
    one = Pointwise(3, 5, 1, stride)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(one(x), nn.functional.conv2d(x, one.weight, one.bias, stride))


@pytest.mark.parametrize("expert", [0, 1, 2])
def test_folded_block_answers_as_its_experts_do(block, expert):
    x = torch.randn(3, 4, 6, 6)
    first, second = block.first[expert], block.second[expert]
    with torch.no_grad():
        expected = torch.relu(second(torch.relu(first(x))) + block.shortcut(x))
        folded = FoldedExperts(block)
        torch.testing.assert_close(folded.run(expert, x), expected, rtol=1e-4, atol=1e-4)
        weights = nn.functional.one_hot(torch.full((3,), expert), 3).float()
        torch.testing.assert_close(folded.mixed(weights, x), expected, rtol=1e-4, atol=1e-4)


def test_full_network_takes_the_last_expert(block):
    x = torch.randn(3, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(block(x), FoldedExperts(block).run(2, x), rtol=1e-4, atol=1e-4)


def test_rows_draw_branches_equally_often():
    assert evenly(9, 3, torch.device("cpu")).bincount().tolist() == [3, 3, 3]
    assert sorted(evenly(5, 3, torch.device("cpu")).bincount().tolist()) == [1, 2, 2]


def test_training_calls_every_expert_and_is_repeatable():
    check_training_of_all("experts-resnet8-w4")


@pytest.mark.parametrize("kinds", [("3x3",), (), ("3x3", "1x1"), ("1x1", "5x5")])
def test_one_expert_or_experts_out_of_order_are_refused(kinds):
    with pytest.raises(ValueError, match=f"experts: expected two or more.*got {', '.join(kinds) or 'none'}"):
        ExpertResNet(8, kinds)


@pytest.mark.parametrize("width", [2, 6])
def test_channels_that_cannot_be_put_in_groups_are_refused(width):
    with pytest.raises(ValueError, match=f"divisible by 4.*got {width}.*experts-resnet8-w4"):
        make_backbone(f"experts-resnet8-w{width}")


def test_embedded_recipe_leaves_no_block_out():
    assert embedded_recipe("experts-resnet8", load("digits")).stochastic_depth == 0
