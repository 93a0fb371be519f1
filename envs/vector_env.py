"""The natively batched Gymnasium environment."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .build import build_engine
from .engine import Engine
from .gym_env import _required, ending
from .task import Task


class SkipVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """N images at a time through one frozen backbone, which runs each block on the rows that chose it.

    Slot i seeded with s behaves as the single environment seeded with s + i. Autoreset is `SAME_STEP`: where an
    episode ends, the observation is the next episode's; `info["final_obs"]` holds zeros there (nothing is left to
    observe) and `info["final_info"]` what `SkipEnv` tells at the end, as arrays with masks (`_final_info`).

    Args:
        task: A registered name, or a task.
        engine: A ready engine instead.
        num_envs: Number of slots.
        arguments: As for `skipgym.envs.build_engine`.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 - as Gymnasium does

    def __init__(
        self, task: str | Task | None = None, *, num_envs: int = 1, engine: Engine | None = None, **arguments: Any
    ):
        self.engine = engine or build_engine(_required(task), num_envs=num_envs, **arguments)
        self.num_envs = self.engine.num_envs
        self.single_observation_space = self.engine.layout.space
        self.single_action_space = self.engine.task.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an image in every slot; with seeds, the sequences of images begin anew."""
        super().reset(seed=None, options=options)
        if seed is not None:
            self.engine.seed(seed)
        return self.engine.reset().cpu().numpy(), self._info()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Decide once in every slot.

        Raises:
            ValueError: If an action is not in the action space.
        """
        actions = np.asarray(actions)
        check_actions(actions, self.engine)
        before = self._info()
        transition = self.engine.step(torch.as_tensor(actions))
        info, done = self._info(), transition.done.cpu().numpy()
        if done.any():
            final = {**before, **ending(transition, self.engine)}
            info["final_info"] = {k: np.where(done, v, 0) for k, v in final.items() if not k.startswith("_")}
            info["final_info"] |= {f"_{key}": done for key in info["final_info"]}
            info["final_obs"] = np.zeros((self.num_envs, *self.single_observation_space.shape), np.float32)  # pyright: ignore
            info["_final_info"] = info["_final_obs"] = done
        never = np.zeros_like(done)
        return transition.observation.cpu().numpy(), transition.reward.cpu().double().numpy(), done, never, info

    def _info(self) -> dict[str, Any]:
        info = {"index": self.engine.indices.cpu().numpy().copy(), "price": self.engine.price.cpu().numpy().copy()}
        return info | {f"_{key}": np.ones(self.num_envs, bool) for key in info}


def check_actions(actions: np.ndarray, engine: Engine) -> None:
    """Raise a ValueError unless there is one valid action for each slot."""
    space = engine.task.action_space
    if isinstance(space, spaces.Box):
        shape = (engine.num_envs, *space.shape)
        if actions.shape != shape or not (abs(actions) <= 1).all():  # nor NaN
            out = " with a value out of range" if actions.shape == shape else ""
            raise ValueError(
                f"actions: expected numbers in -1 … 1 of shape {shape}, got {actions.dtype} {actions.shape}{out}. "
                "Sample from action_space to see one."
            )
        return
    decisions = engine.task.decisions
    shape = (engine.num_envs,) if len(decisions) == 1 else (engine.num_envs, len(decisions))
    valid = actions.shape == shape and np.issubdtype(actions.dtype, np.integer)
    if not valid or (actions < 0).any() or (actions.reshape(len(actions), -1) >= np.array(decisions)).any():
        raise ValueError(
            f"actions: expected integers of shape {shape}, below {decisions}, got {actions.dtype} {actions.shape}"
            f"{' with a value out of range' if valid else ''}. Sample from action_space to see one."
        )
