"""The kit lets sound tasks pass, and finds each seeded fault by a message of its own."""

import inspect
import re
import warnings
from itertools import combinations

import pytest
import torch
from torch import nn

from skipgym.envs import Task
from skipgym.testing import RULES, SkippedRuleWarning, TaskError, check_task

from . import tasks

# For each broken task: the rule that names it first, and what that says.
FAULTS = {
    tasks.NoHorizon: ("declaration", r"horizon: expected a value, got none.*Set self\.horizon"),
    tasks.ListOfDecisions: ("declaration", r"decisions: expected a tuple of integers >= 2, got \[1\]"),
    tasks.DoubleNames: ("pieces", r"expected 3 different names.*first, second, second"),
    tasks.SharedMemory: ("begin", r"expected 5 rows.*got 1 of spare"),
    tasks.Unpadded: ("observation", r"expected shape \(5, 8\), got \(5, 4\).*observe at position 0"),
    tasks.NotFinite: ("observation", r"expected finite float32, got NaN or infinity"),
    tasks.NeverAnswers: ("ending", r"expected no row to go on after the last decision, got 5 rows under way at 3"),
    tasks.StaysPut: ("ending", r"expected position 1 … 2, got 5 rows under way at 0"),
    tasks.TooFewClasses: ("ending", r"expected logits of shape \(5, 4\), got \(5, 3\)"),
    tasks.LosesRows: ("ending", r"expected the \d rows that were there, each once, got \d"),
    tasks.Raises: ("observation", r"IndexError.*tasks\.py:\d+, in step"),
    tasks.Noisy: ("determinism", r"expected the same answer.*Draw nothing at random"),
    tasks.WritesInputs: ("left as they are", r"expected the inputs as they were"),
    tasks.WritesFeatures: ("left as they are", r"expected the features of a state to stay"),
    tasks.TrainsNorm: ("frozen", r"expected parameters and buffers as they were.*norm\.(running|num)"),
    tasks.Trainable: ("frozen", r"asks for a gradient \[head\.weight\]"),
    tasks.BatchMean: ("neighbours", r"expected the answer of a row alone to be that in a batch"),
    tasks.BatchMeanInBranch: ("routed = masked", r"expected the answer of routed execution"),
    tasks.LooksBack: ("features spared", r"expected the observation of routed execution"),
    tasks.AllAlike: ("effect", r"expected answers that differ between inputs"),
    tasks.IgnoresDecision: ("effect", r"got one that changes nothing \[decision 2\]"),
    tasks.ChargesTheGone: ("done stays done", r"to keep its macs, got another \[step at position 1\]"),
    tasks.RevivesTheGone: ("done stays done", r"to keep its answer, got another"),
    tasks.ReadsActions: ("soft at one-hot", r"AttributeError: 'Soft' object has no attribute 'actions'"),
    tasks.HardCost: ("relaxed gradient", r"expected the cost to have a gradient.*no rounding, comparison"),
    tasks.Detached: ("relaxed gradient", r"expected the answer to have a gradient.*detach"),
    tasks.NoSlope: ("relaxed gradient", r"expected finite gradients of the answer, got NaN"),
    tasks.Refunds: ("cost adds up", r"expected MACs that never fall"),
    tasks.FreeHead: ("cost counted", r"expected one row to be charged the [\d,]+ MACs that ran.*step at position 2"),
    tasks.FreeGlance: ("cost counted", r"expected one row to be charged.*observe or step at position 0"),
    tasks.RunsForAll: (
        "skipping",
        r"expected a batch to run the [\d,]+ MACs that its rows are charged, got [\d,]+ \[a batch of 5",
    ),
    tasks.WrongLeast: ("least cost", r"expected option 0 everywhere to cost least_macs"),
    tasks.Upside: ("least cost", r"expected no way through below least_macs"),
    tasks.NeverFull: ("full network", r"expected the answers of the untouched network"),
    tasks.Forgetful: ("configuration", r"Forgetful\(backbone, grid=1\) to be the same task, got.*observation_shape"),
    tasks.ModuleOption: ("configuration", r"expected options that JSON can hold.*Linear"),
    tasks.NeedsMore: ("configuration", r"NeedsMore\(backbone\) to build the task again.*'scale'"),
    tasks.HoldsLambda: ("pickling", r"expected a task that can be pickled, got.*lambda"),
    tasks.WrongSpace: ("environment", r"passes gymnasium's check_env, got"),
}
ARGUMENTS = {
    tasks.Forgetful: {"grid": 2},
    tasks.ModuleOption: {"extra": nn.Linear(1, 1).requires_grad_(False)},
    tasks.NeedsMore: {"scale": 2},
}
SOUND = (tasks.Sound, tasks.SoundDepth, tasks.SoundExit, tasks.SoundParts)
EXITS = {"full network": "it pays for its exits"}


def build(kind, backbone):
    if kind is tasks.NeedsMore:
        return kind(backbone, 2)
    return kind(backbone, **ARGUMENTS.get(kind, {}))


@pytest.fixture(scope="module")
def found(random_backbone):
    """What the kit says of each broken task."""

    def report(kind):
        skip = EXITS if issubclass(kind, tasks.SoundExit) else None
        task = build(kind, random_backbone())
        with pytest.raises(TaskError) as error:
            check_task(task, skip=skip)
        return error.value.report

    return {kind: report(kind) for kind in FAULTS}


@pytest.mark.parametrize("kind", SOUND, ids=lambda kind: kind.__name__)
def test_sound_task_passes(kind, random_backbone):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRuleWarning)
        report = check_task(kind(random_backbone()), skip=EXITS if issubclass(kind, tasks.SoundExit) else None)
    assert not report.failures
    assert {*report.passed, *report.skipped} == set(RULES)


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_seeded_fault_is_found_and_named_first(kind, found):
    rule, message = FAULTS[kind]
    first = found[kind].failures[0]
    assert first.rule == rule, found[kind]
    assert re.search(message, str(first)), first


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_failure_says_what_where_and_what_to_do(kind, found):
    for failure in found[kind].failures:
        assert re.match(r"(\w+: )?expected .*, got ", failure.what) or "expected" in failure.what
        assert failure.where
        assert failure.remedy.endswith(".")


def test_faults_are_told_apart(found):
    told = {kind.__name__: str(report.failures[0]) for kind, report in found.items()}
    for (one, first), (other, second) in combinations(told.items(), 2):
        assert first != second, (one, other)


def test_every_broken_task_is_asked_for_and_every_rule_has_one():
    broken = {kind for _, kind in inspect.getmembers(tasks, inspect.isclass) if issubclass(kind, Task)}
    assert broken - {Task, *SOUND} == set(FAULTS)
    assert {rule for rule, _ in FAULTS.values()} == set(RULES)


def test_rules_for_soft_choices_are_skipped_aloud_where_rows_part(random_backbone):
    with pytest.warns(SkippedRuleWarning) as told:
        report = check_task(tasks.SoundParts(random_backbone()), skip=EXITS)
    assert report.skipped.keys() == {"done stays done", "soft at one-hot", "relaxed gradient", "full network"}
    assert "soft choices cannot follow" in report.skipped["soft at one-hot"]
    assert {str(warning.message).partition(" was not")[0] for warning in told} == {
        f"SoundParts: rule {rule}" for rule in report.skipped
    }


def test_after_a_fault_of_form_the_rest_is_named_as_not_asked(found):
    report = found[tasks.NeverAnswers]
    assert [failure.rule for failure in report.failures] == ["ending"]
    assert report.skipped["cost counted"] == "ending fails"
    assert "not checked: cost counted: ending fails" in str(report)


def test_unknown_rule_to_skip_is_told(random_backbone):
    with pytest.raises(ValueError, match="unknown rule: .*got 'full netwrok'. Did you mean full network"):
        check_task(tasks.Sound(random_backbone()), skip={"full netwrok": "typo"})


def test_task_and_generator_are_left_as_they_were(random_backbone):
    task = tasks.Sound(random_backbone())
    training, state = task.training, torch.get_rng_state()
    check_task(task)
    assert task.training == training
    assert torch.equal(torch.get_rng_state(), state)


def test_images_of_ones_own_are_used(random_backbone):
    report = check_task(tasks.Sound(random_backbone()), torch.rand(3, 1, 8, 8), tables=1)
    assert set(report.passed) == set(RULES)
