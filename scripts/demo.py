"""`skipgym demo`: the main job on embedded data, from an untrained network to a measured controller."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from ..agents.controller import Controller
from ..agents.evaluate import measure
from ..agents.training import prepare
from ..data import ImageData
from ..referee.compare import compare
from ..referee.plan import CompareConfig
from .compare import show


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pretrain a backbone, train layer skipping with PPO and Gumbel gates, compare, save, reload, measure on test data.

    A short form of `skipgym compare`.
    """

    out: Path = Path("demo")
    """Directory for everything that the demo leaves. A stopped demo goes on; beside a finished one the next number."""
    seeds: int = 3
    """Trainings of each method."""
    images: int = 40_000
    """Budget of a training: the backbone's MACs of so many images with everything executed."""
    compute: float = 0.49
    """Share of the full network's MACs to stay within, policy included."""
    workers: int = 2
    """Processes side by side."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    config = tyro.cli(Config, args=arguments, prog="skipgym demo")
    torch.set_num_threads(1)  # images of 12 x 12 are too small to share: threads would wait for each other
    out, console = _place(config.out), Console()
    plan = CompareConfig(
        data="cluttered-digits",
        backbone="resnet20-w8",
        agents=("ppo", "gumbel"),
        targets=(config.compute,),
        seeds=config.seeds,
        images=config.images,
        num_envs=512,
        hidden=16,  # small gates: on so small a network larger ones cost as much as a block, and learn digits by heart
        oracle_images=100,
        workers=config.workers,
    )
    console.print("1  backbone: a thin ResNet-20 on cluttered digits, trained on first use (about a minute)")
    task, data = prepare(plan)
    console.print(f"2  PPO and Gumbel gates decide before each of {task.horizon} blocks; rivals without training")
    content = compare(plan, out, command=["skipgym", "demo", *arguments])
    console.print("3  results on test data")
    show(content, console)
    row = next(row for row in content["rows"] if row["method"] == "ppo")
    console.print(f"4  the saved controller, loaded again: {_again(out, row, data)}")
    for what, name in (("results", "results.json"), ("figure", "frontier.png"), ("report", "report.html")):
        console.print(f"{what:10} {out / name}")
    console.print(f"controller {out / row['controller']}\ncurves     tensorboard --logdir {out}", soft_wrap=True)
    return 0


def _again(out: Path, row: dict[str, Any], data: ImageData) -> str:
    """Load a saved controller, measure it on the test part, and say so; it must do what it did before it was saved.

    Raises:
        RuntimeError: If it does not.
    """
    found = measure(Controller.load(out / row["controller"]), data.test)
    if (found.accuracy, found.unique_paths) != (row["accuracy"], row["unique_paths"]):
        raise RuntimeError(
            f"the loaded controller is {found.accuracy:.2%} right, the saved one was {row['accuracy']:.2%}."
        )
    return f"{found.accuracy:.2%} at {found.compute:.1%}, as before"


def _place(out: Path) -> Path:
    """Return where to work: the given directory, or, beside a finished demo in it, the next number."""
    number, path = 1, out
    while (path / "results.json").exists():
        number += 1
        path = out.with_name(f"{out.name}-{number}")
    return path
