"""Trees: the last leaf is the network, branches grow in cost, training deals rows to all leaves in turn."""

import pytest
import torch

from skipgym.backbones import make_backbone
from skipgym.backbones.cifar_resnet import CifarResNet
from skipgym.backbones.cost import count_macs
from skipgym.backbones.tree import Level, TreeResNet

from .conftest import check_training_of_all


def test_last_leaf_is_an_ordinary_resnet(randomise):
    torch.manual_seed(0)
    tree, plain = randomise(TreeResNet(14, width=4)), CifarResNet(14, width=4).eval()
    own = tree.state_dict()
    last = {"layer1": "cells.1.", "layer2": "cells.3.", "layer3": "cells.7."}
    state = {}
    for key in plain.state_dict():
        stage, _, rest = key.partition(".")
        state[key] = own[f"{stage}.{last[stage]}{rest}" if stage in last else key]
    plain.load_state_dict(state)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(tree(x), plain(x))


def test_every_node_has_branches_of_its_own_and_option_costs_are_those_of_their_inner_channels():
    """Second stage, from 6 channels to 12 on 4 x 4 places: inner channels 4, 8 and 12 at each of the three nodes."""
    level, x = Level(1, 3, 6, 12, 1, 2), torch.zeros(1, 6, 8, 8)
    assert (level.places, level.options, len(level.cells)) == (3, 3, 9)
    costs = [count_macs(cell, x) for cell in level.cells]
    assert costs == [9 * 16 * inner * (6 + 12) for inner in (4, 8, 12)] * 3


@pytest.mark.parametrize(("level", "rows"), [(0, [8, 8]), (1, [4] * 4), (2, [2] * 8)])
def test_training_deals_rows_to_all_leaves(level, rows):
    torch.manual_seed(0)
    stage, seen = Level(level, 2, 4, 4, 1, 1).train(), []
    for cell in stage.cells:
        cell.register_forward_hook(lambda _m, x, _y: seen.append(len(x[0])))
    stage(torch.randn(16, 4, 8, 8))
    assert seen == rows


def test_row_takes_one_way_down_the_tree_in_training():
    """Row 5 of 8 leaves: branch 1 of the trunk, then 0 of node 1, then 1 of node 2."""
    tree, ways = TreeResNet(8, width=4).train(), []
    for stage, channels in ((tree.layer1, 4), (tree.layer2, 4), (tree.layer3, 8)):
        assert isinstance(stage, Level)
        marked = torch.zeros(16, channels, 8, 8)
        marked[5] = 1
        for index, cell in enumerate(stage.cells):
            cell.register_forward_pre_hook(lambda _m, x, i=index: ways.append(i) if bool(x[0].any()) else None)
        stage(marked)
    assert ways == [1, 2, 5]


def test_training_reaches_every_branch_and_is_repeatable():
    check_training_of_all("tree-resnet8-w4")


def test_name_says_depth_branches_and_channels():
    backbone = make_backbone("tree-resnet14-b3-w6", input_shape=(1, 8, 8))
    assert [len(backbone.network.get_submodule(f"layer{i}.cells")) for i in (1, 2, 3)] == [3, 9, 27]
    assert [block.in_shape for block in backbone.blocks] == [(6, 8, 8), (6, 8, 8), (12, 4, 4)]
    plain = make_backbone("resnet14-w6", input_shape=(1, 8, 8))
    assert backbone.full_macs == plain.full_macs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tree-resnet8-b1", "two or more branches, got 1"),
        ("tree-resnet8-b3-w4", "divisible by its 3 branches, got 4.*tree-resnet8-b3-w12"),
        ("tree-resnet9", "expected 6n.2.*got 9"),
    ],
)
def test_tree_without_a_choice_or_whole_channels_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(name, input_shape=(1, 8, 8))


def test_levels_cannot_be_left_out():
    with pytest.raises(ValueError, match="nothing can replace"):
        _ = make_backbone("tree-resnet8-w4", input_shape=(1, 8, 8)).least_macs
