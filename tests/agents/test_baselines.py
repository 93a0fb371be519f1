"""The policies that a learned one must beat are as good as they can be, at the compute that they are given."""

from itertools import pairwise, product

import pytest
import torch

from skipgym import Controller
from skipgym.agents import baselines
from skipgym.agents.baselines import (
    best_static,
    full_accuracy,
    random_policy,
    random_rate,
    rule_policy,
    static_frontier,
    way_compute,
)
from skipgym.agents.evaluate import measure
from skipgym.agents.policy import RandomPolicy, StaticPolicy, random_weights
from skipgym.data import Part
from skipgym.envs import State, Task, make_task


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


def test_random_options_are_heads_among_coins():
    assert random_weights(0.3, 2) == pytest.approx([0.7, 0.3])
    assert random_weights(0.5, 3) == pytest.approx([0.25, 0.5, 0.25])
    assert random_weights(0.2, 4) == pytest.approx([0.512, 0.384, 0.096, 0.008])
    assert (random_weights(0, 3), random_weights(1, 3)) == ([1, 0, 0], [0, 0, 1])


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 1.0])
def test_random_policy_takes_every_option_as_often_as_it_should(rate):
    policy = RandomPolicy(rate, (3, 2), seed=0)
    actions, _ = policy.act(torch.zeros(4000, 1), None, torch.zeros(4000), None)
    for part, options in enumerate((3, 2)):
        shares = torch.bincount(actions[:, part], minlength=options) / 4000
        torch.testing.assert_close(shares, torch.tensor(random_weights(rate, options)), atol=0.03, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_random_policy_of_several_options_spends_what_it_is_given(share, small_backbone, dark_or_bright):
    task = Depth(small_backbone)
    least = task.least_macs / task.full_macs
    compute = least + share * (1 - least)
    part = Part(dark_or_bright.policy.images.repeat(4, 1, 1, 1), dark_or_bright.policy.labels.repeat(4))
    measured = measure(Controller(task, random_policy(task, compute)), part)
    assert measured.compute == pytest.approx(compute, abs=0.03)  # 1,024 images


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


# --- the frontier of fixed subsets ---


class Ladder(Task):
    """Images have the levels 0 … 9, and a subset is right on so many of them, from below, as a table says."""

    name = "ladder"

    def __init__(self, backbone, levels, costs):
        super().__init__(backbone)
        self.horizon, self.decisions, self.observation_shape, self.least_macs = 3, (2,), (1,), 0
        self.levels = torch.zeros(2, 2, 2)
        for subset, count in levels.items():
            self.levels[tuple(map(int, subset))] = count
        self.costs = costs

    def begin(self, inputs):
        level = (inputs.mean((1, 2, 3)) * 0.25 + 0.5) * 10  # of a pixel value, scaled to 0…1
        return State.start(level.unsqueeze(1), subset=torch.zeros(len(inputs), dtype=torch.long))

    def observe(self, state):
        return state.features

    def step(self, state, choice):
        position = state.position
        subset = 2 * state.memory["subset"] + choice.weight(1).long()
        state = state.advance(
            state.features, macs=choice.cost([0, self.costs[position] * self.full_macs]), subset=subset
        )
        if state.position < 3:
            return state
        right = state.features[:, 0] < self.levels.flatten()[subset]
        return state.finish(torch.stack([~right, right], 1).float())


ADDITIVE = {"100": 4, "010": 3, "001": 2, "110": 7, "101": 6, "011": 5, "111": 9}


def of_levels(count):
    """Return images of the levels 0 … 9 in turn, all of class 1."""
    pixels = (torch.arange(count) % 10 * 25.5 + 5).byte()
    return Part(pixels.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous(), torch.ones(count, dtype=torch.long))


def frontier(backbone, levels, costs, count=300):
    points = static_frontier(Ladder(backbone, levels, costs), of_levels(count))
    return [("".join(map(str, p.path)), pytest.approx(p.compute), pytest.approx(p.accuracy)) for p in points]


def test_static_frontier_is_the_convex_hull_of_all_subsets(small_backbone):
    # 010 and 001 lie below 100, 101 and 011 below the line from 110 to 111; slopes 4, 1.5, 0.67. 300 images are
    # two batches.
    assert frontier(small_backbone, ADDITIVE, (0.1, 0.2, 0.3)) == [
        ("000", 0.0, 0.0),
        ("100", 0.1, 0.4),
        ("110", 0.3, 0.7),
        ("111", 0.6, 0.9),
    ]


def test_point_below_the_line_between_its_neighbours_is_no_frontier(small_backbone):
    # 100 gains a tenth for 0.1, 110 seven for 0.3: a mixture of nothing and 110 is better than 100.
    levels = ADDITIVE | {"100": 1, "101": 1}
    assert [path for path, *_ in frontier(small_backbone, levels, (0.1, 0.2, 0.3))] == ["000", "110", "111"]


def test_frontier_ends_where_executing_more_does_not_help(small_backbone):
    levels = ADDITIVE | {"101": 2, "011": 1, "111": 7}
    assert [path for path, *_ in frontier(small_backbone, levels, (0.1, 0.2, 0.3))] == ["000", "100", "110"]


def test_frontier_starts_at_the_best_of_the_cheapest(small_backbone):
    # The first piece costs nothing and helps: leaving it out is dominated.
    assert frontier(small_backbone, ADDITIVE, (0.0, 0.2, 0.3))[0] == ("100", 0.0, 0.4)


HIDDEN = {"000": 0, "001": 6, "010": 2, "100": 3, "011": 5, "101": 5, "110": 8, "111": 9}
"""Removing the least missed piece leads over 110 to 100, and never to 001, which is twice as good."""


def test_few_pieces_are_searched_exactly_and_many_greedily(small_backbone, monkeypatch):
    exact = [("000", 0.0, 0.0), ("001", 0.1, 0.6), ("110", 0.2, 0.8), ("111", 0.3, 0.9)]
    assert frontier(small_backbone, HIDDEN, (0.1, 0.1, 0.1)) == exact
    monkeypatch.setattr(baselines, "EXHAUSTIVE", 2)
    greedy = [("000", 0.0, 0.0), ("110", 0.2, 0.8), ("111", 0.3, 0.9)]  # 100, at 0.3, lies below the line to 110
    assert frontier(small_backbone, HIDDEN, (0.1, 0.1, 0.1)) == greedy


def test_frontier_is_concave_and_is_what_a_controller_measures(task, dark_or_bright):
    points = static_frontier(task, dark_or_bright.policy)
    slopes = [(b.accuracy - a.accuracy) / (b.compute - a.compute) for a, b in pairwise(points)]
    assert slopes == sorted(slopes, reverse=True)
    assert all(slope > 0 for slope in slopes)
    assert points[0].compute == pytest.approx(task.least_macs / task.full_macs)
    for point in points:
        measured = measure(Controller(task, StaticPolicy(point.path, 1)), dark_or_bright.policy)
        assert (measured.accuracy, measured.compute) == pytest.approx((point.accuracy, point.compute))


def test_frontier_looks_at_no_more_images_than_it_may(small_backbone):
    task, part = Ladder(small_backbone, ADDITIVE, (0.1, 0.2, 0.3)), of_levels(40)
    few = static_frontier(task, part, images=7)
    expected = static_frontier(task, part.subset(7))
    assert few == expected != static_frontier(task, part)


class Depth(Task):
    """One decision of three options: run no block, the first, or all."""

    name = "depth"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.horizon, self.decisions, self.observation_shape = 1, (3,), (4,)
        self.least_macs = backbone.least_macs

    def begin(self, inputs):
        return State.start(self.backbone.stem(inputs), macs=self.backbone.stem_macs)

    def observe(self, state):
        return state.features.mean((2, 3))

    def step(self, state, choice):
        x, macs, blocks = state.features, 0, self.backbone.blocks
        for index, block in enumerate(blocks):
            last = block.run if index == 0 else block.bypass
            x = choice.among([block.bypass, last, block.run], x)
            macs = macs + choice.cost([block.bypass_macs, block.macs if index == 0 else block.bypass_macs, block.macs])
        return state.advance(x, macs=macs).finish(self.backbone.head(x), macs=self.backbone.head_macs)


def test_frontier_of_more_options_is_that_of_all_paths(small_backbone, dark_or_bright):
    task, part = Depth(small_backbone), dark_or_bright.policy
    measured = [measure(Controller(task, StaticPolicy([depth], 1)), part) for depth in range(3)]
    points = static_frontier(task, part)
    assert {point.path for point in points} <= {(0,), (1,), (2,)}
    for point in points:
        of = measured[point.path[0]]
        assert (of.accuracy, of.compute) == pytest.approx((point.accuracy, point.compute))
    best = measure(Controller(task, best_static(task, part, 0.8)), part)
    assert best.accuracy == max(of.accuracy for of in measured if of.compute <= 0.8)


def test_many_paths_of_more_options_are_refused(task, dark_or_bright, monkeypatch):
    task.decisions = (3,)
    monkeypatch.setattr(baselines, "EXHAUSTIVE", 4)
    with pytest.raises(ValueError, match="expected decisions of two options, or at most 16 paths, got 27 paths"):
        static_frontier(task, dark_or_bright.policy)


class TestRules:
    @pytest.fixture
    def frames(self, random_backbone):
        return make_task("frame-select", random_backbone(reader="frames"))

    def test_dearest_way_within_the_budget_is_taken(self, frames):
        one, two, three = (way_compute(frames, way) for way in frames.rules["uniform"])
        assert one == pytest.approx((frames.least_macs + frames.look_macs) / frames.full_macs)
        for compute, way in ((one, 0), ((two + three) / 2, 1), (1.0, 2)):
            policy = rule_policy(frames, "fixed-uniform", compute)
            assert policy.actions.flatten().tolist() == list(frames.rules["uniform"][way])

    def test_too_little_and_unknown_rules_are_told(self, frames, task):
        with pytest.raises(ValueError, match="compute: expected at least 0.*cheapest way of fixed-middle, got 0.01"):
            rule_policy(frames, "fixed-middle", 0.01)
        with pytest.raises(ValueError, match="unknown rule of layer-skip"):
            rule_policy(task, "fixed-uniform", 0.5)

    def test_centre_then_corners_are_the_fixed_way_of_crops(self, random_backbone):
        crops = make_task("patch-crop", random_backbone())
        assert crops.rules["centre"][-1] == crops.onward
