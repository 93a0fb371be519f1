"""Intervals cover what they claim to, the frontier is measured as drawn, and words go no further than figures."""

import numpy as np
import pytest
import torch

from skipgym.referee.statistics import (
    InputDependence,
    Interval,
    accuracy_interval,
    area_interval,
    frontier_area,
    gate_entropy,
    input_dependence,
    paired_difference,
    verdict,
)


def answers(seeds, images, *, difficulty=None, skill=0.0, rng_seed=0):
    """Answers of seeds that find the same images hard; `skill` is one shift for all seeds or one for each."""
    rng = np.random.default_rng(rng_seed)
    difficulty = np.random.default_rng(99).normal(size=images) if difficulty is None else difficulty
    return difficulty + 0.3 * rng.normal(size=(seeds, images)) < 1 + np.reshape(skill, (-1, 1))


def width(interval):
    return interval.high - interval.low


# --- intervals of accuracy ---


@pytest.mark.parametrize(("confidence", "low", "high"), [(0.4, 0.5, 0.5), (0.6, 0.0, 1.0)])
def test_two_images_give_the_quantiles_of_two_coins(confidence, low, high):
    # Draws of one right and one wrong image: 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4.
    assert accuracy_interval([[True, False]], confidence=confidence) == Interval(0.5, low, high)


def test_large_samples_give_the_normal_interval():
    correct = np.arange(10_000)[None] < 9_000
    interval = accuracy_interval(correct, samples=4000)
    assert interval.mean == 0.9
    half = 1.96 * (0.9 * 0.1 / 10_000) ** 0.5
    assert (interval.low, interval.high) == pytest.approx((0.9 - half, 0.9 + half), abs=0.0006)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [accuracy_interval(rng.random((1, 100)) < 0.7, samples=400, seed=i) for i in range(400)]
    covered = np.mean([i.low <= 0.7 <= i.high for i in intervals])
    assert 0.91 <= covered <= 0.98


def test_interval_of_several_seeds_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(300):
        difficulty, skill = rng.normal(size=200), 0.1 * rng.normal(size=5)
        interval = accuracy_interval(
            answers(5, 200, difficulty=difficulty, skill=skill, rng_seed=i), samples=300, seed=i
        )
        # P(N(0, 1 + 0.3² + 0.1²) < 1)
        covered += interval.low <= 0.8299 <= interval.high
    assert 0.91 <= covered / 300 <= 0.99


def test_copies_of_one_seed_add_no_certainty():
    one = answers(1, 300)
    assert accuracy_interval(np.repeat(one, 5, axis=0)) == accuracy_interval(one)


def test_seed_variance_widens_the_interval():
    alike, different = answers(5, 1000), answers(5, 1000, skill=[-0.6, -0.3, 0, 0.3, 0.6])
    assert width(accuracy_interval(different)) > 1.5 * width(accuracy_interval(alike))


def test_variance_between_seeds_is_not_understated():
    # Every image has the same answer within a seed, so only seeds count: their standard error is known.
    correct = np.repeat([[True], [True], [True], [False], [False], [False]], 10, axis=1)
    interval = accuracy_interval(correct, confidence=0.6827, samples=20_000)
    # Five of six seeds are drawn: a binomial of mean 2.5, whose 16th and 84th percentiles are 1 and 4 of 5.
    assert (interval.low, interval.high) == pytest.approx((0.2, 0.8))


def test_torch_and_numpy_answers_give_the_same():
    correct = answers(3, 50)
    assert accuracy_interval(torch.from_numpy(correct)) == accuracy_interval(correct)


def test_interval_depends_on_its_seed_alone():
    correct = answers(3, 50)
    assert accuracy_interval(correct, seed=1) == accuracy_interval(correct, seed=1)
    assert accuracy_interval(correct, seed=1) != accuracy_interval(correct, seed=2)


def test_higher_confidence_widens_the_interval():
    correct = answers(3, 200)
    assert width(accuracy_interval(correct, confidence=0.99)) > width(accuracy_interval(correct, confidence=0.8))


def test_many_patterns_are_drawn_in_parts_that_make_a_whole(monkeypatch):
    correct = answers(4, 200)
    whole = accuracy_interval(correct, samples=101)
    monkeypatch.setattr("skipgym.referee.statistics._CHUNK", 50)
    assert accuracy_interval(correct, samples=101) == whole


# --- differences ---


def test_difference_of_a_method_to_itself_is_zero():
    correct = answers(1, 200)
    assert paired_difference(correct, correct) == Interval(0, 0, 0)
    copies = np.repeat(correct, 8, axis=0)  # thirds and sevenths of counts do not add up to the last bit
    assert paired_difference(copies, copies[:4]) == Interval(0, 0, 0)


def test_difference_is_a_minus_b_over_their_own_seeds():
    a, b = np.array([[True] * 4]), np.array([[True, True, True, False], [True, False, False, False]])
    difference = paired_difference(a, b)
    assert difference.mean == 0.5
    assert paired_difference(b, a).mean == -0.5
    assert (difference.low, difference.high) == (0, 1)


def test_seeds_of_two_methods_are_drawn_separately():
    correct = np.repeat([[True], [False]], 4, axis=1)
    assert paired_difference(correct, correct) == Interval(0, -1, 1)


def test_difference_of_known_answers_has_the_normal_interval():
    # a is right on 300 images that b is not, b on 100 that a is not: variance 0.04 - 0.02² over 10,000 images.
    a, b = np.zeros((1, 10_000), dtype=bool), np.zeros((1, 10_000), dtype=bool)
    a[:, :8300], b[:, :8000], b[:, 8300:8400] = True, True, True
    difference = paired_difference(a, b, samples=4000)
    assert difference.mean == pytest.approx(0.02)
    half = 1.96 * ((0.04 - 0.02**2) / 10_000) ** 0.5
    assert (difference.low, difference.high) == pytest.approx((0.02 - half, 0.02 + half), abs=0.0004)


def test_pairing_narrows_the_difference_of_correlated_methods():
    a, b = answers(3, 1000, rng_seed=1), answers(3, 1000, rng_seed=2, skill=-0.1)
    shuffled = np.random.default_rng(0).permutation(b, axis=1)
    assert width(paired_difference(a, b)) < 0.7 * width(paired_difference(a, shuffled))


def test_equal_methods_are_rarely_told_apart():
    rng = np.random.default_rng(0)
    told = 0
    for i in range(200):
        difficulty = rng.normal(size=300)
        a, b = (
            answers(5, 300, difficulty=difficulty, skill=0.05 * rng.normal(size=5), rng_seed=2 * i + j) for j in (0, 1)
        )
        told += paired_difference(a, b, samples=300, seed=i).excludes_zero
    assert told / 200 <= 0.1


# --- the frontier ---


@pytest.mark.parametrize(
    ("compute", "accuracy", "low", "high", "area"),
    [
        ([0.2, 0.6], [0.5, 0.9], 0.2, 0.6, 0.7),  # one line
        ([0.6, 0.2], [0.9, 0.5], 0.2, 0.6, 0.7),  # in any order
        ([0.2, 0.6], [0.5, 0.9], 0.3, 0.5, 0.7),  # limits within the line: from 0.6 to 0.8
        ([0.2, 0.6], [0.5, 0.9], 0.2, 1.0, 0.8),  # goes on flat: half of it 0.7, half 0.9
        ([0.2], [0.5], 0.4, 0.8, 0.5),  # one point
        ([0.0, 0.5, 1.0], [0.4, 0.8, 1.0], 0.0, 1.0, 0.75),  # two lines: 0.6 and 0.9
        ([0.0, 0.5, 1.0], [0.4, 0.3, 1.0], 0.0, 1.0, 0.7),  # the dominated middle is ignored
        ([0.0, 0.5, 1.0], [0.4, 0.8, 0.8], 0.0, 1.0, 0.7),  # no gain is no new point: 0.6 and 0.8
        ([0.0, 0.5, 1.0], [0.4, 0.4, 1.0], 0.0, 1.0, 0.7),  # nor on the left: the line starts at the cheaper one
        ([0.0, 0.5, 0.5], [0.4, 0.6, 0.8], 0.25, 0.5, 0.7),  # of equally cheap points the better
        ([0.0, 0.0, 1.0], [0.2, 0.4, 1.0], 0.0, 1.0, 0.7),
        ([0.2, 0.6, 0.8], [0.5, 0.9, 1.0], 0.3, 0.5, 0.7),  # what lies beyond the limits does not count
    ],
)
def test_area_is_that_of_the_drawn_frontier(compute, accuracy, low, high, area):
    assert frontier_area(compute, accuracy, low, high) == pytest.approx(area)


def test_area_of_one_run_is_that_of_its_accuracies():
    cheap, dear = answers(1, 400, skill=-0.5), answers(1, 400, rng_seed=1)
    interval = area_interval([([0.2], cheap), ([0.6], dear)], 0.2, 0.6)
    assert interval.mean == pytest.approx((cheap.mean() + dear.mean()) / 2)
    assert interval.low < interval.mean < interval.high


def test_area_of_one_budget_is_its_accuracy_with_its_interval():
    correct = answers(4, 300, skill=[0, 0.1, 0.2, 0.3])
    area, accuracy = area_interval([([0.3] * 4, correct)], 0.3, 0.6), accuracy_interval(correct)
    assert (area.mean, area.low, area.high) == pytest.approx((accuracy.mean, accuracy.low, accuracy.high))


def test_budgets_share_their_draw_of_images():
    correct = answers(1, 300)
    dearer = correct.copy()
    dearer[0, np.flatnonzero(~correct[0])[0]] = True
    one, two = accuracy_interval(correct), area_interval([([0.2], correct), ([0.6], dearer)], 0.2, 0.6)
    assert width(two) == pytest.approx(width(one), rel=0.1)


def test_equally_many_seeds_of_budgets_are_drawn_together():
    # Whichever seed is drawn, one budget is all right and the other all wrong, and the area of the frontier is known.
    cheap, dear = np.repeat([[True], [False]], 3, axis=1), np.repeat([[False], [True]], 3, axis=1)
    together = area_interval([([0.2, 0.2], cheap), ([0.6, 0.6], dear)], 0.2, 0.6)
    assert (together.low, together.high) == pytest.approx((0.5, 1.0))  # the second seed 0 to 1, the first 1 throughout
    apart = area_interval([([0.2, 0.2], cheap), ([0.6] * 3, np.repeat(dear, [1, 2], axis=0))], 0.2, 0.6)
    assert apart.low == 0  # both wrong


def test_compute_that_varies_over_seeds_widens_the_area():
    cheap, dear = np.zeros((4, 10), dtype=bool), np.ones((4, 10), dtype=bool)
    fixed = area_interval([([0.2] * 4, cheap), ([0.6] * 4, dear)], 0.2, 1.0)
    varied = area_interval([([0.2] * 4, cheap), ([0.4, 0.5, 0.7, 0.8], dear)], 0.2, 1.0)
    assert fixed.mean == varied.mean == pytest.approx(0.75)
    assert width(fixed) == 0
    assert width(varied) > 0.1


# --- input dependence ---


def test_gate_entropy_of_known_rates():
    assert gate_entropy([0.5]) == 1
    assert gate_entropy([0, 1]) == 0
    assert gate_entropy([0.25, 1]) == pytest.approx((2 * 0.25 + 0.75 * np.log2(4 / 3)) / 2)


def test_independent_gates_have_the_entropy_of_their_sum():
    assert input_dependence([[0, 0], [0, 1], [1, 0], [1, 1]]) == InputDependence(1, 2, 4, 0)


def test_a_path_can_vary_less_than_its_gates():
    assert input_dependence([[0, 0, 1], [1, 1, 1]]) == InputDependence(pytest.approx(2 / 3), 1, 2, 1)


def test_static_policy_has_no_entropy():
    assert input_dependence(torch.tensor([[0, 1, 1]] * 5)) == InputDependence(0, 0, 1, 3)


def test_gates_count_where_they_were_decided_and_pieces_in_all_images():
    # The second piece always runs where it is decided, so its gate is constant; but it runs in half of the images.
    assert input_dependence([[0, -1], [1, 1]]) == InputDependence(0.5, 1, 2, 0)


def test_a_piece_that_is_never_decided_is_constant():
    assert input_dependence([[0, -1], [1, -1]]) == InputDependence(0.5, 1, 2, 1)


def test_every_option_but_the_first_executes():
    assert input_dependence([[0], [0], [1], [2]]).marginal_entropy == 1


@pytest.mark.parametrize(("executed", "constant"), [(0, 1), (2, 1), (3, 0), (197, 0), (198, 1), (200, 1)])
def test_pieces_within_one_percent_are_constant(executed, constant):
    assert input_dependence((np.arange(200) < executed).astype(int)[:, None]).constant_pieces == constant


# --- words ---


def test_interval_is_written_in_percent():
    assert str(Interval(0.9123, 0.909, 0.9162)) == "91.2 % [90.9, 91.6]"
    assert str(Interval(-0.0001, -0.01, 0.0001)) == "0.0 % [-1.0, 0.0]"


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0, 0.1, False), (-0.1, 0, False)],
)
def test_interval_excludes_zero_only_with_both_limits_on_one_side(low, high, excludes):
    assert Interval((low + high) / 2, low, high).excludes_zero is excludes


BETTER, WORSE, UNSURE = Interval(0.008, 0.005, 0.011), Interval(-0.008, -0.011, -0.005), Interval(0.001, -0.003, 0.005)


@pytest.mark.parametrize(
    ("difference", "compute", "sentence"),
    [
        (BETTER, (0.498, 0.498), "gumbel is better than ppo by 0.8 points [0.5, 1.1] at 49.8 % of compute."),
        (WORSE, (0.498, 0.498), "ppo is better than gumbel by 0.8 points [0.5, 1.1] at 49.8 % of compute."),
        (
            BETTER,
            (0.5, 0.51),
            "gumbel is better than ppo by 0.8 points [0.5, 1.1] at 50.0 % against 51.0 % of compute.",
        ),
        (WORSE, (0.5, 0.51), "ppo is better than gumbel by 0.8 points [0.5, 1.1] at 51.0 % against 50.0 % of compute."),
        (
            UNSURE,
            (0.498, 0.498),
            "No difference can be told between gumbel and ppo at 49.8 % of compute "
            "(gumbel minus ppo: 0.1 points [-0.3, 0.5]).",
        ),
        (
            BETTER,
            (0.55, 0.5),
            "Not at the same compute: gumbel spends 55.0 %, ppo 50.0 %, which favours gumbel. "
            "gumbel is more accurate than ppo by 0.8 points [0.5, 1.1], which its greater compute may explain.",
        ),
        (
            BETTER,
            (0.5, 0.55),
            "Not at the same compute: gumbel spends 50.0 %, ppo 55.0 %, which favours ppo. "
            "gumbel is better than ppo by 0.8 points [0.5, 1.1] although it spends less.",
        ),
        (
            WORSE,
            (0.5, 0.55),
            "Not at the same compute: ppo spends 55.0 %, gumbel 50.0 %, which favours ppo. "
            "ppo is more accurate than gumbel by 0.8 points [0.5, 1.1], which its greater compute may explain.",
        ),
        (
            UNSURE,
            (0.55, 0.5),
            "Not at the same compute: gumbel spends 55.0 %, ppo 50.0 %, which favours gumbel. "
            "No difference can be told between gumbel and ppo (gumbel minus ppo: 0.1 points [-0.3, 0.5]).",
        ),
    ],
)
def test_verdict_says_what_the_interval_allows(difference, compute, sentence):
    assert verdict("gumbel", "ppo", difference, *compute) == sentence


def test_tolerance_decides_what_is_the_same_compute():
    assert verdict("a", "b", BETTER, 0.5, 0.52).startswith("Not at the same compute")
    assert verdict("a", "b", BETTER, 0.5, 0.52, tolerance=0.02).startswith("a is better than b")


def test_verdict_shows_digits_enough_to_see_that_zero_is_excluded():
    assert "by 0.30 points [0.02, 0.60]" in verdict("a", "b", Interval(0.003, 0.0002, 0.006), 0.5, 0.5)
    assert "0.3 points [0.0, 0.6]" in verdict("a", "b", Interval(0.003, -0.0002, 0.006), 0.5, 0.5)


# --- errors ---

GOOD = [[True, False]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy_interval(np.zeros((0, 5), dtype=bool)), r"correct: .* got bool of shape \(0, 5\)"),
        (lambda: accuracy_interval(np.zeros((5, 0), dtype=bool)), r"correct: .* got bool of shape \(5, 0\)"),
        (lambda: accuracy_interval([True, False]), r"correct: .* got bool of shape \(2,\)"),
        (lambda: accuracy_interval([[0.5, 1.0]]), "correct: .* got float64"),
        (lambda: accuracy_interval(GOOD, confidence=0), "confidence: .* got 0"),
        (lambda: accuracy_interval(GOOD, confidence=1), "confidence: .* got 1"),
        (lambda: paired_difference(GOOD, GOOD, confidence=95), "confidence: .* got 95"),
        (lambda: accuracy_interval(GOOD, samples=0), "samples: .* got 0"),
        (lambda: paired_difference(GOOD, [[True]]), r"images: .* got \[2, 1\]"),
        (lambda: paired_difference(GOOD, []), "b: expected bool"),
        (lambda: frontier_area([], [], 0, 1), "points: expected finite pairs"),
        (lambda: frontier_area([0.1, 0.2], [0.5], 0, 1), "points: expected finite pairs"),
        (lambda: frontier_area([0.1], [np.nan], 0.2, 1), "points: expected finite pairs"),
        (lambda: frontier_area([0.1], [0.5], 0.5, 0.5), "limits: expected finite low < high"),
        (lambda: frontier_area([0.1], [0.5], 0.5, np.nan), "limits: expected finite low < high"),
        (
            lambda: frontier_area([0.3, 0.4], [0.5, 0.6], 0.2, 0.5),
            "low: .* got 0.3 as the cheapest. Raise `low` to 0.3",
        ),
        (lambda: area_interval([], 0, 1), "points: expected at least one budget"),
        (lambda: area_interval([([0.1, 0.2], GOOD)], 0.2, 1), r"points\[0\] compute: expected 1 finite"),
        (lambda: area_interval([([0.1], GOOD), ([0.2], [[True]])], 0.2, 1), r"images: .* got \[2, 1\]"),
        (lambda: area_interval([([0.1], GOOD), ([0.2], [True])], 0.2, 1), r"points\[1\] correct: expected bool"),
        (lambda: area_interval([([0.1, 0.3], GOOD * 2)], 0.2, 1), "low: .* got 0.3 as the cheapest"),
        (lambda: gate_entropy([]), "execution: expected rates"),
        (lambda: gate_entropy([1.1]), "execution: expected rates"),
        (lambda: gate_entropy([np.nan]), "execution: expected rates"),
        (lambda: input_dependence([[0.5]]), "actions: expected integers .* got float64"),
        (lambda: input_dependence(np.zeros((0, 3), dtype=int)), r"actions: .* shape \(0, 3\)"),
        (lambda: Interval(0, 1, 0), "Interval: expected finite low <= high"),
        (lambda: Interval(np.nan, 0, 1), "Interval: expected finite low <= high"),
        (lambda: verdict("a", "b", BETTER, -0.1, 0.5), "compute and tolerance: .* got -0.1, 0.5, 0.01"),
        (lambda: verdict("a", "b", BETTER, 0.5, np.nan), "compute and tolerance: .* nan"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
