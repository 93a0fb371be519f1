"""RLlib reads the same ids: its PPO on a skipgym environment. Needs `pip install "ray[rllib]"`.

`python examples/rllib_ppo.py` trains on digits; see --help.
"""

from pathlib import Path

import tyro
from ray.rllib.algorithms.ppo import PPOConfig


def main(
    env_id: str = "skipgym/LayerSkip-v0",
    backbone: str = "resnet20",
    weights: Path | None = None,
    price: float = 0.3,
    rounds: int = 5,
    batch: int = 1800,
) -> list[float]:
    """Train, and return the mean return of the episodes of each round."""
    given = {"backbone": backbone, "price": price} | ({"weights": str(weights)} if weights else {})
    config = (
        PPOConfig()
        .environment(f"skipgym:{env_id}", env_config=given)  # the prefix imports skipgym wherever RLlib makes one
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .training(train_batch_size_per_learner=batch, minibatch_size=batch // 4, num_epochs=4, gamma=1.0, lr=1e-3)
    )
    algorithm = config.build_algo()
    history = []
    for _ in range(rounds):
        found = algorithm.train()["env_runners"]
        history.append(float(found["episode_return_mean"]))
        print(f"{found['num_episodes']} images, return {history[-1]:.3f}")
    algorithm.stop()
    return history


if __name__ == "__main__":
    tyro.cli(main)
