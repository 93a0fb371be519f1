"""Routing: cost by formula, rows grouped by scale, the finest everywhere is the network."""

import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from skipgym.agents.evaluate import chosen_lines
from skipgym.agents.relaxed import Metered
from skipgym.envs import Hard, Routing, SkipEnv, make_task

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
    hook = task.others[1][0].register_forward_hook(lambda _m, x, _y: seen.append(len(x[0])))
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
    with pytest.raises(ValueError, match="expected a supernet or a tree, got resnet8-w4.*one way only"):
        make_task("routing", tiny_backbone)


def test_bad_grid_is_refused(random_backbone):
    with pytest.raises(ValueError, match="grid: expected 1 … 8, got 9"):
        make_task("routing", random_backbone("supernet3-w4"), grid=9)


@pytest.fixture(scope="module")
def tree(random_backbone):
    return Routing(random_backbone("tree-resnet8-w4"))


class TestTree:
    @given(plan=st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=1, max_size=6))
    def test_ways_cost_what_the_formula_says(self, tree, plan):
        """Branches have 2, 4 or 8 inner channels of 4, 8 or 16, or all of them, at whichever node."""
        stages = ((4, 4, 64), (4, 8, 16), (8, 16, 4))
        full = [9 * places * channels * (before + channels) for before, channels, places in stages]
        ends = 9 * 64 * 4 + 16 * 4
        expected = [ends + sum((1 + way) * macs // 2 for way, macs in zip(row, full, strict=True)) for row in plan]
        assert run(tree, torch.tensor(plan)).macs.tolist() == expected

    def test_leaf_is_that_of_the_branches_one_after_the_other(self, tree):
        """Branch 1, then 0 of node 1, then 1 of node 2: the fifth leaf of eight, counted from 0."""
        network, x = tree.backbone.network, tree.prepare(IMAGES)
        with torch.no_grad():
            y = torch.relu(network.bn1(network.conv1(x)))
            y = network.layer3.cells[5](network.layer2.cells[2](network.layer1.cells[1](y)))
            expected = network.linear(y.mean((2, 3)))
        torch.testing.assert_close(run(tree, torch.tensor([[1, 0, 1]] * 6)).logits, expected, rtol=1e-3, atol=1e-4)

    def test_a_branch_sees_only_the_rows_that_came_to_its_node_and_took_it(self, tree):
        seen = []
        hook = tree.others[1][2].register_forward_hook(lambda _m, x, _y: seen.append(len(x[0])))
        run(tree, torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 1], [0, 1, 1]]))
        hook.remove()
        assert seen == [2]

    def test_policy_is_told_the_node(self, tree):
        state = tree.begin(tree.prepare(IMAGES[:2]))
        assert tree.observe(state)[:, -4:].tolist() == [[1, 0, 0, 0]] * 2
        state = tree.step(state, Hard(torch.tensor([0, 1])))
        assert tree.observe(state)[:, -4:].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
        state = tree.step(state, Hard(torch.tensor([1, 0])))
        assert tree.observe(state)[:, -4:].argmax(1).tolist() == [1, 2]

    def test_relaxed_run_is_charged_for_the_branches_of_all_nodes(self, tree):
        """Two, four and eight branches run; a mixture is charged by its weights."""
        spent, mixed = [], []
        state = tree.begin(tree.prepare(IMAGES[:2]))
        with torch.no_grad():
            for _ in range(3):
                state = tree.step(state, Metered(torch.full((2, 2), 0.5), spent, mixed))
        wide = [block.macs for block in tree.backbone.blocks]
        assert spent == [nodes * 1.5 * macs for nodes, macs in zip((1, 2, 4), wide, strict=True)]
        assert [float(one[0]) for one in mixed] == [0.75 * macs for macs in wide]

    def test_saved_controller_takes_the_same_leaf(self, tree, tmp_path):
        check_saved(tree, (0, 1, 0), tmp_path / "c")

    @pytest.mark.filterwarnings("ignore")  # advice about bounds; observations have none
    def test_environment_passes_both_checks(self, tree, make_engine):
        env = SkipEnv(engine=make_engine(tree))
        check_env(env)
        check_env_sb3(env)

    def test_calls_are_counted_at_each_node(self, tree):
        """Nobody comes to node 3, so that its branches are not called dead; branch 1 of node 1 is."""
        called = tree.called(torch.tensor([[0, 0, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1]]))
        assert called == {
            "branch of layer1": [2, 2],
            "branch of layer2 at node 0": [1, 1],
            "branch of layer2 at node 1": [2, 0],
            "branch of layer3 at node 0": [1, 0],
            "branch of layer3 at node 1": [0, 1],
            "branch of layer3 at node 2": [1, 1],
            "branch of layer3 at node 3": [0, 0],
        }
        assert chosen_lines({"method": "ppo", "called": called})[-1] == (
            "ppo, never chosen: branch of layer2 at node 1 option 1; branch of layer3 at node 0 option 1; "
            "branch of layer3 at node 1 option 0"
        )
