"""REINFORCE with a self-critical baseline, bounded probabilities and a curriculum (BlockDrop, Wu et al. 2018)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..envs.choice import Hard
from ..envs.gains import right_probability
from ..envs.rewards import Outcome, Reward, Spent
from ..envs.rollout import Run, follow
from ..envs.state import State
from ..envs.tally import Tally
from ..envs.task import Task
from .gate import Gate
from .learner import Learner, Setting, read_options, register_agent
from .policy import Decider, GatePolicy, Policy, check_logits


@dataclass(frozen=True, kw_only=True)
class ReinforceOptions:
    """What REINFORCE can be told."""

    learning_rate: float = 1e-3
    """Of Adam."""
    batch_size: int = 64
    """Images in a step, at most; each is run twice."""
    entropy: float = 0.01
    """Weight of the entropy; BlockDrop's release uses 0.1 with rewards down to -5."""
    bound: float = 0.8
    """Probabilities are pulled in: p becomes bound·p + (1 - bound)·(1 - p)."""
    curriculum: float = 0.3
    """Share of training over which decisions are released one by one, from the last backwards; the others execute."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        shares = 0.5 < self.bound <= 1 and 0 <= self.curriculum <= 1
        if min(self.learning_rate, self.batch_size) <= 0 or self.entropy < 0 or not shares:
            raise ValueError(
                "reinforce: expected learning_rate and batch_size > 0, entropy >= 0, bound in (0.5, 1], curriculum in "
                f"[0, 1]; got {self}."
            )


def bounded(probabilities: Tensor, bound: float) -> Tensor:
    """Pull probabilities in, so that every option keeps being tried. Shape (N, A); for A = 2 as in BlockDrop."""
    return bound * probabilities + (1 - bound) * (1 - probabilities) / (probabilities.shape[1] - 1)


def episode_reward(
    reward: Reward, run: Run, labels: Tensor, price: Tensor, task: Task, policy_macs: int, start: State | None = None
) -> Tensor:
    """Return what whole episodes earn: the rewards are additive, so the steps are paid in one. Shape (N,).

    `start` is the state before the first decision, for rewards that pay for a gain over it.
    """
    pieces, kept = len(task.pieces), run.kept.float()
    decided = run.decided(task.horizon)
    compute = ((run.macs + decided * policy_macs) / task.full_macs).float()
    gain = None
    if reward.gain_over and start is not None:
        gain = right_probability(run.logits, labels) - right_probability(task.answer_now(start), labels)
    spent = Spent(kept, pieces, compute, price, pieces, gain)
    return reward.step(spent) + reward.end(Outcome(run.logits, labels, kept, price, pieces))


class Sampler:
    """Draws actions from a gate and keeps what the gradient needs.

    Args:
        task: Says what the gate sees.
        gate: The network.
        price: Shown to it. Shape (N,).
        bound: See `bounded`.
        forced: So many pieces from the first on are always executed.
        generator: Of the draws.
    """

    def __init__(self, task: Task, gate: Gate, price: Tensor, *, bound: float, forced: int, generator: torch.Generator):
        self.task, self.gate, self.price = task, gate, price
        self.bound, self.forced, self.generator = bound, forced, generator
        self.log_prob, self.entropy = torch.zeros_like(price), torch.zeros_like(price)
        self.memory: Tensor | None = None

    def __call__(self, state: State) -> Hard:
        """Decide for a cohort."""
        memory = None if self.memory is None else self.memory[state.rows]
        observation = self.gate.layout.join(self.task.observe(state), state.position, self.price[state.rows])
        logits, memory = self.gate(observation, memory)
        check_logits(logits.detach())
        if memory is not None:
            whole = memory.new_zeros(len(self.price), memory.shape[1]) if self.memory is None else self.memory
            self.memory = whole.index_copy(0, state.rows, memory)
        parts = logits.split(list(self.gate.decisions), 1)
        first = state.position * len(parts)
        actions = torch.stack([self._draw(part, state.rows, first + i) for i, part in enumerate(parts)], 1)
        return Hard(actions.squeeze(1) if actions.shape[1] == 1 else actions)

    def _draw(self, logits: Tensor, rows: Tensor, piece: int) -> Tensor:
        if piece < self.forced:
            return torch.full_like(rows, self.task.onward[piece])
        probabilities = bounded(F.softmax(logits, 1), self.bound)
        drawn = torch.multinomial(probabilities.detach(), 1, generator=self.generator)
        log = probabilities.log()
        self.log_prob = self.log_prob.index_add(0, rows, log.gather(1, drawn)[:, 0])
        self.entropy = self.entropy.index_add(0, rows, -(probabilities * log).sum(1))
        return drawn[:, 0]


class _Forced(Policy):
    """A policy whose first pieces are always executed; for the baseline during the curriculum."""

    def __init__(self, policy: GatePolicy, forced: int, onward: Sequence[int]):
        super().__init__()
        self.policy, self.forced, self.onward = policy, forced, onward

    def act(self, features: Tensor, state: State, price: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        actions, memory = self.policy.act(features, state, price, memory)
        first = state.position * actions.shape[1]
        pieces = torch.arange(first, first + actions.shape[1], device=actions.device)
        last = torch.tensor(self.onward, device=actions.device)[pieces]
        return torch.where(pieces < self.forced, last, actions), memory


@register_agent("reinforce", "REINFORCE with self-critical baseline and curriculum (BlockDrop)")
class Reinforce(Learner):
    """One sampled and one greedy run of each image; the advantage is the difference of their rewards."""

    def train(self, setting: Setting) -> GatePolicy:
        options = read_options(ReinforceOptions(), setting.agent_options, "reinforce")
        if setting.reward.gain_over == "random":
            raise ValueError(
                "reward gain-over-random: expected a learner that is paid after each decision, got reinforce, whose "
                "baseline is its own greedy run. Use --reward confidence-gain, or --agent ppo."
            )
        setting = replace(setting, num_envs=min(setting.num_envs, options.batch_size))
        torch.manual_seed(setting.seed)
        gate = setting.gate()
        policy = GatePolicy(gate)
        engine = setting.engine(policy_macs=policy.macs)
        gate.trunk.fit(setting.observations(engine))
        optimizer = torch.optim.Adam(gate.parameters(), options.learning_rate)
        generator = torch.Generator(device=setting.task.device).manual_seed(setting.seed)
        monitor, price = setting.monitor, engine.high
        while monitor.done_share < 1:
            state, labels, prices = engine.deal()
            forced = _forced(setting.task, monitor.done_share, options.curriculum)
            sampler = Sampler(setting.task, gate, prices, bound=options.bound, forced=forced, generator=generator)
            sampled = follow(setting.task, state, sampler)
            with torch.no_grad():
                watched = _Forced(policy, forced, setting.task.onward)
                critic = follow(setting.task, state, Decider(setting.task, watched, prices))
            rewards = [
                episode_reward(setting.reward, run, labels, prices, setting.task, policy.macs, state)
                for run in (sampled, critic)
            ]
            advantage = rewards[0] - rewards[1]
            loss = -(advantage * sampler.log_prob).mean() - options.entropy * sampler.entropy.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tally = _tally(setting.task, sampled, critic, rewards[0], labels, policy.macs)
            monitor.record(tally, price=price, loss=loss.item(), entropy=sampler.entropy.mean().item(), forced=forced)
            if setting.lagrange:
                price = setting.lagrange.update(tally.means()["compute"], monitor.done_share)
                engine.set_price(price)
            monitor.validate(policy)
        return policy

    def check(self, task: Task, options: Mapping[str, Any]) -> None:
        read_options(ReinforceOptions(), options, "reinforce")


def _forced(task: Task, progress: float, curriculum: float) -> int:
    """Return how many pieces, from the first on, are not yet released."""
    if curriculum == 0:
        return 0
    released = 1 + int(progress / curriculum * (len(task.pieces) - 1))
    return max(0, len(task.pieces) - released)


def _tally(task: Task, sampled: Run, critic: Run, reward: Tensor, labels: Tensor, policy_macs: int) -> Tally:
    tally = Tally(len(task.pieces))
    tally.count(0, sampled.actions)
    tally.finish(
        reward=reward,
        correct=(sampled.logits.argmax(1) == labels).float(),
        compute=(sampled.macs + sampled.decided(task.horizon) * policy_macs) / task.full_macs,
        backbone_macs=sampled.macs + critic.macs,
    )
    return tally
