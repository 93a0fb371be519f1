"""Figures and verdicts of made-up results, by hand."""

import numpy as np
import pytest
import torch

from skipgym.agents import learner
from skipgym.referee.summary import Entry, Statics, areas, best_of, gain, summarise, verdicts
from skipgym.registry import Named


def entry(method, target, right, *, count=100, seeds=1, compute=None, price=None, **more):
    """Return an entry whose seeds are right on the first `right` images, at a compute on val and test."""
    compute = target if compute is None else compute
    correct = (torch.arange(count) < right).expand(seeds, count)
    budget = f"compute{target:g}" if price is None else f"price{price:g}"
    row = {
        "method": method,
        "target": target if price is None else None,
        "price": price,
        "budget": budget,
        "accuracy": right / count,
        "compute": compute,
        "val_accuracy": right / count,
        "val_compute": compute,
        "train_backbone_macs": 10.0,
        "train_seconds": 1.0,
        "joint": False,
    }
    rows = [row | {"seed": seed} | more for seed in range(seeds)]
    return Entry(rows, correct, torch.ones(seeds, count, 2, dtype=torch.int8))


@pytest.fixture
def statics():
    """Fixed subsets that are right on none, the first 40 and the first 80 of 100 images."""
    numbers = torch.arange(100)
    return Statics(torch.tensor([0.2, 0.5, 0.9]), torch.stack([numbers < 0, numbers < 40, numbers < 80]))


# --- fixed subsets ---


@pytest.mark.parametrize(("compute", "point"), [(0.2, 0), (0.5, 1), (0.9, 2), (0.05, 0), (1.0, 2)])
def test_statics_at_a_point_or_beyond_the_ends_are_that_point(compute, point, statics):
    # The computes are kept in single precision, so at a point all but one in 10^7 coins fall on its side.
    assert torch.equal(statics.at(compute, 3), statics.correct[point].expand(3, 100))


def test_statics_between_two_points_are_mixed_by_how_near_they_are(statics):
    mixed = statics.at(0.6, 2000).float().mean(0)  # a quarter of the way from 0.5 to 0.9
    assert torch.equal(mixed[:40], torch.ones(40))
    torch.testing.assert_close(mixed[40:80], torch.full((40,), 0.25), atol=0.05, rtol=0)
    assert torch.equal(mixed[80:], torch.zeros(20))


def test_statics_of_one_point_are_that_point_everywhere():
    one = Statics(torch.tensor([0.5]), torch.tensor([[True, False]]))
    for compute in (0.1, 0.5, 0.9):
        assert one.at(compute, 1).tolist() == [[True, False]]


def test_gain_is_accuracy_minus_that_of_fixed_subsets_at_the_same_compute(statics):
    assert gain(entry("ppo", 0.5, 70), statics).mean == pytest.approx(0.3)
    assert gain(entry("ppo", 0.9, 70, seeds=2), statics).mean == pytest.approx(-0.1)


def test_gain_goes_by_what_was_spent_and_not_by_what_was_asked(statics):
    assert gain(entry("ppo", 0.5, 70, compute=0.9), statics).mean == pytest.approx(-0.1)


# --- one entry ---


def test_summary_of_an_entry_is_that_of_its_rows(statics):
    of = entry("gumbel", 0.5, 70, seeds=2)
    of.rows[1].update(compute=0.6, train_seconds=3.0)
    summary = summarise(of, statics)
    assert summary["accuracy"]["mean"] == 0.7
    assert summary["compute"] == {"mean": pytest.approx(0.55), "low": 0.5, "high": 0.6}
    assert (summary["train_seconds"], summary["train_backbone_macs"], summary["seeds"]) == (2.0, 10.0, 2)
    assert (summary["unique_paths"], summary["constant_pieces"]) == (1, 2)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("ppo", "learned"),
        ("oracle", "bound"),
        ("oracle-agree", "bound"),
        ("full", "baseline"),
        ("static", "baseline"),
        ("random", "baseline"),
        ("random-forest", "learned"),  # somebody's own learner
    ],
)
def test_kind_tells_learned_from_baseline_and_bound(method, kind, statics):
    summary = summarise(entry(method, 0.5, 70), statics)
    assert summary["kind"] == kind
    assert (summary["static_gain"] is not None) == (kind == "learned")


def test_entry_without_images_has_a_mean_and_no_interval(statics):
    summary = summarise(Entry(entry("static", 0.5, 70).rows), statics)
    assert summary["accuracy"] == {"mean": 0.7, "low": None, "high": None}
    assert "unique_paths" not in summary


# --- who stands for a kind ---


def test_best_is_chosen_on_validation_and_not_on_test():
    seen = [entry("ppo", 0.5, 60, val_accuracy=0.9), entry("dqn", 0.5, 90, val_accuracy=0.6), entry("gumbel", 0.5, 99)]
    assert best_of(seen, "compute0.5", "RL").method == "ppo"
    assert best_of(seen, "compute0.4", "RL") is None
    assert best_of(seen, "compute0.5", "hybrid") is None


def test_best_keeps_to_its_target_on_validation():
    faithful, wasteful = entry("ppo", 0.5, 60), entry("dqn", 0.5, 90, val_compute=0.8)
    assert best_of([faithful, wasteful], "compute0.5", "RL") is faithful
    worse = entry("a2c", 0.5, 95, val_compute=0.9)
    assert best_of([worse, wasteful], "compute0.5", "RL") is wasteful


def test_exceeding_the_target_by_a_rounding_is_no_exceeding():
    exact, rounded = entry("ppo", 0.5, 60), entry("dqn", 0.5, 90, val_compute=0.509)
    assert best_of([exact, rounded], "compute0.5", "RL") is rounded


def test_best_at_a_price_pays_for_its_compute():
    # 0.8 - 0.5 · 0.9 = 0.35 against 0.7 - 0.5 · 0.5 = 0.45
    dear, cheap = entry("ppo", 0.9, 80, price=0.5), entry("dqn", 0.5, 70, price=0.5)
    assert best_of([dear, cheap], "price0.5", "RL") is cheap


def test_own_learner_is_a_kind_of_its_own(monkeypatch):
    monkeypatch.setitem(learner.REGISTRY.registered, "random-forest", Named(learner.Learner, "somebody's"))
    own = entry("random-forest", 0.5, 70)
    assert best_of([own, entry("ppo", 0.5, 90)], "compute0.5", "own") is own


# --- verdicts ---


def test_verdicts_set_rl_against_gumbel_at_each_budget(statics):
    entries = [
        entry("full", 1.0, 95),
        entry("oracle", 0.4, 99),
        *(entry(name, target, right) for name, right in (("ppo", 50), ("gumbel", 90)) for target in (0.4, 0.5)),
    ]
    against = [sentence for sentence in verdicts(entries, statics) if sentence.startswith("RL against Gumbel")]
    for share, sentence in zip((40, 50), against, strict=True):
        start = f"RL against Gumbel at a budget of {share}%: gumbel is better than ppo by 40.0 points"
        assert sentence.startswith(start)
        assert sentence.endswith(f"at {share}.0 % of compute.")


def test_verdicts_set_the_best_of_each_kind_against_fixed_subsets(statics):
    entries = [entry("ppo", 0.5, 70), entry("dqn", 0.5, 60), entry("gumbel", 0.5, 10), entry("path-table", 0.5, 40)]
    found = [sentence for sentence in verdicts(entries, statics) if "fixed subset" in sentence]
    assert [sentence.split("[")[0] for sentence in found] == [
        "At a budget of 50%: ppo is better than the best fixed subset by 30.0 points ",
        "At a budget of 50%: the best fixed subset is better than gumbel by 30.0 points ",
        "At a budget of 50%: No difference can be told between path-table and the best fixed subset at 50.0 % of "
        "compute (path-table minus the best fixed subset: 0.0 points ",
    ]


def test_verdicts_name_a_price(statics):
    entries = [entry("ppo", 0.5, 90, price=0.3), entry("gumbel", 0.5, 40, price=0.3)]
    assert verdicts(entries, statics)[0].startswith("RL against Gumbel at a price of 0.3: ppo is better than gumbel")


def test_without_gumbel_there_is_no_verdict_of_rl_against_it():
    assert verdicts([entry("ppo", 0.5, 70), entry("full", 1.0, 90)], None) == []


# --- areas ---


def test_areas_cover_the_range_that_all_methods_cover():
    # ppo goes from (0.2, 0.4) to (0.6, 0.8), gumbel from (0.4, 0.5) to (0.8, 0.9); in common 0.4 … 0.6.
    entries = [entry("ppo", 0.2, 40), entry("ppo", 0.6, 80), entry("gumbel", 0.4, 50), entry("gumbel", 0.8, 90)]
    ppo, gumbel = areas(entries)
    assert (ppo["method"], gumbel["method"]) == ("ppo", "gumbel")
    for area in (ppo, gumbel):
        assert (area["from"], area["to"]) == (0.4, 0.6)
    assert ppo["mean"] == pytest.approx(0.7)  # from 0.6 to 0.8
    assert gumbel["mean"] == pytest.approx(0.6)  # from 0.5 to 0.7


def test_area_range_keeps_to_every_seed():
    wide, seeds = (
        [entry("gumbel", 0.1, 40), entry("gumbel", 0.9, 80)],
        [entry("ppo", t, 50, seeds=2) for t in (0.2, 0.8)],
    )
    seeds[0].rows[1]["compute"] = 0.3
    seeds[1].rows[1]["compute"] = 0.7
    assert np.allclose([(area["from"], area["to"]) for area in areas(wide + seeds)], [(0.3, 0.7)] * 2)


def test_single_budget_has_no_area():
    assert areas([entry("ppo", 0.5, 70), entry("gumbel", 0.5, 80)]) == []


def test_ranges_that_do_not_meet_have_no_area():
    entries = [entry("ppo", 0.2, 40), entry("ppo", 0.3, 50), entry("gumbel", 0.7, 80), entry("gumbel", 0.8, 90)]
    assert areas(entries) == []


def test_areas_are_of_learned_methods_with_own_ones_included(monkeypatch):
    monkeypatch.setitem(learner.REGISTRY.registered, "random-forest", Named(learner.Learner, "somebody's"))
    names = ("random", "static", "oracle", "random-forest", "ppo")
    found = areas([entry(name, target, 50) for name in names for target in (0.2, 0.6)])
    assert [area["method"] for area in found] == ["random-forest", "ppo"]
