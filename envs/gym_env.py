"""The single Gymnasium environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from .build import build_engine
from .engine import Engine, Transition
from .task import Task


class SkipEnv(gym.Env[np.ndarray, Any]):
    """One image after the other through a frozen backbone, one decision at a time.

    Description:
        An episode is one image. What is decided, seen and skipped is the task's: see `skipgym.envs.LayerSkip` and its
        like, whose docstrings are the specification of each id.
    Action space:
        The task's: `Discrete`, or `MultiDiscrete` for decisions of several parts.
    Observation space:
        `Box` of float32: what the task observes, then the position as one-hot (tasks of several decisions), then the
        price (where it is a range). The observation after the last decision is zero.
    Reward:
        By default 1 if the answer is right, minus price x compute, where compute is the MACs spent as a share of the
        full network's; it is charged as it is spent. See `skipgym.envs.rewards` for the others.
    Episode end:
        Terminates when the task has answered; never truncates.
    Info:
        `index`: which image; `price`. At the end also `correct` (0 or 1), `macs` (policy included where its cost was
        given), `compute` and `kept` (pieces executed).

    Arguments:
        task: A registered name, or a task.
        engine: A ready engine of one slot instead.
        arguments: As for `skipgym.envs.build_engine`.
    Version history:
        v0: first.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, task: str | Task | None = None, *, engine: Engine | None = None, **arguments: Any):
        self.engine = engine or build_engine(_required(task), num_envs=1, **arguments)
        self.observation_space = self.engine.layout.space
        self.action_space = self.engine.task.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin the next image; with a seed, the sequence of images begins anew."""
        super().reset(seed=seed)
        if seed is not None:
            self.engine.seed(seed)
        return self.engine.reset()[0].cpu().numpy(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide once.

        Raises:
            ValueError: If the action is not in the action space.
            gymnasium.error.ResetNeeded: If the episode has ended.
        """
        if not self.action_space.contains(action):
            raise ValueError(f"action: expected an element of {self.action_space}, got {action!r}.")
        info = self._info()
        transition = self.engine.step(torch.as_tensor(np.asarray(action)[None]), deal=False)
        done = bool(transition.done[0])
        if done:
            info |= {key: values[0].item() for key, values in ending(transition, self.engine).items()}
        return transition.observation[0].cpu().numpy(), float(transition.reward[0]), done, False, info

    def _info(self) -> dict[str, Any]:
        return {"index": int(self.engine.indices[0]), "price": float(self.engine.price[0])}


def ending(transition: Transition, engine: Engine) -> dict[str, np.ndarray]:
    """Return what is told of episodes that ended: one array for each figure, meaningful where `done`."""
    macs = transition.macs.cpu().numpy()
    return {
        "correct": transition.correct.cpu().numpy(),
        "macs": macs,
        "compute": macs / engine.task.full_macs,
        "kept": transition.kept.cpu().numpy(),
    }


def _required(task: str | Task | None) -> str | Task:
    if task is None:
        raise ValueError("task: expected a name or a task, got none. Name one of `skipgym list`.")
    return task
