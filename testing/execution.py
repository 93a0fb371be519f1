"""Rules of execution: the same decisions mean the same to every choice, whoever else is in the batch."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..envs.choice import Choice, Hard, Masked, Soft
from ..envs.rollout import relax
from ..envs.state import State
from .report import Failure
from .trial import Kind, Trace, Trial, close, difference, same_cost


def repeatable(trial: Trial) -> Iterator[Failure]:
    """The same inputs and decisions give the same again, whatever the global random generator does."""
    runs = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            runs.append(trial.follow(trial.mixed))
    if found := difference(*runs):
        what = f"expected the same {found[0]} from the same inputs and decisions, got one {found[2]:.3g} off"
        remedy = "Draw nothing at random in a task, and keep nothing between runs but in the State."
        yield Failure("determinism", what, f"row {found[1]}, the second time", remedy)


def masked(trial: Trial) -> Iterator[Failure]:
    """Branches run on their own rows give what branches run on all rows, then selected, give."""
    remedy = "Decide by choice.among, and compute nothing across the rows that a branch gets."
    yield from _alike(trial, "routed = masked", Masked, remedy)


def spared(trial: Trial) -> Iterator[Failure]:
    """A task that spares its states' features gives the same where they are overwritten."""
    if trial.task.spares_features:
        remedy = "Look at state.features before choice.among only, and keep no view of them; or do not spare them."
        yield from _alike(trial, "features spared", partial(Hard, overwrites=True), remedy)


def one_hot(trial: Trial) -> Iterator[Failure]:
    """Weights of one and zero give what actions give."""
    remedy = "Use choice.among, .cost, .weight and .part only, and let state.advance and state.finish add up."
    yield from _alike(trial, "soft at one-hot", trial.soft, remedy)


def _alike(trial: Trial, rule: str, kind: Kind, remedy: str) -> Iterator[Failure]:
    for actions, routed in zip(trial.tables, trial.routed, strict=True):
        if found := difference(trial.follow(actions, kind), routed):
            what = f"expected the {found[0]} of routed execution, got one {found[2]:.3g} off"
            yield Failure(rule, what, f"row {found[1]}, decisions {actions[found[1]].flatten().tolist()}", remedy)
            return


def alone(trial: Trial) -> Iterator[Failure]:
    """A row gives the same alone as among others."""
    together = trial.follow(trial.mixed)
    for row in range(len(trial.inputs)):
        one = slice(row, row + 1)
        among = Trace(together.logits[one], together.macs[one], together.observed[one])
        if found := difference(trial.follow(trial.mixed[one], inputs=trial.inputs[one]), among):
            what = f"expected the {found[0]} of a row alone to be that in a batch, got one {found[2]:.3g} off"
            remedy = "Compute each row from itself only: no mean, maximum or sort over the batch."
            yield Failure("neighbours", what, f"row {row}", remedy)
            return


def effect(trial: Trial) -> Iterator[Failure]:
    """Answers differ between inputs, and each part of each decision changes some row's answer or cost."""
    if all(close(run.logits, run.logits[:1].expand_as(run.logits)) for run in trial.routed):
        what, remedy = "expected answers that differ between inputs, got one for all", "Look at what finish() is given."
        yield Failure("effect", what, "state.finish", f"{remedy} Or the backbone answers alike: give it other weights.")
        return
    for index, piece in enumerate(trial.task.pieces):
        if not any(_matters(trial, *table, index) for table in zip(trial.tables, trial.routed, strict=True)):
            what = "expected every decision to change an answer or a cost, got one that changes nothing"
            yield Failure("effect", what, piece, "Leave the decision out, or use its choice in step().")
            return


def _matters(trial: Trial, actions: Tensor, run: Trace, index: int) -> bool:
    """Return whether another option of one piece changes anything."""
    position, part = divmod(index, len(trial.task.decisions))
    changed = actions.clone()
    changed[:, position, part] = (changed[:, position, part] + 1) % trial.task.decisions[part]
    other = trial.follow(changed)
    return not (close(other.logits, run.logits) and same_cost(other.macs, run.macs))


def staying_done(trial: Trial) -> Iterator[Failure]:
    """A row that has answered keeps its answer and its cost, though others of its batch go on."""
    for actions in trial.tables:
        for before, after in _together(trial, actions):
            gone = before.alive == 0
            for name in ("alive", "answer", "macs"):
                old, new = getattr(before, name), getattr(after, name)
                if old is not None and not torch.equal(new[gone], old[gone]):
                    what = f"expected a row that has answered to keep its {name}, got another"
                    remedy = "Change it by state.advance and state.finish only: they leave such rows alone."
                    yield Failure("done stays done", what, f"step at position {before.position}", remedy)
                    return


@torch.no_grad()
def _together(trial: Trial, actions: Tensor) -> Iterator[tuple[State, State]]:
    """Follow decisions without taking out the rows that have answered, as soft choices do."""
    state = trial.task.begin(trial.inputs)
    while state.position < trial.task.horizon and bool((state.alive > 0).any()):
        after = trial.task.step(state, trial.choice(state, actions))
        assert isinstance(after, State)  # tasks that part their rows are not asked
        yield state, after
        state = after


class Mixtures:
    """Random mixtures of the options, with gradients.

    Args:
        trial: Knows the options.

    Attributes:
        logits: Of the mixtures given so far, one tensor for each piece.
    """

    def __init__(self, trial: Trial):
        self.decisions, self.generator = trial.task.decisions, trial.generator
        self.logits: list[Tensor] = []

    def __call__(self, state: State) -> Choice:
        """Mix for all rows."""
        drawn = [torch.randn((len(state), count), generator=self.generator) for count in self.decisions]
        new = [one.to(state.features.device).requires_grad_() for one in drawn]
        self.logits += new
        return Soft([one.softmax(1) for one in new])


def gradient(trial: Trial) -> Iterator[Failure]:
    """Gradients of answer and cost reach the weights of soft decisions, and are finite."""
    task, mixtures = trial.task, Mixtures(trial)
    run = relax(task, task.begin(trial.inputs), mixtures)
    slopes = {"answer": _slopes(run.logits.square().sum(), mixtures), "cost": _slopes(run.macs.sum(), mixtures)}
    for name, of in slopes.items():
        if not all(bool(torch.isfinite(one).all()) for one in of):
            what = f"expected finite gradients of the {name}, got NaN or infinity"
            remedy = "Keep away from where a function has no slope (sqrt at 0, x / 0): add or clamp before it."
            yield Failure("relaxed gradient", what, name, remedy)
            return
        if not any(bool((one != 0).any()) for one in of):
            what = f"expected the {name} to have a gradient in the decisions, got none"
            remedy = "Use choice.among and choice.cost; no rounding, comparison, detach or no_grad on what is chosen."
            yield Failure("relaxed gradient", what, name, remedy)
            return
    for piece, *of in zip(task.pieces, *slopes.values(), strict=False):  # all may have answered before the last
        if not any(bool((one != 0).any()) for one in of):
            what = "expected a gradient of answer or cost in every decision, got none in one"
            yield Failure("relaxed gradient", what, piece, "Use its choice by choice.among and choice.cost.")
            return


def _slopes(value: Tensor, mixtures: Mixtures) -> list[Tensor]:
    """Return the gradient in each piece's logits; zero where there is none."""
    if not value.requires_grad:
        return [torch.zeros_like(one) for one in mixtures.logits]
    found = torch.autograd.grad(value, mixtures.logits, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(one) if of is None else of for one, of in zip(mixtures.logits, found, strict=True)]
