"""How much more sure of the right class a decision has made: what some rewards pay for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .choice import Hard, random_places
from .rewards import Reward
from .state import State
from .task import Task


def check_gains(task: Task, reward: Reward) -> None:
    """Raise a ValueError if a reward pays for what a task cannot answer in between."""
    if reward.gain_over and not task.has_exits:
        raise ValueError(
            f"reward {reward.config()['name']}: expected a task with exits, which could answer before each "
            f"decision, got {task.name}. Choose another reward: accuracy, cross-entropy."
        )


class Gains:
    """Probabilities of the right class, for rewards that pay for their gain.

    Args:
        task: One that has exits.
        reward: Says over what: `before`, the answer there was; `random`, that after a random other option.
        count: Number of slots.

    Raises:
        ValueError: If the task cannot answer in between.
    """

    def __init__(self, task: Task, reward: Reward, count: int):
        check_gains(task, reward)
        self.task, self.over, self.count = task, reward.gain_over, count
        self.generator = torch.Generator().manual_seed(0)

    def baseline(self, cohorts: Sequence[State], labels: Tensor) -> tuple[Tensor, float]:
        """Return what rows are compared with, before they decide, and the MACs that finding it out took.

        Args:
            cohorts: Rows under way.
            labels: Of all slots. Shape (slots,).
        """
        if self.over != "random":
            return self.confidence(cohorts, labels), 0.0
        states, spent = [], 0.0
        for state in cohorts:
            drawn = torch.randint(1, self.task.decisions[0], (len(state),), generator=self.generator)
            choice = Hard(drawn.to(state.rows.device))
            if self.task.coordinates:
                where = random_places((len(state), self.task.coordinates), self.generator)
                choice = choice.placed(where.to(state.rows.device))
            after = self.task.step(state, choice)
            states += after if isinstance(after, list) else [after]
            spent -= float(state.macs.sum())
        return self.confidence(states, labels), spent + sum(float(state.macs.sum()) for state in states)

    def confidence(self, states: Sequence[State], labels: Tensor) -> Tensor:
        """Return the probability of the right class, as rows have answered or would now; 0 in other slots."""
        found = torch.zeros(self.count, device=labels.device)
        for part in (part for state in states for part in state.split_done()):
            if len(part):
                found[part.rows] = right_probability(answer_of(self.task, part), labels[part.rows])
        return found


def answer_of(task: Task, state: State) -> Tensor:
    """Return the logits that rows have answered with, or would now. All have answered, or none has."""
    done = state.answer is not None and bool((state.alive == 0).all())
    return state.answer if done and state.answer is not None else task.answer_now(state)


def right_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the probability of the right class. Shapes (N, classes), (N,) to (N,)."""
    return logits.softmax(1).gather(1, labels.unsqueeze(1))[:, 0]
