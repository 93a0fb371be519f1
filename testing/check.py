"""Check a task against every promise that the rest of skipgym relies on."""

import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..envs.task import Task
from ..names import unknown
from . import cost, execution, keeping, shape
from .report import Failure, Report, SkippedRuleWarning, TaskError
from .trial import Trial

Rule = Callable[[Trial], Iterator[Failure]]

FORM: dict[str, Rule] = {
    "declaration": shape.declaration,
    "pieces": shape.pieces,
    "begin": shape.begin,
    "observation": shape.observation,
    "ending": shape.ending,
}
"""Where one of these fails, nothing else can be asked."""

TOGETHER: dict[str, Rule] = {
    "done stays done": execution.staying_done,
    "soft at one-hot": execution.one_hot,
    "relaxed gradient": execution.gradient,
}
"""Only for tasks that keep their rows together, as learners by gradient need them."""

RULES: dict[str, Rule] = {
    **FORM,
    "determinism": execution.repeatable,
    "left as they are": keeping.inputs_kept,
    "frozen": keeping.frozen,
    "routed = masked": execution.masked,
    "features spared": execution.spared,
    "neighbours": execution.alone,
    "effect": execution.effect,
    **TOGETHER,
    "cost adds up": cost.adding_up,
    "cost counted": cost.counted,
    "skipping": cost.truly_skipped,
    "least cost": cost.cheapest,
    "full network": cost.everything,
    "configuration": keeping.configuration,
    "pickling": keeping.pickling,
    "environment": keeping.environment,
}
"""All rules, the more basic first."""


def check_task(
    task: Task,
    images: Tensor | None = None,
    *,
    skip: Mapping[str, str] | None = None,
    seed: int = 0,
    count: int = 5,
    tables: int = 3,
) -> Report:
    """Check that a task keeps its promises, on a backbone with any weights.

    Args:
        task: The task, built around a backbone; a tiny one with random weights serves best.
        images: What to try it on, (N, C, H, W) or clips, uint8 or floats in 0…1; noise of their shape by default.
        skip: Rules that do not hold of this task by its nature, each with the reason.
        seed: Of the noise and of the decisions.
        count: Number of images of noise.
        tables: Tables of random decisions to follow, beside leaving out and executing everything.

    Returns:
        What was checked. For each rule that was not, a `SkippedRuleWarning` says why.

    Raises:
        TaskError: If a rule fails; it names all failures, each with what is wrong, where, and what to do.
        ValueError: If `skip` names no rule.
    """
    for name in skip or {}:
        if name not in RULES:
            raise ValueError(unknown("rule", name, RULES))
    if images is None:
        generator = torch.Generator().manual_seed(seed)
        shape = (count, *task.blank().shape[1:])
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    report = _run(Trial(task, images, seed=seed, tables=tables), skip or {})
    if report.failures:
        raise TaskError(report)
    for name, why in report.skipped.items():
        warnings.warn(f"{report.task}: rule {name} was not checked: {why}", SkippedRuleWarning, stacklevel=2)
    return report


def _run(trial: Trial, skip: Mapping[str, str]) -> Report:
    """Try rule by rule."""
    passed: list[str] = []
    failures: list[Failure] = []
    skipped: dict[str, str] = {}
    for name, rule in RULES.items():
        if why := skip.get(name) or _why_not(name, trial, failures):
            skipped[name] = why
            continue
        found = _try(name, rule, trial)
        failures += found
        passed += [] if found else [name]
    return Report(trial.task.name or type(trial.task).__name__, passed, skipped, failures)


def _why_not(name: str, trial: Trial, failures: list[Failure]) -> str | None:
    """Return why a rule cannot be asked of this task, None if it can."""
    form = [failure.rule for failure in failures if failure.rule in FORM]
    if form and (name not in FORM or form[0] == "declaration"):
        return f"{form[0]} fails"
    if name == "full network" and not trial.task.reaches_full:
        return "no way through is the untouched network, as reaches_full says"
    if name in TOGETHER and trial.parts_rows:
        return "the task parts its rows, which soft choices cannot follow: train it with learners that sample"
    return None


def _try(name: str, rule: Rule, trial: Trial) -> list[Failure]:
    """Return what a rule finds; an error of the task is a failure too."""
    try:
        return list(rule(trial))
    except Exception as error:  # whatever somebody's code raises
        what = f"expected no error, got {type(error).__name__}: {error}"
        return [Failure(name, what, _where(error, trial), "Mend the error; the rule could not be tried.")]


def _where(error: Exception, trial: Trial) -> str:
    """Return the last line of the task's own code in a traceback, else the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.name in vars(type(trial.task)) or f.name in ("begin", "observe", "step")]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno}, in {last.name}"
