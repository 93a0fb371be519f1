"""REINFORCE with a self-critical baseline, bounded probabilities and a curriculum (BlockDrop, Wu et al. 2018)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..envs.gains import right_probability
from ..envs.rewards import Outcome, Reward, Spent
from ..envs.rollout import Run
from ..envs.tally import Tally
from ..envs.task import Task
from .learner import Learner, Setting, read_options, register_agent
from .policy import GatePolicy
from .twins import Pair, follow_both


@dataclass(frozen=True, kw_only=True)
class ReinforceOptions:
    """What REINFORCE can be told."""

    learning_rate: float = 1e-3
    """Of Adam, for up to 64 images in a step; in proportion for more."""
    batch_size: int = 256
    """Images in a step, at most; each is run twice. Fewer are little work for each operation."""
    entropy: float = 0.01
    """Weight of the entropy; BlockDrop's release uses 0.1 with rewards down to -5."""
    bound: float = 0.8
    """Probabilities are pulled in: p becomes bound·p + (1 - bound)·(1 - p)."""
    curriculum: float = 0.3
    """Share of training over which decisions are released one by one, from the last backwards; the others execute."""
    spread: float = 0.2
    """Standard deviation with which continuous places, -1 … 1, are drawn around the gate's (RAM, Mnih et al. 2014)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        shares = 0.5 < self.bound <= 1 and 0 <= self.curriculum <= 1
        if min(self.learning_rate, self.batch_size, self.spread) <= 0 or self.entropy < 0 or not shares:
            raise ValueError(
                "reinforce: expected learning_rate, batch_size and spread > 0, entropy >= 0, bound in (0.5, 1], "
                f"curriculum in [0, 1]; got {self}."
            )


def episode_reward(
    reward: Reward,
    run: Run,
    labels: Tensor,
    price: Tensor,
    task: Task,
    policy_macs: int,
    before: Tensor | None = None,
) -> Tensor:
    """Return what whole episodes earn: the rewards are additive, so the steps are paid in one. Shape (N,).

    `before` is the probability of the right class before the first decision, for rewards that pay for a gain over it.
    """
    pieces, kept = len(task.pieces), run.kept.float()
    decided = run.decided(task.horizon)
    compute = ((run.macs + decided * policy_macs) / task.full_macs).float()
    gain = right_probability(run.logits, labels) - before if reward.gain_over and before is not None else None
    spent = Spent(kept, pieces, compute, price, pieces, gain)
    return reward.step(spent) + reward.end(Outcome(run.logits, labels, kept, price, pieces))


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
        optimizer = torch.optim.Adam(gate.parameters(), options.learning_rate * max(1, setting.num_envs / 64))
        generator = torch.Generator(device=setting.task.device).manual_seed(setting.seed)
        task, monitor = setting.task, setting.monitor
        while monitor.done_share < 1:
            state, labels, prices = engine.deal()
            before = right_probability(task.answer_now(state), labels) if setting.reward.gain_over else None
            forced = _forced(task, monitor.done_share, options.curriculum)
            how = {"bound": options.bound, "spread": options.spread}
            pair = follow_both(task, state, gate, prices, forced=forced, generator=generator, **how)
            rewards = [
                episode_reward(setting.reward, run, labels, prices, task, policy.macs, before)
                for run in (pair.drawn, pair.greedy)
            ]
            log_prob, entropy = pair.draws.judged(gate, options.bound, options.spread)
            loss = -((rewards[0] - rewards[1]) * log_prob).mean() - options.entropy * entropy.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tally = _tally(task, pair, rewards[0], labels, policy.macs)
            monitor.record(tally, price=engine.high, loss=loss.item(), entropy=entropy.mean().item(), forced=forced)
            setting.reprice(engine, tally.means()["compute"])
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


def _tally(task: Task, pair: Pair, reward: Tensor, labels: Tensor, policy_macs: int) -> Tally:
    tally, run = Tally(len(task.pieces)), pair.drawn
    tally.count(0, run.actions)
    tally.finish(
        reward=reward,
        correct=(run.logits.argmax(1) == labels).float(),
        compute=(run.macs + run.decided(task.horizon) * policy_macs) / task.full_macs,
        backbone_macs=pair.spent,
    )
    return tally
