"""How fast a controller is in ONNX Runtime: against its network without choices, in the same runtime, in turn."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from ..agents.controller import Controller
from ..agents.export import export_onnx, export_static
from ..runtime import Runtime
from ..runtime.session import open_session
from .race import TIMERS, Race, Timer, race

if TYPE_CHECKING:
    import onnxruntime as ort

NAMES = ("static", "controller")
TYPICAL = 64
"""Images that the runtime is warmed up on: the last, where there are enough none that are timed."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What calls with so many images took.

    Attributes:
        p50_ms: Median time of a call, in milliseconds.
        p95_ms: 95th percentile.
        images_per_second: Of all calls, each batch at its median time.
    """

    p50_ms: float
    p95_ms: float
    images_per_second: float

    @classmethod
    def of(cls, races: Sequence[Race], name: str, rows: int) -> "Pace":
        """Return the pace of a runner over several batches of as many rows."""
        seconds = [[rows / rate for rate in one.rates[name]] for one in races]
        every = 1e3 * np.concatenate(seconds)
        return cls(
            p50_ms=float(np.percentile(every, 50)),
            p95_ms=float(np.percentile(every, 95)),
            images_per_second=rows / mean(map(median, seconds)),
        )


def compare_controller(
    controller: Controller,
    images: np.ndarray,
    *,
    price: float | None = None,
    batch_sizes: Sequence[int] = (1, 64),
    batches: int = 8,
    rounds: int = 9,
    threads: int = 1,
    timer: Timer = "wall",
    told: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Export a controller and its network without choices, and let both answer the same batches in turn.

    Args:
        controller: Any that can be exported.
        images: Taken in order, and from the start again. Shape (N, C, H, W), uint8.
        price: Told to the policy; the controller's own by default.
        batch_sizes: Rows of a call.
        batches: Different batches of each size.
        rounds: Calls with each batch.
        threads: Of a call.
        timer: What is timed: see `race.TIMERS`.
        told: Called after each call.

    Returns:
        For each batch size the two paces, and:
        `compute`: mean MACs of these images, policy included, as a share of the full network's;
        `speed_up`: images per second, controller to static;
        `realised`: `speed_up` as a share of what MACs promise, that is times `compute`;
        `paths`: different ways through the network in a batch, on average;
        `way`: how batches were executed, see `skipgym.runtime.WAYS`.

    Raises:
        ValueError: If the controller cannot be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime.load(export_onnx(controller, Path(folder) / "controller.onnx"), threads=threads)
        static = open_session(
            export_static(controller.task, Path(folder) / "static.onnx").read_bytes(), threads=threads
        )
    pixels = images.astype(np.float32) / 255
    found = {}
    for rows in batch_sizes:
        parts = [np.take(pixels, range(i * rows, (i + 1) * rows), 0, mode="wrap") for i in range(batches)]
        runtime.warm(pixels[-max(TYPICAL, rows) :], price=price, rows=rows)
        runs = [race(_runners(runtime, static, part, price), rounds, told, timer=TIMERS[timer]) for part in parts]
        found[str(rows)] = _figures(runtime, runs, parts, price)
    return found


def _runners(
    runtime: Runtime, static: "ort.InferenceSession", part: np.ndarray, price: float | None
) -> dict[str, Callable[[], int]]:
    def bare() -> int:
        static.run(None, {"image": part})
        return len(part)

    def whole() -> int:
        return len(runtime(part, price=price, batch_size=len(part)).logits)

    return dict(zip(NAMES, (bare, whole), strict=True))


def _figures(
    runtime: Runtime, races: Sequence[Race], parts: Sequence[np.ndarray], price: float | None
) -> dict[str, Any]:
    rows = len(parts[0])
    decisions = [runtime(part, price=price, batch_size=rows) for part in parts]
    compute = mean(float(one.compute.mean()) for one in decisions)
    paces = {name: Pace.of(races, name, rows) for name in NAMES}
    speed_up = paces["controller"].images_per_second / paces["static"].images_per_second
    taken: Mapping[str, float] = runtime.stats()["ways"].get(1 << (rows - 1).bit_length(), {"single": 0})
    return {
        **{name: asdict(pace) for name, pace in paces.items()},
        "compute": compute,
        "speed_up": speed_up,
        "realised": speed_up * compute,
        "paths": mean(len(np.unique(one.actions, axis=0)) for one in decisions),
        "way": min(taken, key=lambda way: taken[way]),
    }
