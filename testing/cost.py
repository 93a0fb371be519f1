"""Rules of cost: what is charged is what ran."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..backbones.cost import count_macs
from ..envs.state import State
from .report import Failure
from .trial import Step, Trial, close, said, same_cost


def adding_up(trial: Trial) -> Iterator[Failure]:
    """What a row has spent never falls."""
    for step in (step for actions in trial.tables for step in trial.walk(actions)):
        if failure := _fallen(step):
            yield failure
            return


def _fallen(step: Step) -> Failure | None:
    spent = dict(zip(step.before.rows.tolist(), step.before.macs.tolist(), strict=True))
    for state in step.after:
        for row, macs in zip(state.rows.tolist(), state.macs.tolist(), strict=True):
            if not spent[row] <= macs < float("inf"):
                what = f"expected MACs that never fall, got {macs:,.0f} after {spent[row]:,.0f}"
                where = f"step at position {step.before.position}, row {row}"
                return Failure("cost adds up", what, where, "Add to it by state.advance(…, macs=…) and state.finish.")
    return None


def cheapest(trial: Trial) -> Iterator[Failure]:
    """Option 0 everywhere is the cheapest way through, and costs `least_macs`, less than the full network."""
    task, rule, where = trial.task, "least cost", "least_macs"
    zeros, cheaper = trial.routed[0].macs, min(float(run.macs.min()) for run in trial.routed)
    if not same_cost(zeros, task.least_macs):
        what = f"expected option 0 everywhere to cost least_macs = {task.least_macs:,}, got {said(zeros)}"
        yield Failure(rule, what, where, "Let option 0 be the one that leaves out, and declare what that costs.")
    elif cheaper < task.least_macs - 0.5:
        what = f"expected no way through below least_macs = {task.least_macs:,}, got one of {cheaper:,.0f}"
        yield Failure(rule, what, where, "Order the options of each decision from the cheapest to the dearest.")
    if task.least_macs >= task.full_macs:
        what = f"expected less than the full network's {task.full_macs:,}, got {task.least_macs:,}: nothing to save"
        yield Failure(rule, what, where, "Refuse a backbone in __init__ on which nothing can be left out.")


def everything(trial: Trial) -> Iterator[Failure]:
    """The last option everywhere is the untouched network: its answers, its cost and what deciding costs."""
    task, run, where = trial.task, trial.routed[1], "the last option everywhere"
    remedy = "Let the last option execute; where a task has no such way, pass skip={'full network': 'why'}."
    with torch.no_grad():
        expected = task.untouched(trial.images)
    if not close(run.logits, expected):
        gap = float((run.logits - expected).abs().max())
        what = f"expected the answers of the untouched network, got logits up to {gap:.3g} off"
        yield Failure("full network", what, where, remedy)
    name = "most_macs" if task.most_macs > task.full_macs else "full_macs"
    if not same_cost(run.macs, getattr(task, name)):
        what = f"expected a cost of {name} = {getattr(task, name):,}, got {said(run.macs)}"
        yield Failure("full network", what, where, remedy)


def counted(trial: Trial) -> Iterator[Failure]:
    """What one row is charged is what torch counts when it runs alone."""
    row = trial.inputs[:1]
    for actions in (actions[:1] for actions in trial.tables):
        ran = _count(trial, lambda a=actions: trial.follow(a, inputs=row))
        charged = trial.follow(actions, inputs=row).macs
        if not same_cost(charged, ran):
            what = f"expected one row to be charged the {ran:,} MACs that ran, got {said(charged)}"
            remedy = "Charge it where it runs: macs= of start, advance and finish, choice.cost for what is chosen."
            yield Failure("cost counted", what, _place(trial, actions), remedy)
            return


def truly_skipped(trial: Trial) -> Iterator[Failure]:
    """In a batch of rows that choose differently, no branch runs on rows that did not choose it."""
    for actions in trial.tables:
        ran, charged = _count(trial, lambda a=actions: trial.follow(a)), trial.follow(actions).macs.sum()
        if not same_cost(charged, ran):
            what = f"expected a batch to run the {said(charged)} MACs that its rows are charged, got {ran:,}"
            remedy = "Let choice.among run the branches: it gives each its own rows only."
            yield Failure("skipping", what, f"a batch of {len(actions)} that choose differently", remedy)
            return


def _count(trial: Trial, run: Callable[[], object]) -> int:
    return count_macs(lambda _: run(), trial.inputs[:1])


def _place(trial: Trial, actions: Tensor) -> str:
    """Return where what ran and what was charged part: at the beginning, or at a decision."""
    row = trial.inputs[:1]
    with torch.no_grad():
        if not same_cost(trial.task.begin(row).macs, _count(trial, lambda: trial.task.begin(row))):
            return "begin"
        for step in trial.walk(actions, inputs=row):
            if not same_cost(_added(step), _count(trial, lambda s=step.before: _again(trial, s, actions))):
                chosen = said(trial.at(step.before, actions).double())
                return f"observe or step at position {step.before.position}, option {chosen}"
    return "the whole way"


def _added(step: Step) -> Tensor:
    return torch.stack([state.macs.sum() for state in step.after]).sum() - step.before.macs.sum()


def _again(trial: Trial, state: State, actions: Tensor) -> None:
    """Take a decision once more, to be counted."""
    trial.task.observe(state)
    trial.task.step(state, trial.choice(state, actions))
