"""Decisions per second of our environment, of others that do the same, and of the bare network."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, nn

from ..data import ImageData
from ..envs.choice import Masked
from ..envs.gym_env import SkipEnv
from ..envs.sb3_env import SkipSB3Env
from ..envs.task import Task
from .ground import Ground, networks
from .race import Race, Runner, race

Call = tuple[nn.Module, torch.Size]


def compare_environments(
    ground: Ground, task: Task, data: ImageData, *, single_envs: int, told: Callable[[], object] = lambda: None
) -> Race:
    """Return decisions per second: `ours`, `masked`, `single` environments side by side, and the `limit`.

    All take the same random policy's actions, and a run is as many decisions as an episode has at most. `ours` and
    `masked` are one environment as stable-baselines3 sees it, run by what was chosen or by everything and then
    selecting. `single` are environments of one slot in SB3's `DummyVecEnv`. The `limit` is what `ours` makes the
    network do, as bare calls on as many rows that lie ready: no environment, no routing, no observations.

    Args:
        ground: What to measure on.
        task: Its task.
        data: Its images.
        single_envs: So many single environments.
        told: Called after each run.
    """
    actions, fewer = ground.actions(task), ground.actions(task, single_envs)
    ours = episode(SkipSB3Env(ground.engine(task, data)), actions)
    ours()
    alone = [partial(SkipEnv, engine=ground.engine(task, data, 1)) for _ in range(single_envs)]
    runners = {
        "ours": ours,
        "limit": replay(calls_of(task, ours), decisions=ground.num_envs * task.horizon),
        "masked": episode(SkipSB3Env(ground.engine(task, data, choose=Masked)), actions),
        "single": episode(DummyVecEnv(list(alone)), fewer),
    }
    return race(runners, ground.rounds, told)


def episode(env: VecEnv, actions: Sequence[np.ndarray]) -> Runner:
    """Return a runner that takes these actions, one after the other; its units are decisions."""
    env.reset()

    def run() -> int:
        for chosen in actions:
            env.step(chosen)
        return len(actions) * env.num_envs

    return run


def calls_of(task: Task, run: Callable[[], object]) -> list[Call]:
    """Return which pieces of the network a run calls, in order, and on what shape.

    Raises:
        ValueError: If it calls none.
    """
    calls: list[Call] = []

    def record(piece: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls.append((piece, inputs[0].shape))

    hooks = [piece.register_forward_pre_hook(record) for piece in networks(task)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        raise ValueError(f"bench: expected {task.name} to run its network's pieces, got none. Take another task.")
    return calls


def replay(calls: Sequence[Call], *, decisions: int) -> Runner:
    """Return a runner that makes these calls on rows that lie ready; it stands for so many decisions."""
    most: dict[torch.Size, int] = {}
    for _, shape in calls:
        most[shape[1:]] = max(shape[0], most.get(shape[1:], 0))
    rows = {shape: _ready(torch.randn(count, *shape)) for shape, count in most.items()}

    @torch.no_grad()
    def run() -> int:
        for piece, shape in calls:
            piece(rows[shape[1:]][: shape[0]])
        return decisions

    return run


def _ready(rows: Tensor) -> Tensor:
    """Return rows in the layout that a frozen network takes."""
    return rows.to(memory_format=torch.channels_last) if rows.dim() == 4 else rows
