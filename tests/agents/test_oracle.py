"""Bounds against brute force, and what they claim."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.agents.baselines import full_accuracy
from skipgym.agents.oracle import bounds, cheapest, paths_to_follow, upgraded
from skipgym.envs import Hard, make_task
from skipgym.envs.outcomes import outcomes
from skipgym.envs.rollout import rollout

PATHS = list(product((0, 1), repeat=3))


@pytest.fixture(params=["layer-skip", "block-drop"])
def task(request, tiny_backbone):
    return make_task(request.param, tiny_backbone)  # answers otherwise on each of its 8 paths


@pytest.fixture
def part(tiny_images):
    return tiny_images.policy


def brute_force(hit, macs, budget):
    """Return the most hits that any choice of paths has whose costs sum up to the budget at most."""
    choices = product(range(len(macs)), repeat=len(hit))
    return max(
        sum(bool(hit[i, p]) for i, p in enumerate(choice))
        for choice in choices
        if sum(float(macs[p]) for p in choice) <= budget
    )


@given(st.data())
def test_cheapest_upgrades_first_is_the_best_of_all_choices(data):
    paths = data.draw(st.integers(1, 4))
    macs = torch.tensor(data.draw(st.lists(st.integers(1, 9), min_size=paths, max_size=paths)), dtype=torch.float64)
    rows = st.lists(st.booleans(), min_size=paths, max_size=paths)
    hit = torch.tensor(data.draw(st.lists(rows, min_size=1, max_size=4)))
    budget = len(hit) * float(macs.min()) + data.draw(st.integers(0, 20))
    best, least = cheapest(hit, macs), int(macs.argmin())
    extra = torch.where(best >= 0, macs[best] - macs[least], float("inf"))
    chosen = upgraded(extra, budget - len(hit) * float(macs[least]))
    path = torch.where(chosen, best, least)
    assert float(macs[path].sum()) <= budget
    assert int((chosen | hit[:, least]).sum()) == brute_force(hit, macs, budget)


def test_cheapest_path_that_hits_by_hand():
    hit = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    assert cheapest(hit, torch.tensor([3.0, 1.0, 2.0])).tolist() == [1, 2, -1]


@pytest.mark.parametrize("target", [0.15, 0.2, 0.3])
def test_bounds_of_a_network_are_the_best_of_all_choices(target, task, part):
    part = part.subset(4)
    label, agree = bounds(task, part, [target])
    table = outcomes(task, part.images, part.labels, PATHS)
    with torch.no_grad():
        full = task.backbone(task.prepare(part.images)).argmax(1)
    budget = 4 * target * task.full_macs
    assert int(label.correct.sum()) == brute_force(table.correct, table.macs, budget)
    run = rollout(task, task.prepare(part.images), replay(task, agree.actions))
    agreements = (run.logits.argmax(1) == full).sum()
    assert int(agreements) == brute_force(table.answers == full.unsqueeze(1), table.macs, budget)


def test_following_the_actions_gives_the_figures(task, part):
    for bound in bounds(task, part, [0.16, 0.4]):
        run = rollout(task, task.prepare(part.images), replay(task, bound.actions))
        assert torch.equal(run.logits.argmax(1) == part.labels, bound.correct)
        assert torch.equal(run.macs, bound.macs)
        assert bound.accuracy == pytest.approx(float(bound.correct.float().mean()))
        assert bound.compute == float(bound.macs.mean()) / task.full_macs <= bound.target


def test_agreement_at_full_compute_has_the_full_networks_accuracy(task, part):
    _, agree = bounds(task, part, [1.0])
    assert agree.accuracy == full_accuracy(task, part)
    assert agree.compute < 1


def test_least_compute_still_takes_what_costs_nothing_more(task, part):
    label, _ = bounds(task, part, [task.least_macs / task.full_macs])
    assert label.macs.unique().tolist() == [task.least_macs]


def test_more_compute_never_lowers_the_label_bound(task, part):
    labels = bounds(task, part, [0.15, 0.17, 0.2, 1.0])[::2]
    accuracies = [bound.accuracy for bound in labels]
    assert accuracies == sorted(accuracies)
    assert accuracies[0] < accuracies[-1]


def test_searched_bound_says_that_it_is_a_lower_one(task, part):
    exact, _ = bounds(task, part, [0.2], limit=8)
    searched, agree = bounds(task, part, [0.2], limit=7)
    assert (exact.exact, exact.paths, searched.exact, searched.paths) == (True, 8, False, 7)
    assert "lower bound" in searched.meaning
    assert "lower bound" in agree.meaning
    assert "lower bound" not in exact.meaning
    assert "by luck" in exact.meaning
    assert searched.accuracy <= exact.accuracy


def test_kinds_say_what_they_looked_up(task, part):
    label, agree = bounds(task, part, [0.2])
    assert "looked up the labels" in label.meaning
    assert "not a bound" in agree.meaning


def test_looking_is_counted(task, part):
    part = part.subset(20)
    bound = bounds(task, part, [0.2])[0]
    table = outcomes(task, part.images, part.labels, PATHS)
    assert bound.spent == table.spent + 20 * task.full_macs


def test_too_many_paths_of_three_options_are_told(tell, dark_or_bright):
    tell.decisions, tell.horizon = (3,), 4
    assert len(paths_to_follow(tell, 81)[0]) == 81
    with pytest.raises(ValueError, match="expected at most 80 or decisions of two options, got 81 paths"):
        bounds(tell, dark_or_bright.val, [0.5], limit=80)


def test_target_below_the_cheapest_way_is_told(task, part):
    with pytest.raises(ValueError, match="everything left out"):
        bounds(task, part, [0.5, 0.01])


def replay(task, actions):
    parts = len(task.decisions)

    def decide(state):
        chosen = actions[state.rows, state.position * parts : (state.position + 1) * parts]
        return Hard(chosen[:, 0] if parts == 1 else chosen)

    return decide
