"""Time and memory of an environment as functions of its slots, its images and its network's blocks."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..backbones.threads import threads
from ..envs.sb3_env import SkipSB3Env
from ..memory import keep_memory
from .environments import episode
from .ground import Ground
from .race import TIMERS, race

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Linux's account of a process, and what makes it begin anew."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What is varied, one after the other; whatever is not varied is the ground's."""

    envs: tuple[int, ...] = (64, 256, 1024)
    """Slots."""
    images: tuple[int, ...] = (2_048, 32_768)
    """Images that are dealt."""
    backbones: tuple[str, ...] = ("resnet20", "resnet56")
    """Networks of few and of many blocks."""

    def __post_init__(self) -> None:
        """Check the counts."""
        if min(*self.envs, *self.images, 1) < 1:
            raise ValueError(f"scale: expected envs and images of at least 1, got {self}.")


def scale_up(
    ground: Ground, scale: Scale, *, images: int = 2_048, told: Callable[[], object] = lambda: None
) -> list[dict[str, Any]]:
    """Return what each point costs: each is measured in a process of its own, whose memory nothing else has used.

    Args:
        ground: What to measure on.
        scale: What is varied.
        images: To deal, where their number is not what is varied.
        told: Called after each point.

    Returns:
        For each point `varied`, `num_envs`, `images`, `backbone`, `blocks`; `seconds`, of an episode of all slots;
        `decisions_per_second`; and `bytes`, which data and environment took at most beyond the program and network.

    Raises:
        OSError: If the system does not tell how much memory a process has used.
    """
    if not STATUS.exists():
        raise OSError(
            f"bench scaling: expected a system that tells a process's memory in {STATUS}, got none. Use Linux."
        )
    plain, found = Ground(**{field.name: getattr(ground, field.name) for field in fields(Ground)}), []
    spawn = multiprocessing.get_context("spawn")
    for varied, one, count in _points(plain, scale, images):
        with ProcessPoolExecutor(1, spawn) as alone:
            found.append({"varied": varied, **alone.submit(measured, one, count).result()})
        told()
    return found


def _points(ground: Ground, scale: Scale, images: int) -> Iterator[tuple[str, Ground, int]]:
    """Yield what is varied, with the ground and the number of images of each point."""
    yield from (("slots", replace(ground, num_envs=count), images) for count in scale.envs)
    yield from (("images", ground, count) for count in scale.images)
    yield from (("blocks", replace(ground, backbone=name), images) for name in scale.backbones)


def measured(ground: Ground, images: int) -> dict[str, Any]:
    """Return what one point costs, measured in this process."""
    task = ground.made(ground.data(64))
    keep_memory()  # as our commands do
    before = _memory("VmRSS")
    FORGET.write_text("5", encoding="utf-8")  # what it has held at most before
    with threads(ground.threads):
        data = ground.data(images)
        play = episode(SkipSB3Env(ground.engine(task, data)), ground.actions(task))
        rate = race({"ours": play}, ground.rounds, timer=TIMERS[ground.timer]).rate("ours").median
    return {
        "num_envs": ground.num_envs,
        "images": images,
        "backbone": ground.backbone,
        "blocks": len(task.backbone.blocks),
        "seconds": ground.num_envs * task.horizon / rate,
        "decisions_per_second": rate,
        "bytes": _memory("VmHWM") - before,
    }


def _memory(what: str) -> int:
    """Return the bytes of memory that this process holds (VmRSS), or has held at most (VmHWM)."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))
