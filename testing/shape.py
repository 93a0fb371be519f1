"""Rules of form: what a task declares, gives and ends with. The other rules need them to hold."""

from collections.abc import Iterator

import torch

from ..envs.choice import cost_dtype
from ..envs.state import State
from .report import Failure
from .trial import Step, Trial


def declaration(trial: Trial) -> Iterator[Failure]:
    """Attributes are there, and are of their kind."""
    task, rule, where = trial.task, "declaration", "__init__"
    for name in ("horizon", "decisions", "observation_shape", "least_macs"):
        if not hasattr(task, name):
            remedy = f"Set self.{name} in __init__, after super().__init__(backbone)."
            yield Failure(rule, f"{name}: expected a value, got none", where, remedy)
            return
    if not isinstance(task.horizon, int) or task.horizon < 1:
        what = f"horizon: expected an integer >= 1, got {task.horizon!r}"
        yield Failure(rule, what, where, "Give the number of decisions at most.")
    if not _integers(task.decisions, 2):
        what = f"decisions: expected a tuple of integers >= 2, got {task.decisions!r}"
        yield Failure(rule, what, where, "Give the options of each part of one decision: (2,) for yes or no.")
    if not _integers(task.observation_shape, 1):
        what = f"observation_shape: expected a tuple of integers >= 1, got {task.observation_shape!r}"
        yield Failure(rule, what, where, "Give the shape of one row of observe().")


def _integers(values: object, least: int) -> bool:
    return isinstance(values, tuple) and values != () and all(isinstance(v, int) and v >= least for v in values)


def pieces(trial: Trial) -> Iterator[Failure]:
    """Every part of every decision has a name of its own."""
    names, count = trial.task.pieces, trial.task.horizon * len(trial.task.decisions)
    if len(names) != count or len(set(names)) != len(names):
        what = f"expected {count} different names, horizon x parts, got {len(names)}: {', '.join(map(str, names[:6]))}"
        yield Failure("pieces", what, "pieces", "Name each part of each decision once, or leave the property out.")


def begin(trial: Trial) -> Iterator[Failure]:
    """The first state is one cohort of all rows, none of which has answered."""
    state, count, rule = trial.task.begin(trial.inputs), len(trial.inputs), "begin"
    if not isinstance(state, State):
        yield Failure(rule, f"expected a State, got {type(state).__name__}", "begin", "Return State.start(…).")
        return
    carried = {"features": state.features, "macs": state.macs, "rows": state.rows, **state.memory}
    if wrong := [f"{len(value)} of {name}" for name, value in carried.items() if len(value) != count]:
        what = f"expected {count} rows, one for each input, got {', '.join(wrong)}"
        yield Failure(rule, what, "begin", "Give State.start features and memory with one row for each input.")
    if state.position != 0 or not bool((state.alive == 1).all()):
        what = f"expected rows at position 0 that have not answered, got position {state.position}"
        yield Failure(rule, what, "begin", "Return State.start(…) as it is; decide and finish in step().")
    if state.macs.dtype != cost_dtype(state.macs.device):
        what = f"expected MACs in {cost_dtype(state.macs.device)}, got {state.macs.dtype}"
        yield Failure(rule, what, "begin", "Pass macs= to State.start; single precision rounds large counts.")


def observation(trial: Trial) -> Iterator[Failure]:
    """What a policy sees has the declared shape, in finite single precision, before every decision."""
    for step in (step for actions in trial.tables for step in trial.walk(actions)):
        where = f"observe at position {step.before.position}"
        seen, expected = step.observed, (len(step.before), *trial.task.observation_shape)
        if tuple(seen.shape) != expected:
            what = f"expected shape {expected}, got {tuple(seen.shape)}"
            yield Failure("observation", what, where, "Make it agree with observation_shape; pad to the widest.")
            return
        if seen.dtype != torch.float32 or not bool(torch.isfinite(seen).all()):
            got = "NaN or infinity" if seen.dtype == torch.float32 else str(seen.dtype)
            yield Failure(
                "observation", f"expected finite float32, got {got}", where, "Convert or scale what it returns."
            )
            return


def ending(trial: Trial) -> Iterator[Failure]:
    """Every row moves on with each decision, and answers with finite logits after at most `horizon` of them."""
    for actions in trial.tables:
        answered = []
        for step in trial.walk(actions):
            if failure := _rows(step) or _position(step, trial) or _answer(step, trial):
                yield failure
                return
            answered += [row for state in step.after for row in state.split_done()[1].rows.tolist()]
        if len(answered) != len(trial.inputs):
            count, horizon = len(trial.inputs), trial.task.horizon
            what = f"expected all {count} rows to answer within horizon = {horizon} decisions, got {len(answered)}"
            yield Failure("ending", what, "the last step", "Call state.finish(logits) there, or raise the horizon.")
            return


def _rows(step: Step) -> Failure | None:
    """Return a failure if rows got lost or doubled."""
    rows = sorted(row for state in step.after for row in state.rows.tolist())
    if rows == sorted(step.before.rows.tolist()):
        return None
    what = f"expected the {len(step.before)} rows that were there, each once, got {len(rows)}"
    where = f"step at position {step.before.position}"
    return Failure("ending", what, where, "Split with state.select, so that every row is in one cohort.")


def _position(step: Step, trial: Trial) -> Failure | None:
    """Return a failure if rows that go on stay where they are, or go beyond the last decision."""
    first, last = step.before.position + 1, trial.task.horizon - 1
    for state in step.after:
        if bool((state.alive > 0).any()) and not first <= state.position <= last:
            expected = f"position {first} … {last}" if first <= last else "no row to go on after the last decision"
            what = f"expected {expected}, got {int((state.alive > 0).sum())} rows under way at {state.position}"
            remedy = "Call state.advance once for each decision, and state.finish after the last."
            return Failure("ending", what, f"step at position {step.before.position}", remedy)
    return None


def _answer(step: Step, trial: Trial) -> Failure | None:
    """Return a failure if rows that have answered have no fit answer."""
    where = f"step at position {step.before.position}"
    for state in (state.split_done()[1] for state in step.after):
        expected = (len(state), trial.task.backbone.num_classes)
        got = None if state.answer is None else tuple(state.answer.shape)
        if len(state) and got != expected:
            remedy = "Pass logits of all classes to state.finish."
            return Failure("ending", f"expected logits of shape {expected}, got {got}", where, remedy)
        if state.answer is not None and not bool(torch.isfinite(state.answer).all()):
            return Failure("ending", "expected finite logits, got NaN or infinity", where, "Look at what was computed.")
    return None
