"""TorchRL reads the same ids: PPO from its parts. Needs `pip install torchrl`.

`python examples/torchrl_ppo.py` trains on digits; see --help.
"""

from pathlib import Path

import torch
import tyro
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import GymEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import skipgym  # noqa: F401 - registers the ids


def main(
    env_id: str = "skipgym/LayerSkip-v0",
    backbone: str = "resnet20",
    weights: Path | None = None,
    price: float = 0.3,
    frames: int = 20_000,
    batch: int = 900,
) -> list[float]:
    """Train, and return the mean reward of an episode in each batch."""
    torch.manual_seed(0)
    env = GymEnv(env_id, categorical_action_encoding=True, backbone=backbone, weights=weights, price=price)
    inputs, actions = env.observation_spec["observation"].shape[-1], env.action_spec.space.n
    actor, critic = (
        nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, outputs))
        for outputs in (actions, 1)
    )
    module = TensorDictModule(actor, in_keys=["observation"], out_keys=["logits"])
    policy = ProbabilisticActor(
        module, spec=env.action_spec, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True
    )
    value = ValueOperator(critic, in_keys=["observation"])
    advantage = GAE(gamma=1.0, lmbda=0.95, value_network=value)
    loss = ClipPPOLoss(policy, value)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    history = []
    for data in Collector(env, policy, frames_per_batch=batch, total_frames=frames):
        for _ in range(4):
            advantage(data)
            losses = loss(data)
            optimizer.zero_grad()
            (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
            optimizer.step()
        episodes = int(data["next", "done"].sum())
        history.append(float(data["next", "reward"].sum()) / max(1, episodes))
        print(f"{episodes} images, reward {history[-1]:.3f}")
    return history


if __name__ == "__main__":
    tyro.cli(main)
