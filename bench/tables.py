"""Decisions per second of environments that look up what was computed once."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ..data import ImageData, Part
from ..envs.begun import Prefix
from ..envs.engine import Engine
from ..envs.recorded import Record, Recorded, tickets
from ..envs.sb3_env import SkipSB3Env
from .environments import episode
from .ground import Ground
from .race import TIMERS, Runner, Spread, race


@dataclass(frozen=True, kw_only=True)
class TableSize:
    """How large a table is measured, or a file of stored features."""

    images: int = 64
    """Whose ways through, or features, are computed."""
    copies: int = 16
    """How often each row stands in the table, so that it does not fit into a cache."""
    envs: tuple[int, ...] = (256, 4096)
    """Slots of the environments that look a table up."""

    def __post_init__(self) -> None:
        """Check the counts."""
        if min(self.images, self.copies, *self.envs) < 1 or not self.envs:
            raise ValueError(f"table: expected images, copies and envs of at least 1, got {self}.")


def table_of(record: Record, data: ImageData, size: TableSize) -> tuple[Recorded, ImageData]:
    """Return a task that looks up its table in memory, and its data, tickets to that."""
    images = data.policy.images[: size.images]
    rows = record.rows(images).repeat(size.copies, 1)
    source = torch.arange(len(images)).repeat(size.copies)
    part = Part(tickets(torch.arange(len(rows))), data.policy.labels[source])
    table = record.open(rows, images, source)
    return table, replace(data, train=part, policy=part, val=part, test=part, varied=True)


def pace_of_table(
    ground: Ground, record: Record, data: ImageData, size: TableSize, told: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Return decisions per second for several numbers of slots: of the engine, and as stable-baselines3 sees it."""
    table, tabled = table_of(record, data, size)
    runners: dict[str, Runner] = {}
    for count in size.envs:
        actions = ground.actions(table, count)
        runners[f"engine, {count} slots"] = _played(ground.engine(table, tabled, count), actions)
        runners[f"stable-baselines3, {count} slots"] = episode(SkipSB3Env(ground.engine(table, tabled, count)), actions)
    run = race(runners, ground.rounds, told, timer=TIMERS[ground.timer])
    rates = {name: asdict(Spread.of(rates)) for name, rates in run.rates.items()}
    return {**_size(record, table), "per_second": rates}


def pace_of_prefix(
    ground: Ground, record: Prefix, data: ImageData, size: TableSize, told: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Return decisions per second from images, `live`, and from what their stem made of them, `stored`."""
    begun, stored = table_of(record, data, size)
    actions = ground.actions(begun)
    runners = {
        "live": episode(SkipSB3Env(ground.engine(record.task, data)), actions),
        "stored": episode(SkipSB3Env(ground.engine(begun, stored)), actions),
    }
    run = race(runners, ground.rounds, told, timer=TIMERS[ground.timer])
    return {**_size(record, begun), **run.as_json("stored")}


def _size(record: Record, opened: Recorded) -> dict[str, Any]:
    """Return how much is kept, and of what."""
    rows = len(opened.source)
    return {"bytes": 4 * rows * record.width, "rows": rows, "kept": record.describe()}


def _played(engine: Engine, actions: list[np.ndarray]) -> Runner:
    """Return a runner that takes these actions without leaving torch, as our own learners do."""
    chosen = [torch.as_tensor(one) for one in actions]
    engine.reset()

    def run() -> int:
        for one in chosen:
            engine.step(one)
        return len(chosen) * engine.num_envs

    return run
