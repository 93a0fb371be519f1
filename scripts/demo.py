"""`skipgym demo`: the main job on embedded data, from an untrained network to a measured controller."""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from ..agents.baselines import best_static, full_accuracy, random_policy
from ..agents.controller import Controller
from ..agents.evaluate import Measured, measure, result_row, write_results
from ..agents.figure import frontier_figure
from ..agents.policy import full_policy
from ..agents.training import TrainConfig, Trained, claim, prepare, train
from ..data import ImageData
from ..envs.task import Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Pretrain a backbone, train layer skipping with PPO, compare, save, reload, measure on test data."""

    out: Path = Path("demo")
    """Directory for everything that the demo leaves; new or empty, or an earlier demo's."""
    seeds: int = 3
    """PPO is trained so many times."""
    images: int = 120_000
    """Episodes of each training."""
    price: float = 0.26
    """Of compute: so much accuracy is the whole network worth."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.seeds < 1:
            raise ValueError(f"seeds: expected at least 1, got {self.seeds}.")


def main(arguments: list[str]) -> int:
    """Run the command."""
    config = tyro.cli(Config, args=arguments, prog="skipgym demo")
    torch.set_num_threads(1)  # images of 8 x 8 are too small to share: threads would wait for each other
    out = _fresh(config.out)
    console = Console()
    console.print("1  backbone: ResNet-20 on noisy digits, trained on first use (about half a minute)")
    base = TrainConfig(
        data="noisy-digits",
        price=config.price,
        images=config.images,
        num_envs=512,
        agent_options={"n_steps": 9, "batch_size": 1152, "n_epochs": 4, "ent_coef": 0.002},
    )
    task, data = prepare(base)
    console.print(f"2  policy: PPO decides before each of {task.horizon} blocks, {config.seeds} seeds")
    rows: list[dict[str, Any]] = []
    for seed in range(config.seeds):
        run = out / f"ppo-{seed}"
        trained = train(replace(base, seed=seed), task, data, out=run)
        console.print(f"3  seed {seed}: reload the saved controller, measure it and its rivals on test data")
        rows += compare(task, data, Controller.load(run / "controller"), trained, seed)
    write_results(out / "results.json", rows, command=["skipgym", "demo", *arguments])
    frontier_figure(rows, out / "frontier.png")
    console.print(summary(rows))
    console.print(
        f"results    {out / 'results.json'}\nfigure     {out / 'frontier.png'}\ncontroller {out / 'ppo-0/controller'}\n"
        f"curves     tensorboard --logdir {out}"
    )
    return 0


def compare(task: Task, data: ImageData, controller: Controller, trained: Trained, seed: int) -> list[dict[str, Any]]:
    """Return the rows of one seed: PPO, and at its compute the random policy and the best fixed subset."""
    test, full = data.test, full_accuracy(task, data.test)

    def row(method: str, measured: Measured, **more: Any) -> dict[str, Any]:
        return result_row(
            task, measured, method=method, data=data.name, split="test", full_accuracy=full, seed=seed, **more
        )

    learned = measure(controller, test)
    budget = min(1.0, learned.compute)
    spent = {"train_backbone_macs": trained.backbone_macs, "train_seconds": trained.seconds}
    return [
        row("full", measure(Controller(task, full_policy(task)), test)),
        row("random", measure(Controller(task, random_policy(task, budget, seed=seed)), test)),
        row("static", measure(Controller(task, best_static(task, data.policy, budget)), test)),
        row("ppo", learned, price=controller.price, **spent),
    ]


def summary(rows: list[dict[str, Any]]) -> Table:
    """Return a table of means and standard deviations over the seeds."""
    first = rows[0]
    table = Table(title=f"{first['data']}, {first['count']} test images, {first['backbone']}, {first['task']}")
    for column in ("method", "accuracy", "compute", "policy's part", "different paths"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method in dict.fromkeys(row["method"] for row in rows):
        of = [row for row in rows if row["method"] == method]
        accuracy = [row["accuracy"] for row in of]
        spread = f" ± {stdev(accuracy):.2%}" if len(of) > 1 else ""
        table.add_row(
            method,
            f"{mean(accuracy):.2%}{spread}",
            f"{mean(row['compute'] for row in of):.1%}",
            f"{mean(row['policy_macs'] / row['full_macs'] for row in of):.2%}",
            f"{mean(row['unique_paths'] for row in of):.0f}",
        )
    return table


def _fresh(out: Path) -> Path:
    """Return a directory that holds nothing: the given one, or, beside an earlier demo in it, the next number."""
    number, path = 1, out
    while path.exists() and any(path.iterdir()):
        number += 1
        path = out.with_name(f"{out.name}-{number}")
    claim(path)
    return path
