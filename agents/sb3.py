"""Learners of stable-baselines3 and sb3-contrib, with our gate as their network."""

from collections.abc import Mapping
from dataclasses import replace
from math import log
from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from ..envs.engine import Engine
from ..envs.observation import Layout
from ..envs.sb3_env import SkipSB3Env
from ..envs.task import Task
from .gate import OPEN_BIAS, make_trunk, open_wide
from .learner import Learner, Setting, register_agent
from .policy import GatePolicy

SPREAD = 0.3
"""Standard deviation at the start of numbers that are drawn, where decisions have a place; it is learned."""


class TrunkExtractor(BaseFeaturesExtractor):
    """Our gate's trunk as SB3's features extractor; SB3 puts its linear heads on top."""

    def __init__(self, observation_space: spaces.Space, layout: Layout, hidden: int):
        super().__init__(observation_space, hidden)
        self.trunk = make_trunk(layout, hidden)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return hidden features. Shape (N, ...) to (N, hidden)."""
        return self.trunk(observations)


class _Watch(BaseCallback):
    """After each rollout: log, adapt the price, validate; stop when the time is over."""

    def __init__(self, setting: Setting, engine: Engine, every: int):
        super().__init__()
        self.setting, self.engine, self.every = setting, engine, every
        self._steps = 0

    def _on_step(self) -> bool:
        self._steps += 1
        if self._steps % self.every == 0:
            self._look()
        return self.setting.monitor.done_share < 1

    def _look(self) -> None:
        setting = self.setting
        tally = self.engine.drain()
        setting.monitor.record(tally, price=self.engine.high)
        if tally.episodes:
            setting.reprice(self.engine, tally.means()["compute"])
        setting.monitor.validate(extract(self.model, setting))


def train_sb3(setting: Setting, build: type[BaseAlgorithm], defaults: dict[str, Any], *, recurrent: bool) -> GatePolicy:
    """Train one of SB3's algorithms and return its last policy; the monitor keeps the best.

    Args:
        setting: Task, data, configuration.
        build: The algorithm.
        defaults: Its arguments, which the configuration's `agent_options` override.
        recurrent: Whether its policy has an LSTM.
    """
    engine = setting.engine(policy_macs=_blank(setting, recurrent).macs)
    env = SkipSB3Env(engine)
    options = {**defaults, **setting.agent_options}
    policy_kwargs: dict[str, Any] = {
        "features_extractor_class": TrunkExtractor,
        "features_extractor_kwargs": {"layout": engine.layout, "hidden": setting.hidden},
        "net_arch": [],
        "normalize_images": False,
    }
    if build is not DQN:
        policy_kwargs["share_features_extractor"] = False
    if setting.task.coordinates:
        policy_kwargs["log_std_init"] = log(SPREAD)
    if recurrent:
        policy_kwargs |= {"lstm_hidden_size": setting.hidden, "enable_critic_lstm": True}
    model = build(
        "MlpLstmPolicy" if recurrent else "MlpPolicy",
        env,
        policy_kwargs=policy_kwargs,
        seed=setting.seed,
        device=setting.task.device,
        **options,
    )  # pyright: ignore[reportCallIssue]
    model.set_logger(configure(str(setting.out) if setting.out else None, ["tensorboard"] if setting.out else []))
    _fit(model, setting.observations(engine))
    _open(model, setting.task)
    horizon = setting.task.horizon
    model.learn(setting.images * horizon, callback=_Watch(setting, engine, options.get("n_steps", horizon)))
    return extract(model, setting, recurrent)


def extract(model: BaseAlgorithm, setting: Setting, recurrent: bool | None = None) -> GatePolicy:
    """Return a copy of a model's actor as a policy of ours."""
    core = getattr(model.policy, "lstm_actor", None)
    policy = _blank(setting, core is not None)
    gate = policy.gate
    trunk, head = _actor(model)
    gate.trunk.load_state_dict(trunk.state_dict())
    gate.head.load_state_dict(_mean_head(model, head) if gate.coordinates else head.state_dict())
    if gate.core is not None and core is not None:
        gate.core.load_state_dict({key.removesuffix("_l0"): value for key, value in core.state_dict().items()})
    return policy


def _blank(setting: Setting, recurrent: bool) -> GatePolicy:
    return GatePolicy(setting.gate(recurrent=recurrent))


def _actor(model: BaseAlgorithm) -> tuple[nn.Module, nn.Linear]:
    """Return trunk and last layer of whatever decides."""
    policy: Any = model.policy
    if isinstance(model, DQN):
        return policy.q_net.features_extractor.trunk, policy.q_net.q_net[-1]
    return policy.pi_features_extractor.trunk, policy.action_net


@torch.no_grad()
def _mean_head(model: BaseAlgorithm, head: nn.Linear) -> dict[str, torch.Tensor]:
    """Return the last layer of a Gaussian's means as our gate's: logits of leaving and of looking, and the place.

    That a normal number of mean m lies above 0 is nearly as likely as a logistic one of 1.7 m / its deviation.
    """
    policy: Any = model.policy
    scale = 1.7 / policy.log_std[0].exp()
    return {
        name: torch.cat([torch.zeros_like(rows[:1]), scale * rows[:1], rows[1:]])
        for name, rows in head.state_dict().items()
    }


def _fit(model: BaseAlgorithm, observations: torch.Tensor) -> None:
    """Standardise the inputs of every trunk in the model."""
    for module in model.policy.modules():
        if isinstance(module, TrunkExtractor):
            module.trunk.fit(observations)


def _open(model: BaseAlgorithm, task: Task) -> None:
    """Let the actor begin near the full network."""
    if isinstance(model, DQN):
        return
    if task.coordinates:
        with torch.no_grad():
            _actor(model)[1].bias[0] += SPREAD * OPEN_BIAS / 1.7  # as likely to look as `open_wide` makes it
        return
    open_wide(_actor(model)[1], task.decisions, alike=task.alike)


def _ppo(setting: Setting) -> dict[str, Any]:
    """Return PPO's arguments: rollouts of whole episodes, at least 2048 decisions, in four minibatches of one size."""
    horizon, envs = setting.task.horizon, setting.num_envs
    steps = horizon * max(1, 2048 // (envs * horizon))
    minibatches = next(count for count in (4, 3, 2, 1) if steps * envs % count == 0)
    return {
        "n_steps": steps,
        "batch_size": steps * envs // minibatches,
        "n_epochs": 8,
        "learning_rate": 1e-3,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "ent_coef": 0.002,
    }


@register_agent("ppo", "proximal policy optimisation (stable-baselines3)")
class PPOLearner(Learner):
    """PPO; an episode's rewards are not discounted."""

    def train(self, setting: Setting) -> GatePolicy:
        return train_sb3(setting, PPO, _ppo(setting), recurrent=False)


@register_agent("recurrent-ppo", "PPO with an LSTM gate, as SkipNet's recurrent gate (sb3-contrib)")
class RecurrentPPOLearner(Learner):
    """PPO whose gate remembers earlier positions."""

    def train(self, setting: Setting) -> GatePolicy:
        fewer = {"n_epochs": 4}  # padded sequences take six times PPO's time; half as many passes lose nothing
        return train_sb3(setting, RecurrentPPO, _ppo(setting) | fewer, recurrent=True)


@register_agent("a2c", "advantage actor-critic (stable-baselines3)")
class A2CLearner(Learner):
    """A2C over whole episodes."""

    def train(self, setting: Setting) -> GatePolicy:
        defaults = {
            "n_steps": setting.task.horizon,
            "learning_rate": 1e-3,
            "gamma": 1.0,
            "gae_lambda": 0.95,
            "ent_coef": 0.01,
            "normalize_advantage": True,
        }
        fewer = replace(setting, num_envs=min(setting.num_envs, 64))  # one update a rollout: small ones, many updates
        return train_sb3(fewer, A2C, defaults, recurrent=False)


@register_agent("dqn", "deep Q-learning (stable-baselines3); one part per decision only")
class DQNLearner(Learner):
    """DQN; the greedy action of the Q-network is the policy."""

    trains_probabilities = False

    def train(self, setting: Setting) -> GatePolicy:
        defaults = {
            "learning_rate": 1e-3,
            "buffer_size": 100_000,
            "learning_starts": 4 * setting.num_envs * setting.task.horizon,
            "batch_size": 512,
            "train_freq": 1,
            "gradient_steps": 8,
            "gamma": 1.0,
            "target_update_interval": 10 * setting.num_envs,
            "exploration_fraction": 0.3,
            "exploration_final_eps": 0.05,
        }
        return train_sb3(setting, DQN, defaults, recurrent=False)

    def check(self, task: Task, options: Mapping[str, Any]) -> None:
        if len(task.decisions) != 1 or task.coordinates:
            got = "a place" if task.coordinates else f"{len(task.decisions)}"
            raise ValueError(
                f"agent dqn: expected a task whose decision has one part, got {task.name} with {got}. Use ppo, a2c "
                "or reinforce, or another task."
            )
