"""PPO in one file, in the manner of CleanRL, on the vector environment. Copy it and change what you like.

`python examples/cleanrl_style.py` trains on digits; see --help.
"""

from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from torch.distributions import Categorical

import skipgym  # noqa: F401 - registers the ids


@dataclass(frozen=True, kw_only=True)
class Args:
    """PPO on images that arrive one decision at a time."""

    env_id: str = "skipgym/LayerSkip-v0"
    """Of a task with one yes or no at a time."""
    backbone: str = "resnet20"
    """Registered name."""
    weights: Path | None = None
    """The backbone's checkpoint; the embedded data's backbone is trained on first use."""
    price: float = 0.3
    """Of compute, in units of accuracy."""
    num_envs: int = 256
    """Images at a time."""
    steps: int = 36
    """Decisions of each environment between updates; four episodes of a ResNet-20."""
    updates: int = 60
    """Rounds of collecting and learning."""
    epochs: int = 4
    """Passes over what was collected."""
    minibatches: int = 4
    """In each pass."""
    learning_rate: float = 1e-3
    """Of Adam."""
    gae_lambda: float = 0.95
    """Of generalised advantage estimation; nothing is discounted."""
    clip: float = 0.2
    """Of PPO's ratio."""
    entropy: float = 0.01
    """Weight of the entropy bonus."""
    seed: int = 0
    """Of everything random."""


class Agent(nn.Module):
    """An actor and a critic."""

    def __init__(self, inputs: int, actions: int, hidden: int = 64):
        super().__init__()
        self.actor, self.critic = (
            nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
            for outputs in (actions, 1)
        )

    def forward(self, observations):
        """Return the distribution of actions, and values (N,)."""
        return Categorical(logits=self.actor(observations)), self.critic(observations).squeeze(-1)


def main(args: Args) -> list[float]:
    """Train, and return the mean return of the episodes of each round."""
    torch.manual_seed(args.seed)
    envs = gym.make_vec(
        args.env_id, num_envs=args.num_envs, backbone=args.backbone, weights=args.weights, price=args.price
    )
    agent = Agent(envs.single_observation_space.shape[0], envs.single_action_space.n)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate)
    observation = torch.as_tensor(envs.reset(seed=args.seed)[0])
    history, shape = [], (args.steps, args.num_envs)
    for update in range(args.updates):
        observations = torch.zeros(*shape, observation.shape[1])
        actions, log_probs, rewards, dones, values = (torch.zeros(shape) for _ in range(5))
        correct, compute, episodes = 0.0, 0.0, 0
        for t in range(args.steps):
            with torch.no_grad():
                distribution, values[t] = agent(observation)
            action = distribution.sample()
            observations[t], actions[t], log_probs[t] = observation, action, distribution.log_prob(action)
            # SAME_STEP: where an episode ends, the observation returned is the next episode's already, so every step
            # of every slot is a decision, and `dones[t]` alone cuts the returns.
            new, reward, done, _, info = envs.step(action.numpy())
            observation, rewards[t], dones[t] = torch.as_tensor(new), torch.as_tensor(reward), torch.as_tensor(done)
            if done.any():
                final = info["final_info"]
                correct, compute = correct + final["correct"][done].sum(), compute + final["compute"][done].sum()
                episodes += int(done.sum())

        with torch.no_grad():
            following = agent(observation)[1]
        advantages, running = torch.zeros(shape), torch.zeros(args.num_envs)
        for t in reversed(range(args.steps)):
            going = 1 - dones[t]
            running = rewards[t] + going * following - values[t] + args.gae_lambda * going * running
            advantages[t], following = running, values[t]
        returns = advantages + values

        flat = [x.flatten(0, 1) for x in (observations, actions, log_probs, advantages, returns)]
        for _ in range(args.epochs):
            for rows in torch.randperm(flat[0].shape[0]).chunk(args.minibatches):
                seen, chosen, before, advantage, target = (x[rows] for x in flat)
                distribution, value = agent(seen)
                ratio = (distribution.log_prob(chosen) - before).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                loss = -torch.min(ratio * advantage, clipped * advantage).mean()
                loss = loss + 0.5 * (value - target).square().mean() - args.entropy * distribution.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        history.append(float(rewards.sum()) / max(1, episodes))
        if update % 10 == 0 or update == args.updates - 1:
            print(
                f"update {update:3}  return {history[-1]:.3f}  right {correct / max(1, episodes):.1%}  "
                f"compute {compute / max(1, episodes):.1%}  {episodes} images"
            )
    envs.close()
    assert np.isfinite(history).all()
    return history


if __name__ == "__main__":
    main(tyro.cli(Args))
