"""Supervised learning from the outcome table: its parts by hand."""

import pytest
import torch

from skipgym import Controller
from skipgym.agents.path_policy import PathNet, PathPolicy
from skipgym.agents.path_table import PathTableOptions, frontier
from skipgym.agents.training import TrainConfig, price_for, train
from skipgym.envs import Layout, make_task

PATHS = [(0, 0, 0), (1, 0, 1), (1, 1, 1)]


def policy(task, width=4):
    torch.manual_seed(0)
    net = PathNet(Layout.of(task, priced=False), 2, 3, width=width).eval()
    return PathPolicy(net, PATHS, [0.1, 0.6, 1.0], len(task.decisions))


def test_frontier_keeps_each_class_its_best_path_at_each_price():
    compute = torch.tensor([0.1, 0.5, 1.0])
    labels = torch.tensor([0, 0, 1])
    score = torch.tensor([[0.9, 0.92, 1.0], [0.9, 0.92, 1.0], [0.1, 0.2, 1.0]])
    # class 0: 1 - price against 0.9 - 0.1 · price, equal at a price of 1/9; class 1 pays for the full path at any price
    assert frontier(score, compute, labels) == {0, 2}
    assert frontier(score, compute, labels, top=2) == {0, 1, 2}


def test_policy_takes_the_best_value_for_the_price(small_backbone):
    chooser = policy(make_task("block-drop", small_backbone))
    values = torch.logit(torch.tensor([[0.5, 0.8, 0.9]])).expand(3, -1)
    # worth at price p: 0.5 - 0.1 p, 0.8 - 0.6 p, 0.9 - p; they cross at p = 0.25 and at p = 0.6
    assert chooser.choose(values, torch.tensor([0.2, 0.3, 0.7])).tolist() == [2, 1, 0]


@pytest.mark.parametrize("name", ["layer-skip", "block-drop"])
def test_chosen_path_is_followed_and_paid_for_once(name, small_backbone, dark_or_bright, tmp_path):
    task = make_task(name, small_backbone)
    controller = Controller(task, policy(task, width=8), price=0.1)
    decision = controller(dark_or_bright.test.images)
    assert {tuple(row) for row in decision.actions.tolist()} <= set(PATHS)
    assert decision.policy_macs.unique().tolist() == [controller.policy.macs]
    loaded = Controller.load(controller.save(tmp_path / "c"))
    again = loaded(dark_or_bright.test.images, price=0.1)
    assert torch.equal(again.actions, decision.actions)


def test_first_estimate_is_the_table_of_the_guessed_class():
    net = PathNet(Layout((1, 8, 8), 0, False), 2, 3, width=4).eval()
    net.table[:] = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.8, 0.2]])
    belief = torch.log(torch.tensor([[0.25, 0.75]]))
    expected = [0.25 * 0.1 + 0.75 * 0.9, 0.5, 0.25 * 0.8 + 0.75 * 0.2]
    torch.testing.assert_close(torch.sigmoid(net.values(torch.zeros(1, 16), belief)), torch.tensor([expected]))


def test_target_is_reached_by_choosing_the_price(tell, dark_or_bright):
    config = TrainConfig(agent="path-table", target_compute=0.18, price=0.0, images=3_000, num_envs=64)
    trained = train(config, tell, dark_or_bright, quiet=True)
    assert trained.val.compute <= 0.18  # the policy and one execution; two would cost 0.27
    assert price_for(trained.controller, dark_or_bright.val, 1.0) == 0.0


@pytest.mark.parametrize("wrong", [{"width": 1}, {"record_share": 1.0}, {"learning_rate": 0.0}, {"head_epochs": 0}])
def test_options_out_of_range_are_told(wrong):
    with pytest.raises(ValueError, match="path-table: expected"):
        PathTableOptions(**wrong)
