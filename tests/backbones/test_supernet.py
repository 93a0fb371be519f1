"""Supernets: the finest scale is the network, coarser cells see averages, training calls every cell equally often."""

import pytest
import torch
from torch.nn import functional as F

from skipgym.backbones import make_backbone
from skipgym.backbones.supernet import Cell, Layer

from .conftest import check_training_of_all


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_cell_sees_averages_and_adds_the_same_to_each_of_its_pixels(factor, randomise):
    cell = randomise(Cell(3, factor))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        y = F.avg_pool2d(x, factor)
        y = cell.bn2(cell.conv2(F.relu(cell.bn1(cell.conv1(y)))))
        expected = F.relu(x + y.repeat_interleave(factor, 2).repeat_interleave(factor, 3))
        torch.testing.assert_close(cell(x), expected)


def test_layer_runs_its_finest_cell_in_evaluation(randomise):
    layer = randomise(Layer(3, 3))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(layer(x), layer.cells[-1](x))
    assert [cell.factor for cell in layer.cells] == [4, 2, 1]


def test_rows_draw_scales_equally_often_in_training():
    torch.manual_seed(0)
    layer, seen = Layer(3, 3).train(), []
    for cell in layer.cells:
        cell.register_forward_hook(lambda _m, x, _y: seen.append(len(x[0])))
    layer(torch.randn(9, 3, 8, 8))
    assert seen == [3, 3, 3]


def test_training_reaches_every_cell_and_is_repeatable():
    check_training_of_all("supernet2-s2-w4")


def test_name_says_layers_scales_and_channels():
    backbone = make_backbone("supernet5-s2-w6", input_shape=(1, 8, 8))
    assert [block.in_shape for block in backbone.blocks] == [(6, 8, 8)] * 5
    cells = [list(backbone.network.get_submodule(f"layers.{i}.cells").children()) for i in range(5)]
    assert [len(of) for of in cells] == [2] * 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("supernet4-s1", "at least one layer, two scales and one channel, got supernet4-s1-w16"),
        ("supernet0", "got supernet0-s3-w16"),
        ("supernet4-s5", "sides 16 divides, got 8 x 8. Use fewer scales, as in supernet4-s4"),
    ],
)
def test_supernet_without_a_choice_or_too_coarse_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(name, input_shape=(1, 8, 8))
