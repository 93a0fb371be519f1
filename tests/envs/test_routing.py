"""Routing: cost by formula, rows grouped by scale, the finest everywhere is the network."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.envs import Routing, make_task

from .conftest import IMAGES, check_saved, run


@pytest.fixture(scope="module")
def task(random_backbone):
    return Routing(random_backbone("supernet3-w4"))


@given(plan=st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=6))
def test_ways_cost_what_the_formula_says(task, plan):
    """A cell has two convolutions from 4 to 4·factor channels and back, on 64 / factor² places."""
    cell = {scale: 2 * 9 * 4 * 4 * 2 ** (2 - scale) * 64 // 4 ** (2 - scale) for scale in range(3)}
    ends = 9 * 64 * 4 + 4 * 4
    assert run(task, torch.tensor(plan)).macs.tolist() == [ends + sum(cell[scale] for scale in row) for row in plan]


def test_a_cell_sees_only_the_rows_that_chose_its_scale(task):
    seen = []
    hook = task.coarser[1][0].register_forward_hook(lambda _m, x, _y: seen.append(len(x[0])))
    run(task, torch.tensor([[0, 2, 0], [1, 0, 0], [2, 2, 1], [0, 2, 2], [0, 0, 0], [1, 1, 1]]))
    hook.remove()
    assert seen == [2]


def test_way_is_that_of_the_cells_one_after_the_other(task):
    """Up from the coarsest, then down: 0, 2, 1."""
    network, x = task.backbone.network, task.prepare(IMAGES)
    with torch.no_grad():
        y = torch.relu(network.bn(network.conv(x)))
        for layer, scale in zip(network.layers, (0, 2, 1), strict=True):
            y = layer.cells[scale](y)
        expected = network.fc(y.mean((2, 3)))
    found = run(task, torch.tensor([[0, 2, 1]] * 6)).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_finest_scale_everywhere_is_the_untouched_network(task, random_backbone):
    with torch.no_grad():
        expected = random_backbone("supernet3-w4").network(task.prepare(IMAGES))
    found = run(task, torch.full((6, 3), 2))
    torch.testing.assert_close(found.logits, expected, rtol=1e-3, atol=1e-4)
    assert found.macs.tolist() == [task.full_macs] * 6


def test_saved_controller_takes_the_same_ways(task, tmp_path):
    check_saved(task, (0, 1, 2), tmp_path / "c")


def test_backbone_with_one_way_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match="expected a supernet, got resnet8-w4.*one way only"):
        make_task("routing", tiny_backbone)


def test_bad_grid_is_refused(random_backbone):
    with pytest.raises(ValueError, match="grid: expected 1 … 8, got 9"):
        make_task("routing", random_backbone("supernet3-w4"), grid=9)
