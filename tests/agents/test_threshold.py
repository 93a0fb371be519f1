"""Threshold policies: the quantile scheme by hand, budgets kept, the curve, patience, and who is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.agents.baselines import random_policy, random_rate, static_frontier
from skipgym.agents.controller import Controller
from skipgym.agents.evaluate import measure
from skipgym.agents.oracle import paths_to_follow
from skipgym.agents.threshold import (
    NEVER,
    ThresholdPolicy,
    calibrate,
    curve,
    look,
    quantiles,
    threshold_at_price,
    threshold_policy,
)
from skipgym.data import Part
from skipgym.envs import make_task

SCORES = torch.tensor([[0.9, 0.1], [0.8, 0.9], [0.7, 0.8], [0.6, 0.7], [0.5, 0.6], [0.4, 0.5], [0.3, 0.4]])


@pytest.fixture(scope="module", params=["early-exit", "cascade"])
def task(request, tiny_backbone):
    return make_task(request.param, tiny_backbone)


@pytest.fixture(scope="module")
def part(make_noise):
    return make_noise(policy=200).policy


class TestQuantiles:
    def test_by_hand(self):
        """Shares 1 : 2 : 4 of 7 images: the surest leaves first; of the rest the two that are surest then."""
        assert quantiles(SCORES, 2.0).tolist() == pytest.approx([0.9, 0.8])

    def test_equal_shares(self):
        assert quantiles(SCORES[:6], 1.0).tolist() == pytest.approx([0.8, 0.7])

    def test_nobody_is_to_leave_where_the_share_is_below_one_image(self):
        assert quantiles(SCORES, 1e3).tolist() == [NEVER, NEVER]

    @given(q=st.floats(1e-4, 1e4))
    def test_thresholds_let_the_shares_leave(self, q):
        scores = torch.rand((500, 3), generator=torch.Generator().manual_seed(0))
        left = [(scores[:, i] >= t) for i, t in enumerate(quantiles(scores, q))]
        first = left[0].sum(), (left[1] & ~left[0]).sum(), (left[2] & ~left[0] & ~left[1]).sum()
        powers = [q**k for k in range(1, 5)]
        for got, power in zip(first, powers, strict=False):
            assert int(got) in (int(500 * power / sum(powers)), int(500 * power / sum(powers) + 1e-3))


@pytest.mark.parametrize("score", ["max-softmax", "entropy", "patience"])
class TestCalibrated:
    def test_budget_is_kept_and_used(self, task, part, score):
        seen = look(task, part, score)
        costs = torch.cat([seen.compute[:1], seen.compute])
        for budget in torch.linspace(float(seen.compute[0]), float(seen.compute[-1]), 7, dtype=torch.double).tolist():
            spent = seen.spent(calibrate(seen, score, budget))
            assert spent <= budget + 1e-9
            if score != "patience":  # whose budgets come in steps
                assert spent >= budget - float(costs.diff().max()) * 4 / len(part)

    def test_policy_does_what_the_table_says(self, task, part, score):
        seen = look(task, part, score)
        policy = threshold_policy(task, part, 0.8 * float(seen.compute[-1]), score=score)
        measured = measure(Controller(task, policy), part)
        assert measured.compute == pytest.approx(seen.spent(policy.thresholds))
        assert measured.accuracy == pytest.approx(seen.accuracy(policy.thresholds))
        assert measured.policy_macs == 0
        left = seen.left(policy.thresholds)
        assert ((measured.actions > 0).sum(1) == left).all()

    def test_curve_rises(self, task, part, score):
        seen = look(task, part, score)
        spent = [seen.spent(t) for t in curve(seen, score, 9)]
        assert spent == sorted(spent)
        assert (spent[0], spent[-1]) == pytest.approx((float(seen.compute[0]), float(seen.compute[-1])))

    def test_saved_policy_decides_the_same(self, task, part, score, tmp_path):
        controller = Controller(task, threshold_policy(task, part, 0.8, score=score))
        loaded = Controller.load(controller.save(tmp_path / "c"))
        assert torch.equal(measure(controller, part).actions, measure(loaded, part).actions)

    def test_price_says_where_on_the_curve(self, task, part, score):
        free, dear = (threshold_at_price(task, part, price, score=score) for price in (0.0, 1e3))
        seen = look(task, part, score)
        assert seen.spent(dear.thresholds) == pytest.approx(float(seen.compute[0]))
        assert seen.accuracy(free.thresholds) >= max(seen.accuracy(t) for t in curve(seen, score)) - 1e-9


def test_patience_counts_exits_in_a_row_that_agree(task):
    policy, memory, actions = ThresholdPolicy("patience", 1), None, []
    names = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 2, 2]])
    for position, named in enumerate(names.unbind(1)):
        state = type("S", (), {"position": position})()
        chosen, memory = policy.act(torch.nn.functional.one_hot(named, 3).float(), state, torch.zeros(3), memory)
        actions.append(chosen[:, 0].tolist())
    assert actions == [[1, 1, 1], [0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("score", "thresholds"),
    [("max-softmax", [1.2]), ("max-softmax", [-0.1]), ("entropy", [0.5]), ("patience", [-1]), ("entropy", [])],
)
def test_thresholds_out_of_range_are_refused(score, thresholds):
    with pytest.raises(ValueError, match=f"thresholds: expected one or more from .* for {score}"):
        ThresholdPolicy(score, thresholds)


def test_too_few_thresholds_are_refused(task, part):
    policy = ThresholdPolicy("max-softmax", [1.0, 1.0])
    with pytest.raises(ValueError, match="expected one for each exit, got 2 at exit 3"):
        policy.act(torch.zeros(1, 4), type("S", (), {"position": 2})(), torch.zeros(1), None)


def test_unknown_score_is_told_with_close_matches():
    with pytest.raises(ValueError, match="unknown score: .*Did you mean max-softmax"):
        ThresholdPolicy("softmax", 0.5)


def test_task_without_exits_is_refused(tiny_backbone, part):
    with pytest.raises(ValueError, match="expected a task whose backbone has exits, got layer-skip"):
        threshold_policy(make_task("layer-skip", tiny_backbone), part, 0.5)


def test_budget_out_of_reach_is_refused(task, part):
    with pytest.raises(ValueError, match="compute: expected between"):
        threshold_policy(task, part, task.least_macs / task.full_macs / 2)


class TestOtherMethodsOnExits:
    def test_random_spends_what_it_is_asked_to(self, task, part):
        many = Part(part.images.repeat(20, 1, 1, 1), part.labels.repeat(20))
        low, high = (macs / task.full_macs for macs in (task.least_macs, task.most_macs))
        for share in (0.2, 0.5, 0.8):
            compute = low + share * (high - low)
            assert measure(Controller(task, random_policy(task, compute)), many).compute == pytest.approx(
                compute, rel=0.03
            )
        assert (random_rate(task, low), random_rate(task, high)) == pytest.approx((0.0, 1.0), abs=1e-5)

    def test_static_always_leaves_at_one_exit(self, task, part):
        assert {point.path for point in static_frontier(task, part)} <= {(0, 0), (1, 0), (1, 1)}

    def test_oracle_looks_at_every_way(self, task):
        assert paths_to_follow(task, 3) == ([(0, 0), (1, 0), (1, 1)], True)
