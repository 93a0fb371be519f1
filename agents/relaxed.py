"""Gates as weights: every branch of the frozen network runs, mixed by weights, so that gradients reach the gates."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..envs.choice import Soft, products, together
from ..envs.engine import Engine
from ..envs.rollout import Relaxed, relax
from ..envs.state import State
from ..envs.tally import Tally
from ..envs.task import Task
from .gate import Gate, open_wide
from .learner import Learner, Setting
from .policy import GatePolicy, check_logits

Draw = Callable[[Tensor], Tensor]
"""From the logits of one part (N, options) to weights of the same shape, rows summing to 1."""


def gumbel(temperature: float, *, hard: bool = True) -> Draw:
    """Return the Gumbel-softmax draw (Jang et al. 2017): with `hard` one option forward, the softmax backward."""

    def draw(logits: Tensor) -> Tensor:
        weights = F.gumbel_softmax(logits, temperature)
        return through(weights, weights.argmax(1)) if hard else weights

    return draw


def soft(logits: Tensor) -> Tensor:
    """Return probabilities as weights: nothing is drawn."""
    return F.softmax(logits, 1)


def sampled(logits: Tensor) -> Tensor:
    """Return one drawn option as weights, with the gradient of the probabilities (straight through)."""
    return through(F.softmax(logits, 1), torch.distributions.Categorical(logits=logits.detach()).sample())


def through(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Return one-hot weights with the gradient of the probabilities. Shapes (N, options), (N,) to (N, options)."""
    return F.one_hot(chosen, probabilities.shape[1]) + (
        probabilities - probabilities.detach()
    )  # in this order: exactly 1


class Metered(Soft):
    """Soft choices that count what running every branch costs.

    Args:
        weights: As for `Soft`.
        spent: Is added to, in MACs of one row; shared by all parts.
        mixed: Likewise, what the mixture costs each row. Each (N,).
    """

    def __init__(self, weights: Sequence[Tensor] | Tensor, spent: list[float], mixed: list[Tensor]):
        super().__init__(weights)
        self.spent, self.mixed = spent, mixed

    def cost(self, costs: Sequence[float]) -> Tensor:
        """Return what the mixture costs, and count all branches."""
        self.spent.append(float(sum(costs)))
        self.mixed.append(super().cost(costs))
        return self.mixed[-1]

    def charged(self, macs: Tensor, *, most: float) -> Tensor:
        """Return the cost of what is left, and count all of it."""
        self.spent.append(most)
        self.mixed.append(macs)
        return macs

    def part(self, index: int) -> "Metered":
        """Return the weights of one part."""
        return Metered(self.weights[index], self.spent, self.mixed)

    def within(self, place: Tensor, options: int) -> "Metered":
        """Return the products of the places' weights and the options': the branches of all places run."""
        return Metered(products(place, self.weights[0]), self.spent, self.mixed)

    def merged(self, groups: Sequence[int]) -> "Metered":
        """Return the sums of the weights of each group."""
        return Metered(together(self.weights[0], groups), self.spent, self.mixed)


class SoftDecider:
    """A gate as `relax` wants it; all rows stay together.

    Args:
        task: Says what the gate sees.
        gate: The network.
        price: Shown to it. Shape (N,).
        draw: From logits to weights.

    Attributes:
        observations: What the gate was shown so far, without gradients; each (N, ...).
        weights: Of each piece so far, each (N, options).
        drawn_from: Logits of each piece so far, each (N, options).
        before: MACs that each row had spent before each position, policy aside. Each (N,).
        macs: The gate's cost so far. Shape (N,).
        spent: MACs of one row that running every branch took.
        mixed: MACs that the mixtures of branches cost. Each (N,).
    """

    def __init__(self, task: Task, gate: Gate, price: Tensor, draw: Draw):
        self.task, self.gate, self.price, self.draw = task, gate, price, draw
        self.gate_macs, self.macs = gate.macs(), torch.zeros_like(price)
        self.observations: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.drawn_from: list[Tensor] = []
        self.before: list[Tensor] = []
        self.spent: list[float] = []
        self.mixed: list[Tensor] = []
        self.memory: Tensor | None = None

    def __call__(self, state: State) -> Metered:
        """Decide for all rows."""
        observation = self.gate.layout.join(self.task.observe(state), state.position, self.price)
        outputs, self.memory = self.gate(observation, self.memory)
        check_logits(outputs.detach())
        logits, place = self.gate.split(outputs)
        parts = list(logits.split(list(self.gate.decisions), 1))
        weights = [self.draw(part) for part in parts]
        self.observations.append(observation.detach())
        self.weights += weights
        self.drawn_from += parts
        self.before.append(state.macs)
        self.macs = self.macs + state.alive * self.gate_macs
        return Metered(weights, self.spent, self.mixed).placed(place)

    def logits(self) -> list[Tensor]:
        """Return the logits of each piece so far, each (N, options); gradients take the observations as given.

        In `__call__` gradients also run through what was observed to earlier weights: right for a relaxed loss, but not
        part of REINFORCE's.
        """
        logits: list[Tensor] = []
        memory = None
        for observation in self.observations:
            outputs, memory = self.gate(observation, memory)
            joined, _ = self.gate.split(outputs)
            logits += joined.split(list(self.gate.decisions), 1)
        return logits

    @property
    def actions(self) -> Tensor:
        """The option of most weight of each piece so far. Shape (N, pieces)."""
        return torch.stack([weights.argmax(1) for weights in self.weights], 1)


@dataclass(frozen=True)
class Trial:
    """One batch under relaxed execution.

    Attributes:
        run: What became of it.
        decider: What was decided.
        labels: The truth. Shape (N,).
        price: Of compute. Shape (N,).
        compute: MACs of each row, gate included, as a share of the full network's; differentiable. Shape (N,).
        error: Cross-entropy of each row. Shape (N,).
        start: Where the rows stood before the first decision.
        aside: MACs that the loss spent on the backbone besides, each of all rows together.
    """

    run: Relaxed
    decider: SoftDecider
    labels: Tensor
    price: Tensor
    compute: Tensor
    error: Tensor
    start: State
    aside: list[float] = field(default_factory=list)


class Objective(Protocol):
    """How weights are drawn from a gate's logits, and what is minimised."""

    def draw(self, progress: float) -> Draw:
        """Return how weights are drawn when a share `progress` of training is done."""
        ...

    def loss(self, trial: Trial, progress: float) -> Tensor:
        """Return what is minimised, a mean over rows."""
        ...


class RelaxedLearner(Learner):
    """Trains a gate by gradients through the frozen network. Subclasses say how weights are drawn, and the loss.

    One loop for all, with Adam; the gate opens everything at first.
    """

    learning_rate: float
    batch_size: int
    recurrent: bool = False

    @abstractmethod
    def begin(self, setting: Setting) -> None:
        """Read the options."""

    @abstractmethod
    def draw(self, progress: float) -> Draw:
        """Return how weights are drawn when a share `progress` of training is done."""

    @abstractmethod
    def loss(self, trial: Trial, progress: float) -> Tensor:
        """Return what is minimised, a mean over rows."""

    def train(self, setting: Setting) -> GatePolicy:
        self.begin(setting)
        setting = setting.on(setting.task, self.batch_size)
        torch.manual_seed(setting.seed)
        gate = setting.gate(recurrent=self.recurrent)
        open_wide(gate.head, setting.task.decisions, alike=setting.task.alike)
        engine = setting.engine(policy_macs=gate.macs())
        gate.trunk.fit(setting.observations(engine))
        return descend(setting, engine, gate, self, torch.optim.Adam(gate.parameters(), self.learning_rate))

    def check(self, task: Task, options: Mapping[str, Any]) -> None:
        check_mixable(task)


@torch.no_grad()
def check_mixable(task: Task) -> None:
    """Raise a ValueError if a task cannot run mixtures of its options, as where a table holds no features to mix."""

    def evenly(state: State) -> Soft:
        shapes = [(len(state), count) for count in task.decisions]
        return Soft([torch.full(shape, 1 / shape[1], device=state.macs.device) for shape in shapes])

    try:
        relax(task, task.begin(task.prepare(task.blank())), evenly)
    except TypeError as error:
        raise ValueError(str(error)) from error


def descend(
    setting: Setting, engine: Engine, gate: Gate, objective: Objective, optimizer: torch.optim.Optimizer
) -> GatePolicy:
    """Train a gate, and whatever else the optimizer holds, on what an engine deals until the monitor says it is done.

    Learning rates fall linearly to a tenth.
    """
    policy, monitor, task = GatePolicy(gate), setting.monitor, setting.task
    rates = [group["lr"] for group in optimizer.param_groups]
    while (progress := monitor.done_share) < 1:
        trial = attempt(task, gate, engine.deal(), objective.draw(progress))
        loss = objective.loss(trial, progress)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - 0.9 * progress)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.record(_tally(task, trial), price=engine.high, loss=loss.item())
        setting.reprice(engine, trial.compute.mean().item())
        monitor.validate(policy)
    return policy


def attempt(task: Task, gate: Gate, dealt: tuple[State, Tensor, Tensor], draw: Draw) -> Trial:
    """Run what an engine dealt (start, labels, prices) under a gate's soft choices."""
    start, labels, price = dealt
    decider = SoftDecider(task, gate, price, draw)
    run = relax(task, start, decider)
    compute = ((run.macs + decider.macs) / task.full_macs).float()
    error = F.cross_entropy(run.logits, labels, reduction="none")
    return Trial(run, decider, labels, price, compute, error, start)


def _tally(task: Task, trial: Trial) -> Tally:
    """Return the figures of a trial. The backward pass through the backbone is counted like the forward one.

    There is none where a task has exits of two options: what goes on is not mixed, so that gradients reach the gates by
    the answers' shares alone. Where several options go on, states are mixed. The last head is part of the last stage.
    """
    tally, actions = Tally(len(task.pieces)), trial.decider.actions
    tally.count(0, actions)
    compute, begun, spent = trial.compute.detach(), trial.decider.before[0], sum(trial.decider.spent)
    if not task.has_exits:  # what the answer cost beyond the decisions, such as the head
        spent = spent + trial.run.macs.detach() - begun - sum(one.detach() for one in trial.decider.mixed)
    mixed = not task.has_exits or task.alike or max(task.decisions) > 2
    tally.finish(
        reward=-trial.error.detach() - trial.price * compute,
        correct=(trial.run.logits.argmax(1) == trial.labels).float(),
        compute=compute,
        backbone_macs=begun + (2 * spent if mixed else spent),
    )
    tally.backbone_macs += sum(trial.aside)
    return tally
