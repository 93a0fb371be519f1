"""`skipgym bench controller`: is an exported controller really faster than its network without choices?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from ..agents.controller import Controller
from ..agents.evaluate import measure, measure_full
from ..bench.controllers import NAMES, compare_controller
from ..bench.race import Timer
from ..data import PartName
from ..data import load as load_data
from ..envs.build import check_fit
from ..runtime.extra import need
from .figures import check_new, leave, origin

COLUMNS = ("", "batch", "accuracy", "compute", "p50, ms", "p95, ms", "images/s", "speed-up", "of MACs' promise")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Export a controller, and let it and its network without choices answer in turn, in ONNX Runtime.

    Both answer the same images, round by round in one process. Without data the images are noise of several strengths.
    """

    controller: Annotated[Path, tyro.conf.Positional]
    """Directory of a controller."""
    data: str | None = None
    """A name, an ImageFolder directory, or an .npz in MedMNIST layout: accuracy is told too."""
    split: PartName = "test"
    """Which part of the data."""
    price: float | None = None
    """Told to a controller that knows several budgets."""
    batch_sizes: tuple[int, ...] = (1, 64)
    """Images in a call."""
    batches: int = 8
    """Different batches of each size."""
    rounds: int = 9
    """Calls with each batch; medians are told."""
    threads: int = 1
    """Of a call."""
    timer: Timer = "wall"
    """wall: time that passes. processor: time that this process computes, where others use the machine."""
    out: Path | None = None
    """File for the figures (JSON); new."""

    def __post_init__(self) -> None:
        """Check what needs no network."""
        need("onnx", "onnxruntime", "onnxscript")
        for name in ("batches", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes: expected sizes of at least 1, got {self.batch_sizes}. Try 1 64.")
        check_new(self.out)


def main(arguments: list[str]) -> int:
    """Run the command."""
    config = tyro.cli(Config, args=arguments, prog="skipgym bench controller")
    controller = Controller.load(config.controller)
    images, accuracy = _images(config, controller)
    calls = len(config.batch_sizes) * config.batches * (config.rounds + 1) * len(NAMES)
    with tqdm(desc="bench", unit="call", total=calls, leave=False, disable=None) as bar:
        paces = compare_controller(
            controller,
            images,
            price=config.price,
            batch_sizes=config.batch_sizes,
            batches=config.batches,
            rounds=config.rounds,
            threads=config.threads,
            timer=config.timer,
            told=bar.update,
        )
    found = origin("controller", config, arguments)
    found["machine"]["threads"] = config.threads
    found["versions"] |= _runtime_versions()
    found |= {
        "task": controller.task.name,
        "backbone": controller.task.backbone.name,
        "full_macs": controller.task.full_macs,
        "accuracy": accuracy,
        "batch_sizes": paces,
    }
    show(found)
    leave(config.out, found)
    return 0


def _images(config: Config, controller: Controller) -> tuple[np.ndarray, dict[str, float]]:
    """Return what is answered, and how well where that can be told."""
    if config.data is None:
        shape, generator = controller.task.backbone.input_shape, np.random.default_rng(0)
        strength = generator.random((256, 1, 1, 1))
        return (strength * generator.integers(256, size=(256, *shape))).astype(np.uint8), {}
    data = load_data(config.data)
    check_fit(controller.task, data)
    part = data.part(config.split)
    accuracy = {
        "static": measure_full(controller.task, part).accuracy,
        "controller": measure(controller, part, price=config.price).accuracy,
    }
    return np.broadcast_to(part.images.numpy(), (len(part), *controller.task.backbone.input_shape)), accuracy


def show(found: Mapping[str, Any]) -> None:
    """Print the figures as a table."""
    console, table = Console(), Table()
    console.width = max(console.width, 110)  # a narrower terminal, or a file, would fold the figures
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for rows, figures in found["batch_sizes"].items():
        for name in NAMES:
            pace, ours = figures[name], name == "controller"
            table.add_row(
                name,
                rows,
                f"{found['accuracy'][name]:.2%}" if found["accuracy"] else "",
                f"{figures['compute'] if ours else 1:.1%}",
                f"{pace['p50_ms']:.2f}",
                f"{pace['p95_ms']:.2f}",
                f"{pace['images_per_second']:,.0f}",
                f"{figures['speed_up']:.2f}" if ours else "",
                f"{figures['realised']:.2f} ({figures['way']}, {figures['paths']:.1f} paths)" if ours else "",
            )
    on, version = found["machine"], found["versions"]["onnxruntime"]
    console.print(f"{found['task']}, {found['backbone']}, {found['full_macs'] / 1e6:.2f} M MACs")
    console.print(f"{on['processor']}, {on['cores']} cores, threads: {on['threads']}, ONNX Runtime {version}")
    console.print(table)


def _runtime_versions() -> dict[str, str]:
    import onnx
    import onnxruntime

    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
