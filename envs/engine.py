"""Batched episodes: the one engine behind the single, the vector and the SB3 environment.

Everything is a tensor on the task's device; the faces convert where they must.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor

from ..data import Augment, Part
from .choice import Hard, cost_dtype
from .gains import Gains
from .observation import Layout
from .rewards import Outcome, Reward, Spent
from .rollout import advance
from .state import State, merge
from .tally import Tally
from .task import Task
from .view import View

Price = float | Sequence[float]

AHEAD = 64
"""Episodes for which a slot's random numbers are drawn at a time."""


@dataclass(frozen=True)
class Transition:
    """What one step gave, for all slots.

    Attributes:
        observation: Of the next decision; where an episode ended, of the next episode. Shape (N, ...).
        reward: Shape (N,).
        done: Whether an episode ended. Shape (N,).
        correct: Whether its answer was right; 0 where none ended. Shape (N,).
        macs: What it cost, policy included; 0 where none ended. Shape (N,).
        kept: Number of pieces that it executed. Shape (N,).
    """

    observation: Tensor
    reward: Tensor
    done: Tensor
    correct: Tensor
    macs: Tensor
    kept: Tensor


class Engine:
    """N slots, each playing one episode after the other; an episode is one image.

    Each slot draws its images, augmentation and prices from its own random generator, so what it sees depends on its
    seed and not on its neighbours.

    Args:
        task: What is decided.
        data: The images that are dealt.
        reward: What is paid.
        price: Of compute: a number, or a range from which each episode draws one, shown to the policy; log-uniformly
            where the range begins above 0.
        num_envs: Number of slots.
        augment: How images are varied; not at all by default.
        policy_macs: What one decision of the policy costs, in MACs; it is charged as compute.
        choose: How actions are executed: `Masked` runs everything, to compare against.
    """

    def __init__(
        self,
        task: Task,
        data: Part,
        *,
        reward: Reward,
        price: Price,
        num_envs: int,
        augment: Augment | None = None,
        policy_macs: int = 0,
        choose: type[Hard] = Hard,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs: expected at least 1, got {num_envs}.")
        self.low, self.high = _price_range(price)
        self.task, self.reward, self.num_envs, self.policy_macs = task, reward, num_envs, policy_macs
        self.choose = choose
        self.gains = Gains(task, reward, num_envs)
        self.augment = augment or Augment()
        self.layout = Layout.of(task, priced=isinstance(price, Sequence))
        self.images, self.labels = data.images.to(task.device), data.labels.to(task.device)
        self.tally = Tally(len(task.pieces))
        self.seed(None)
        self._clear()

    def drain(self) -> Tally:
        """Return what happened since the last call."""
        tally, self.tally = self.tally, Tally(len(self.task.pieces))
        return tally

    def set_price(self, price: float) -> None:
        """Change a fixed price, for the episodes under way too. A learner with a compute target does."""
        self.low, self.high = _price_range(price)
        self.price.fill_(price)

    def seed(self, seed: int | Sequence[int | None] | None) -> None:
        """Seed the slots: slot i with `seed + i`, or each with its own; with None from the system's entropy."""
        if seed is None or isinstance(seed, int | np.integer):
            seed = [None if seed is None else seed + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"seed: expected one number, or one for each of {self.num_envs} slots, got {seed}.")
        self.generators = [np.random.default_rng(one) for one in seed]
        self.drawn = np.empty((self.num_envs, AHEAD, 2 + self.augment.draws))
        self.used = np.full(self.num_envs, AHEAD)

    @torch.no_grad()
    def reset(self) -> Tensor:
        """Start an episode in every slot and return the observations."""
        self._clear()
        self.cohorts = [self._deal(self.slots)]
        return self._observe()

    @torch.no_grad()
    def step(self, actions: Tensor, *, deal: bool = True) -> Transition:
        """Decide once in every slot.

        Args:
            actions: Elements of the task's action space. Shape (N,) or (N, parts), integers; (N, 1 + coordinates)
                where decisions have a place.
            deal: Where an episode ends, begin the next at once (SAME_STEP); otherwise the slot stays empty and its
                observation is zero.

        Raises:
            gymnasium.error.ResetNeeded: If no slot has an episode under way.
        """
        if not self.cohorts:
            raise ResetNeeded("No episode is under way: expected reset(), got step().")
        decision = self.task.choice(actions.to(self.slots.device), self.choose)
        parts = len(self.task.decisions)

        def decide(state: State) -> Hard:
            choice = decision.select(state.rows)
            self.tally.count(state.position * parts, choice.actions)
            self.view.decided(state, choice)
            return choice

        base = self._gain_base()
        self.cohorts, answered = advance(self.task, self.cohorts, decide, spare=True)
        self.decided += 1
        reward = self._pay_step(decision.actions, self.cohorts + answered, base)
        self.returns += reward
        done, correct, macs, kept = reward.new_zeros((4, self.num_envs)).unbind()
        if answered:
            for state in answered:
                outcome = self._outcome(state)
                final = self.reward.end(outcome)
                reward[state.rows] += final
                self.returns[state.rows] += final
                done[state.rows], correct[state.rows] = 1, outcome.correct
                macs[state.rows] = self.total_macs(state).to(macs.dtype)
                kept[state.rows] = outcome.kept
                self._count(state, outcome)
            if deal:
                fresh = self._deal(torch.cat([state.rows for state in answered]).sort().values)
                self.cohorts = merge([fresh, *self.cohorts])
        return Transition(self._observe(), reward, done.bool(), correct, macs, kept)

    @torch.no_grad()
    def deal(self) -> tuple[State, Tensor, Tensor]:
        """Begin an episode in every slot for a learner that follows the task itself.

        Returns:
            The state before the first decision, the labels (N,) and the prices (N,).
        """
        self._clear()
        self.cohorts = [self._deal(self.slots)]
        return self.cohorts[0], self.targets.clone(), self.price.clone()

    def total_macs(self, state: State) -> Tensor:
        """Return what rows have spent, policy included. Shape (N,)."""
        return state.macs + self.decided[state.rows] * self.policy_macs

    def _clear(self) -> None:
        """Leave every slot without an episode."""
        count, device = self.num_envs, self.task.device
        self.cohorts: list[State] = []
        self.view = View(self.task, count)
        self.slots = torch.arange(count, device=device)
        self.targets, self.indices, self.decided = (
            torch.zeros(count, dtype=torch.long, device=device) for _ in range(3)
        )
        self.price, self.kept, self.returns = (torch.zeros(count, device=device) for _ in range(3))
        self.charged = torch.zeros(count, dtype=cost_dtype(device), device=device)

    def _deal(self, slots: Tensor) -> State:
        """Begin an episode in each of these slots."""
        draws = self._draw(slots.cpu().numpy())
        uniforms = torch.as_tensor(draws, dtype=torch.float32, device=self.task.device)
        index = torch.as_tensor((draws[:, 0] * len(self.images)).astype(np.int64), device=self.task.device)
        images = self.augment.apply(self.images.index_select(0, index), uniforms[:, 2:])
        self.indices[slots], self.targets[slots] = index, self.labels[index]
        self.view.forget(slots)
        self.price[slots] = self._prices(uniforms[:, 1])
        for tally in (self.kept, self.returns, self.decided, self.charged):
            tally[slots] = 0
        return replace(self.task.begin(self.task.prepare(images)), rows=slots)

    def _prices(self, uniforms: Tensor) -> Tensor:
        """Return prices from uniforms, both (N,): even by ratio, as halving a low price matters as much as a high one.

        From a range that begins at 0, even by difference.
        """
        if self.low > 0:
            return self.low * (self.high / self.low) ** uniforms
        return self.high * uniforms

    def _draw(self, slots: np.ndarray) -> np.ndarray:
        """Return each slot's next uniforms; generators are asked for many at a time, which changes nothing drawn."""
        for slot in slots[self.used[slots] == AHEAD].tolist():
            self.generators[slot].random(out=self.drawn[slot])
            self.used[slot] = 0
        draws = self.drawn[slots, self.used[slots]]
        self.used[slots] += 1
        return draws

    def _gain_base(self) -> Tensor | None:
        """Return what a gain is reckoned from, where the reward pays for one. Shape (N,)."""
        if not self.reward.gain_over:
            return None
        base, spent = self.gains.baseline(self.cohorts, self.targets)
        self.tally.backbone_macs += spent
        return base

    def _pay_step(self, actions: Tensor, states: list[State], base: Tensor | None) -> Tensor:
        """Charge what was spent since the last payment, and pay what was gained. Shape (N,)."""
        total = self.charged.clone()  # slots without an episode spend nothing
        for state in states:
            total[state.rows] = self.total_macs(state)
        kept = (actions.view(self.num_envs, -1) > 0).float().sum(1)
        compute = ((total - self.charged) / self.task.full_macs).float()
        self.charged = total
        self.kept += kept
        gain = None if base is None else (self.gains.confidence(states, self.targets) - base) * (kept > 0)
        parts = len(self.task.decisions)
        return self.reward.step(Spent(kept, parts, compute, self.price, len(self.task.pieces), gain))

    def _outcome(self, state: State) -> Outcome:
        rows = state.rows
        assert state.answer is not None
        return Outcome(state.answer, self.targets[rows], self.kept[rows], self.price[rows], len(self.task.pieces))

    def _count(self, state: State, outcome: Outcome) -> None:
        self.tally.finish(
            reward=self.returns[state.rows],
            correct=outcome.correct,
            compute=self.total_macs(state) / self.task.full_macs,
            backbone_macs=state.macs,
        )

    def _observe(self) -> Tensor:
        seen = [
            self.layout.join(self.view.look(state), state.position, self.price[state.rows]) for state in self.cohorts
        ]
        if len(seen) == 1 and torch.equal(self.cohorts[0].rows, self.slots):
            return seen[0] if self.layout.extras else seen[0].clone()  # not to be written over with the state
        out = torch.zeros((self.num_envs, *self.layout.space.shape), device=self.slots.device)
        for state, shown in zip(self.cohorts, seen, strict=True):
            out[state.rows] = shown
        return out


def _price_range(price: Price) -> tuple[float, float]:
    ends = tuple(price) if isinstance(price, Sequence) else (price, price)
    if len(ends) != 2 or not 0 <= ends[0] <= ends[1] < float("inf"):
        raise ValueError(f"price: expected a number >= 0, or a range (low, high) of such, got {price}.")
    return float(ends[0]), float(ends[1])
