"""Threshold methods: leave at the first exit whose answer looks sure enough. No training; the field's baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import Part
from ..envs.choice import Hard
from ..envs.rollout import rollout
from ..envs.state import State
from ..envs.task import Task
from ..names import unknown
from .baselines import check_budget
from .policy import Policy

Score = Literal["max-softmax", "entropy", "patience"]

METHODS: dict[str, Score] = {
    "threshold": "max-softmax",
    "threshold-entropy": "entropy",
    "threshold-patience": "patience",
}
"""Names on the command line and in tables, and what each looks at."""

SHARES = 1e4
"""The dearest and the cheapest distribution tried: from exit to exit so many times more, or fewer, are to leave."""


class ThresholdPolicy(Policy):
    """Leaves at the first exit whose score reaches the exit's threshold. It costs nothing but element-wise work.

    Args:
        score: `max-softmax`, the largest probability (MSDNet, Huang et al. 2018); `entropy`, minus the entropy in nats
            (BranchyNet, Teerapittayanon et al. 2016); `patience`, how many exits in a row before have named the same
            class (PABEE, Zhou et al. 2020).
        thresholds: One for each exit, or one for all.
        onward: By which option it goes on from each exit; 1 where none are given.

    Raises:
        ValueError: If the score is unknown or a threshold lies out of its range.
    """

    sees_answer = True
    thresholds: Tensor

    def __init__(self, score: Score, thresholds: Sequence[float] | float, *, onward: Sequence[int] = ()):
        super().__init__()
        if score not in get_args(Score):
            raise ValueError(unknown("score", score, get_args(Score)))
        values = [float(one) for one in (thresholds if isinstance(thresholds, Sequence) else [thresholds])]
        low, high = _RANGES[score]
        if not values or not all(low <= one <= high or one == NEVER for one in values):
            raise ValueError(
                f"thresholds: expected one or more from {low:g} to {high:g} for {score}, or {NEVER:g} to leave at no "
                f"score, got {values}. Calibrate them: skipgym evaluate threshold --compute …."
            )
        self.score: Score = score
        self.onward = list(onward)
        self.register_buffer("thresholds", torch.tensor(values))

    def act(self, features: Tensor, state: State, price: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return 0, to answer, where the score reaches the threshold. `features` are the answer's logits."""
        scores, memory = _score(self.score, features, memory)
        index = state.position if len(self.thresholds) > 1 else 0
        if index >= len(self.thresholds):
            raise ValueError(
                f"thresholds: expected one for each exit, got {len(self.thresholds)} at exit {index + 1}. "
                "They were calibrated on another task."
            )
        option = self.onward[state.position] if self.onward else 1
        return option * (scores < self.thresholds[index]).long().unsqueeze(1), memory

    def config(self) -> dict[str, Any]:
        """Return how to build it again (JSON)."""
        kind = {"kind": "threshold", "score": self.score, "thresholds": self.thresholds.tolist()}
        return {**kind, "onward": self.onward} if self.onward else kind


NEVER = 1e8
"""A threshold that no score reaches; finite, as JSON wants it."""

_RANGES: dict[Score, tuple[float, float]] = {"max-softmax": (0.0, 1.0), "entropy": (-100.0, 0.0), "patience": (0, 1e4)}


def _score(score: Score, logits: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return how sure answers look, the higher the surer (N,), and what to remember for the next exit."""
    if score == "max-softmax":
        return logits.softmax(1).amax(1).clamp(max=1.0), None
    if score == "entropy":
        log = F.log_softmax(logits, 1)
        return (log.exp() * log).sum(1), None
    named = logits.argmax(1)
    before = named.new_full((named.shape[0], 2), -1) if memory is None else memory
    streak = torch.where(before[:, 0] == named, before[:, 1] + 1, 0)
    return streak.float(), torch.stack([named, streak], 1)


@dataclass(frozen=True, eq=False)
class Seen:
    """What N images look like at each of E exits.

    Attributes:
        scores: Shape (N, E).
        correct: Whether the answer at each exit, and last at the end, is right. Shape (N, E + 1).
        compute: What leaving there costs, as a share of the full network's MACs. Shape (E + 1,).
    """

    scores: Tensor
    correct: Tensor
    compute: Tensor

    def spent(self, thresholds: Tensor) -> float:
        """Return the mean compute of leaving at these thresholds. Shape (E,)."""
        return float(self.compute[self.left(thresholds)].mean())

    def accuracy(self, thresholds: Tensor) -> float:
        """Return the share of right answers of leaving at these thresholds. Shape (E,)."""
        return float(self.correct.gather(1, self.left(thresholds).unsqueeze(1)).double().mean())

    def left(self, thresholds: Tensor) -> Tensor:
        """Return at which exit each image leaves; E for the end. Shape (N,)."""
        sure = self.scores >= thresholds
        end = sure.new_ones((len(sure), 1))
        return torch.cat([sure, end], 1).int().argmax(1)  # the first of equals


@torch.inference_mode()
def look(task: Task, part: Part, score: Score, *, batch_size: int = 512) -> Seen:
    """Let every image pass all exits, and keep how sure and how right each answer is.

    Raises:
        ValueError: If the task has no exits.
    """
    check_exits(task)
    found: list[tuple[Tensor, Tensor]] = []
    compute = torch.empty(0)
    for images, labels, _ in part.batches(batch_size):
        watch = _Watch(task, score, len(images))
        run = rollout(task, task.prepare(images), watch)
        answers = torch.stack([*watch.answers, run.logits.argmax(1)], 1)
        found.append((torch.stack(watch.scores, 1).cpu(), answers.cpu() == labels.unsqueeze(1)))
        compute = torch.tensor([*watch.macs, float(run.macs[0])], dtype=torch.double) / task.full_macs
    scores, correct = (torch.cat(column) for column in zip(*found, strict=True))
    return Seen(scores, correct, compute)


class _Watch:
    """Goes on at every exit, the task's way, and notes what each answer looks like; all rows stay together."""

    def __init__(self, task: Task, score: Score, count: int):
        self.task, self.on = task, torch.ones(count, dtype=torch.long, device=task.device)
        self.score: Score = score
        self.memory: Tensor | None = None
        self.scores: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.macs: list[float] = []

    def __call__(self, state: State) -> Hard:
        logits = self.task.answer_now(state)
        scores, self.memory = _score(self.score, logits, self.memory)
        self.scores.append(scores)
        self.answers.append(logits.argmax(1))
        self.macs.append(float(state.macs[0]))
        return Hard(self.on * self.task.onward[state.position])


def quantiles(scores: Tensor, q: float) -> Tensor:
    """Return the thresholds at which shares q, q², q³, … of the images leave (MSDNet's budgeted batches).

    The shares are scaled to sum to 1 over all exits and the end. Exit by exit, the threshold is the score of the last
    of the surest images still there that fill the exit's share.

    Args:
        scores: Shape (N, E).
        q: Above 1 more leave at later exits, below 1 at earlier ones.

    Returns:
        Shape (E,); `NEVER` where nobody is to leave.
    """
    count, exits = scores.shape
    powers = torch.arange(1, exits + 2, dtype=torch.double) * torch.tensor(q, dtype=torch.double).log()
    shares = powers.softmax(0)  # q^k, scaled, without overflow
    here, thresholds = torch.ones(count, dtype=torch.bool), torch.full((exits,), NEVER)
    for index in range(exits):
        leaving = min(int(here.sum()), int(count * float(shares[index])))
        if leaving:
            thresholds[index] = scores[here, index].sort(descending=True).values[leaving - 1]
            here = here & (scores[:, index] < thresholds[index])
    return thresholds


def calibrate(seen: Seen, score: Score, compute: float, *, steps: int = 40) -> Tensor:
    """Return the thresholds that spend as much as a budget allows, on the images that were looked at.

    For patience, whose scores are whole numbers, it is the largest patience that keeps to the budget. For the others
    q of `quantiles` is solved for. Shape (E,).
    """
    exits = seen.scores.shape[1]
    if score == "patience":
        tried = [torch.full((exits,), float(patience)) for patience in range(exits + 1)]
        return [one for one in tried if patience_fits(seen, one, compute)][-1]
    low, high = -torch.tensor(SHARES).log().item(), torch.tensor(SHARES).log().item()
    if seen.spent(never := torch.full((exits,), NEVER)) <= compute:
        return never
    best = torch.full((exits,), _RANGES[score][0])  # all leave at the first exit
    for _ in range(steps):
        middle = (low + high) / 2
        thresholds = quantiles(seen.scores, float(torch.tensor(middle).exp()))
        if seen.spent(thresholds) <= compute:
            low, best = middle, thresholds
        else:
            high = middle
    return best


def patience_fits(seen: Seen, thresholds: Tensor, compute: float) -> bool:
    """Return whether a patience keeps to a budget; none at all, which leaves at the first exit, always does."""
    return float(thresholds[0]) == 0 or seen.spent(thresholds) <= compute


def threshold_policy(task: Task, part: Part, compute: float, *, score: Score = "max-softmax") -> ThresholdPolicy:
    """Return the threshold policy that spends at most a share of the full network's MACs on these images.

    Args:
        task: One that has exits.
        part: Where thresholds are calibrated: never the test part.
        compute: Share of the full network's MACs.
        score: What is looked at.

    Raises:
        ValueError: If the task has no exits, or the budget cannot be reached.
    """
    check_exits(task)
    check_budget(task, compute)
    return _stopping(task, score, calibrate(look(task, part, score), score, compute))


def threshold_at_price(
    task: Task, part: Part, price: float, *, score: Score = "max-softmax", points: int = 50
) -> ThresholdPolicy:
    """Return the policy of the curve over all budgets with the best accuracy minus price x compute on these images."""
    seen = look(task, part, score)
    best = max(curve(seen, score, points), key=lambda t: seen.accuracy(t) - price * seen.spent(t))
    return _stopping(task, score, best)


def _stopping(task: Task, score: Score, thresholds: Tensor) -> ThresholdPolicy:
    """Return the policy that stops at thresholds on the task's way."""
    return ThresholdPolicy(score, thresholds.tolist(), onward=task.onward if task.alike else ())


def curve(seen: Seen, score: Score, points: int = 50) -> list[Tensor]:
    """Return the thresholds for budgets from the cheapest way through to the dearest, in even steps."""
    budgets = torch.linspace(float(seen.compute[0]), float(seen.compute[-1]), points, dtype=torch.double).tolist()
    return [calibrate(seen, score, budget) for budget in budgets]


def check_exits(task: Task | type[Task], name: str = "threshold") -> None:
    """Raise a ValueError unless a task has exits."""
    if not task.has_exits:
        raise ValueError(
            f"{name}: expected a task whose backbone has exits, got {task.name}, which answers only at the end. "
            "Leave it out, or compare on another task."
        )
