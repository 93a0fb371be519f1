import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.envs import Layout, make_task
from skipgym.envs.pooling import pool


def test_vector_is_features_then_position_then_price():
    layout = Layout((2,), positions=3, priced=True)
    joined = layout.join(torch.tensor([[5.0, 6.0], [7.0, 8.0]]), 1, torch.tensor([0.25, 0.5]))
    assert joined.tolist() == [[5, 6, 0, 1, 0, 0.25], [7, 8, 0, 1, 0, 0.5]]


def test_extras_of_images_are_constant_channels():
    layout = Layout((1, 2, 2), positions=2, priced=True)
    joined = layout.join(torch.full((1, 1, 2, 2), 9.0), 0, torch.tensor([0.25]))
    assert joined.shape == (1, *layout.space.shape) == (1, 4, 2, 2)
    assert joined[0].flatten(1).tolist() == [[9] * 4, [1] * 4, [0] * 4, [0.25] * 4]


@given(
    shape=st.sampled_from([(3,), (1,), (2, 4, 3), (1, 1, 1)]),
    positions=st.integers(0, 4),
    priced=st.booleans(),
    data=st.data(),
)
def test_splitting_undoes_joining(shape, positions, priced, data):
    position = data.draw(st.integers(0, max(0, positions - 1)))
    layout = Layout(shape, positions, priced)
    features, price = torch.randn(5, *shape), torch.rand(5)
    joined = layout.join(features, position, price)
    assert joined.shape == (5, *layout.space.shape)
    got, where, paid = layout.split(joined)
    assert torch.equal(got, features)
    assert where.tolist() == [position] * 5
    assert torch.equal(paid, price.unsqueeze(1) if priced else torch.zeros(5, 0))


def test_rows_at_different_positions_are_split_each():
    layout = Layout((1,), positions=3, priced=False)
    rows = [layout.join(torch.zeros(1, 1), position, torch.zeros(1)) for position in (2, 0, 1)]
    assert layout.split(torch.cat(rows))[1].tolist() == [2, 0, 1]


def test_position_is_shown_where_there_are_several_decisions(tiny_backbone):
    skip, drop = make_task("layer-skip", tiny_backbone), make_task("block-drop", tiny_backbone)
    assert Layout.of(skip, priced=False) == Layout((8,), 3, False)
    assert Layout.of(drop, priced=True) == Layout((1, 8, 8), 0, True)
    assert Layout.of(skip, priced=True).space.shape == (8 + 3 + 1,)
    assert Layout.of(drop, priced=True).space.shape == (2, 8, 8)
    assert Layout.of(drop, priced=False).space.dtype == np.float32


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("grid", [1, 2])
def test_pooled_features_are_the_average_of_each_cell_in_any_layout(layout, grid):
    x = torch.rand((3, 4, 6, 6), generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    cells = x.reshape(3, 4, grid, 6 // grid, grid, 6 // grid).mean((3, 5)).flatten(1)
    pooled = pool(x, 20, grid)
    assert torch.allclose(pooled[:, : cells.shape[1]], cells, atol=1e-6)
    assert pooled.shape == (3, 20)
    assert not pooled[:, cells.shape[1] :].any()
