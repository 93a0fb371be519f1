"""A policy network of one's own in stable-baselines3, and its measurement as a controller.

`python examples/own_sb3_policy.py` trains it on digits; see --help.
"""

from pathlib import Path

import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from skipgym import Controller
from skipgym.agents.evaluate import Measured, measure
from skipgym.agents.policy import Policy
from skipgym.backbones import count_macs
from skipgym.envs import Layout, build_engine
from skipgym.envs.build import find_data
from skipgym.envs.sb3_env import SkipSB3Env


class Normed(BaseFeaturesExtractor):
    """What is one's own about it: layer normalisation before two small layers."""

    def __init__(self, space, width: int = 32):
        super().__init__(space, width)
        inputs = space.shape[0]
        self.layers = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, observations):
        """Return features. Shape (N, width)."""
        return self.layers(observations)


class FromSB3(Policy):
    """The model's likeliest action, for a controller; it costs what its actor costs."""

    def __init__(self, model: PPO, layout: Layout):
        super().__init__()
        self.model, self.layout = model.policy, layout
        self.macs = actor_macs(model)

    def act(self, features, state, price, memory):
        """Decide for a cohort."""
        observation = self.layout.join(features, state.position, price)
        actions = self.model.get_distribution(observation).mode()
        return actions.reshape(len(features), -1), None


def actor_macs(model: PPO) -> int:
    """Return the cost of one decision, in MACs."""
    example = torch.zeros(1, *model.observation_space.shape)
    return count_macs(model.policy.get_distribution, example)


def train(
    task: str = "layer-skip",
    backbone: str = "resnet20",
    data: str = "digits",
    weights: Path | None = None,
    steps: int = 100_000,
    price: float = 0.3,
    num_envs: int = 64,
) -> Measured:
    """Train with PPO, and measure on validation images what the policy and the network together do."""
    named = {"task": task, "backbone": backbone, "data": data, "weights": weights, "price": price}
    engine = build_engine(**named, num_envs=num_envs)
    kwargs = {"features_extractor_class": Normed, "net_arch": []}
    model = PPO("MlpPolicy", SkipSB3Env(engine), policy_kwargs=kwargs, n_steps=32, batch_size=256, device="cpu", seed=0)
    engine.policy_macs = actor_macs(model)  # the reward charges the policy too
    model.learn(steps)
    controller = Controller(engine.task, FromSB3(model, engine.layout))
    found = measure(controller, find_data(data, weights).val)
    print(f"validation: {found.accuracy:.2%} right at {found.compute:.1%} of the full network's MACs, policy included")
    return found


if __name__ == "__main__":
    tyro.cli(train)
