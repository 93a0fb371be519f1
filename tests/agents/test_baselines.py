"""The policies that a learned one must beat are as good as they can be, at the compute that they are given."""

from itertools import product

import pytest
import torch

from skipgym import Controller
from skipgym.agents import baselines
from skipgym.agents.baselines import best_static, full_accuracy, random_policy, random_rate
from skipgym.agents.evaluate import measure
from skipgym.agents.policy import RandomPolicy, StaticPolicy
from skipgym.envs import make_task


@pytest.fixture
def task(small_backbone):
    return make_task("layer-skip", small_backbone)


def test_full_accuracy_is_that_of_the_untouched_network(task, small_backbone, dark_or_bright):
    with torch.no_grad():
        answers = small_backbone.eval().network(small_backbone.prepare(dark_or_bright.test.images)).argmax(1)
    expected = float((answers == dark_or_bright.test.labels).float().mean())
    assert full_accuracy(task, dark_or_bright.test) == pytest.approx(expected)


@pytest.mark.parametrize("compute", [0.4, 0.7])
def test_random_policy_spends_what_it_is_given(compute, task, dark_or_bright):
    measured = measure(Controller(task, random_policy(task, compute)), dark_or_bright.policy)
    assert measured.compute == pytest.approx(compute, abs=0.03)  # 256 images of 3 coins


def test_random_rate_inverts_the_cost(task):
    least = task.least_macs / task.full_macs
    assert random_rate(task, least) == 0
    assert random_rate(task, 1.0) == 1
    assert random_rate(task, (1 + least) / 2) == pytest.approx(0.5)


def test_random_policy_uses_every_option(small_backbone):
    policy = RandomPolicy(0.5, (3,), seed=0)
    actions, _ = policy.act(torch.zeros(900, 1), None, torch.zeros(900), None)
    shares = torch.bincount(actions[:, 0]) / 900
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.25]), atol=0.05, rtol=0)


@pytest.mark.parametrize("task_name", ["layer-skip", "block-drop"])
def test_best_static_subset_is_the_best_of_all_that_fit(task_name, small_backbone, dark_or_bright):
    task, part = make_task(task_name, small_backbone), dark_or_bright.policy
    found = measure(Controller(task, best_static(task, part, 0.7)), part)
    subsets = [StaticPolicy(keep, len(task.decisions)) for keep in product((0, 1), repeat=3)]
    all_measured = [measure(Controller(task, policy), part) for policy in subsets]
    assert found.accuracy == max(m.accuracy for m in all_measured if m.compute <= 0.7)
    assert found.compute <= 0.7


def test_greedy_search_stays_within_the_budget_and_below_the_exact_one(task, dark_or_bright, monkeypatch):
    exact = measure(Controller(task, best_static(task, dark_or_bright.policy, 0.7)), dark_or_bright.policy)
    monkeypatch.setattr(baselines, "EXHAUSTIVE", 0)
    greedy = measure(Controller(task, best_static(task, dark_or_bright.policy, 0.7)), dark_or_bright.policy)
    assert greedy.compute <= 0.7
    assert exact.accuracy - 0.1 <= greedy.accuracy <= exact.accuracy


@pytest.mark.parametrize("compute", [0.0, 1.1])
def test_unreachable_budget_is_told(compute, task, dark_or_bright):
    with pytest.raises(ValueError, match="everything left out"):
        best_static(task, dark_or_bright.policy, compute)
