"""Where a learner's wall-clock goes: into the frozen network, or into what stands around it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from ..agents.gate import Gate
from ..agents.monitor import Monitor
from ..agents.training import TrainConfig, train
from ..agents.twins import Draws
from ..data import ImageData
from ..envs.engine import Engine
from ..envs.sb3_env import SkipSB3Env
from ..envs.task import Task
from .clock import Clock
from .ground import Ground, networks
from .race import TIMERS

KINDS = {
    "backbone": "stem, blocks and what takes their place, head, exits",
    "environment": "routing rows, observations, rewards, dealing and varying images",
    "copying": "to numpy and back, info dicts (stable-baselines3)",
    "policy": "its forward passes while episodes run",
    "update": "its training",
    "other": "everything else",
}
"""What time is spent on. Validation is left out: how much of it there is, is the user's."""
_VALIDATION, _UPDATE = "validation", "update"


AGENTS = ("ppo", "reinforce")
"""Learners whose parts are known here."""


def spend(ground: Ground, task: Task, data: ImageData, *, agent: str, images: int) -> dict[str, float]:
    """Train with the learner's default settings, and return the seconds spent on each of `KINDS`.

    Args:
        ground: What to measure on.
        task: Its task.
        data: Its images.
        agent: One of `AGENTS`.
        images: To train on.
    """
    clock = Clock(whole=[_VALIDATION, _UPDATE], timer=TIMERS[ground.timer])
    config = TrainConfig(task=ground.task, agent=agent, images=images, num_envs=ground.num_envs, seed=ground.seed)
    with _watched(clock, task), clock.count("other"):
        train(config, task, data, quiet=True)
    return {kind: clock.seconds[kind] for kind in KINDS}


@contextmanager
def _watched(clock: Clock, task: Task) -> Iterator[None]:
    """Let the clock see the parts of training, of each of `AGENTS`."""
    watched = [
        (Monitor, ["validate"], _VALIDATION),
        (Engine, ["reset", "step", "deal"], "environment"),
        (type(task), ["begin", "observe", "step"], "environment"),
        (SkipSB3Env, ["reset", "step_wait"], "copying"),
        (Gate, ["at"], "policy"),
        (Draws, ["judged"], _UPDATE),
        (ActorCriticPolicy, ["forward", "predict_values"], "policy"),
        (PPO, ["train"], _UPDATE),
        (torch.Tensor, ["backward"], _UPDATE),
        (torch.optim.Adam, ["step", "zero_grad"], _UPDATE),
    ]
    with ExitStack() as stack:
        stack.enter_context(clock.watch_modules(networks(task), "backbone"))
        for owner, names, kind in watched:
            stack.enter_context(clock.watch(owner, names, kind))
        yield
