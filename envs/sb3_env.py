"""The stable-baselines3 face of the batched engine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from .engine import Engine
from .gym_env import ending


class SkipSB3Env(VecEnv):
    """An engine as SB3 wants it; `info` carries `episode` (as SB3's Monitor), `correct`, `macs`, `compute`, `kept`.

    Args:
        engine: Built by `skipgym.envs.build_engine`.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        super().__init__(engine.num_envs, engine.layout.space, engine.task.action_space)
        self.terminal_observation = np.zeros(engine.layout.space.shape, np.float32)  # pyright: ignore
        self._returns, self._lengths = np.zeros(engine.num_envs), np.zeros(engine.num_envs, int)

    def reset(self) -> VecEnvObs:
        """Begin an image in every slot."""
        if any(seed is not None for seed in self._seeds):
            self.engine.seed(self._seeds)
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0, 0
        return self.engine.reset().cpu().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = torch.as_tensor(np.asarray(actions))

    def step_wait(self) -> VecEnvStepReturn:
        """Decide once in every slot."""
        transition = self.engine.step(self._actions)
        rewards, dones = transition.reward.cpu().numpy(), transition.done.cpu().numpy()
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = dones.nonzero()[0]
        if len(ended):
            told = {**ending(transition, self.engine), "r": self._returns, "l": self._lengths}
            columns = [values[ended].tolist() for values in told.values()]
            for i, *figures, total, length in zip(ended.tolist(), *columns, strict=True):
                infos[i] = dict(zip(told, figures, strict=False))
                infos[i]["episode"] = {"r": total, "l": length}
                infos[i]["terminal_observation"] = self.terminal_observation
        self._returns[dones], self._lengths[dones] = 0, 0
        return transition.observation.cpu().numpy(), rewards, dones, infos

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the engine, once for each slot."""
        value = None if attr_name == "render_mode" else getattr(self.engine, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse: the slots share one engine."""
        raise NotImplementedError("The slots share one engine: set attributes on `.engine`.")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Refuse: the slots share one engine."""
        raise NotImplementedError("The slots share one engine: call methods on `.engine`.")

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Say no for every slot: there are no environments to wrap."""
        return [False for _ in self._get_indices(indices)]

    def _get_indices(self, indices: VecEnvIndices) -> Sequence[int]:
        if isinstance(indices, int):
            return [indices]
        return range(self.num_envs) if indices is None else list(indices)
