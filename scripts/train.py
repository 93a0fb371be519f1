"""`skipgym train`: train a policy on a task and save its controller."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from ..agents.evaluate import never_chosen
from ..agents.training import TrainConfig, claim, prepare, train


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Train a policy on a task and save its controller to OUT/controller."""

    out: Path
    """Run directory: configuration, TensorBoard events, controller, results.json. New or empty."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    config = tyro.cli(Config, args=arguments, prog="skipgym train")
    claim(config.out)
    task, data = prepare(config)
    trained = train(config, task, data, out=config.out)
    val = trained.val
    print(
        f"{config.out / 'controller'}: validation accuracy {val.accuracy:.2%} at {val.compute:.1%} of the full "
        f"network's MACs (policy included), {val.unique_paths} different paths, {trained.seconds:.0f} s of training\n"
        f"next: skipgym evaluate {config.out / 'controller'} --data {config.data} --split test\n"
        f"      tensorboard --logdir {config.out}"
    )
    for line in never_chosen(config.agent, task.called(val.actions)):
        print(f"warning: {line} (on validation images)")
    return 0
