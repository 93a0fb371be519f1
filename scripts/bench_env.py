"""`skipgym bench env`: decisions per second, as ratios in one run, and where a learner's time goes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import tyro
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from ..backbones.threads import threads
from ..bench.environments import compare_environments
from ..bench.ground import Ground
from ..bench.learners import AGENTS, KINDS, spend
from ..bench.scaling import Scale, scale_up
from ..bench.tables import TableSize, pace_of_prefix, pace_of_table
from ..envs.begun import Prefix
from .figures import check_new, leave, origin

What = Literal["environments", "learners", "table", "prefix", "scaling"]
NAMES = {
    "ours": "ours, batched",
    "limit": "limit: the same executions, bare",
    "masked": "ours, everything executed",
    "single": "single ones in DummyVecEnv",
    "live": "from images",
    "stored": "from stored features",
}


@dataclass(frozen=True, kw_only=True)
class Config(Ground):
    """Measure how fast an environment is: against the bare network, masked execution, and single environments.

    Also where the wall-clock of PPO and of our REINFORCE goes, and how fast an outcome table is. Weights and images are
    random. All of a kind run in turn, and ratios are formed round by round.
    """

    what: tuple[What, ...] = ("environments", "learners")
    """What to measure; table: for tasks with few ways through, or that look at pieces; prefix: from images against from
    stored features; scaling: time and memory by slots, images and blocks."""
    single_envs: int = 64
    """Single environments in DummyVecEnv."""
    images: int = 2048
    """Episodes that each learner trains for."""
    table: TableSize = field(default_factory=TableSize)
    """How large a table, or a file of stored features, and for how many."""
    scale: Scale = field(default_factory=Scale)
    """What is varied for the scaling."""
    out: Path | None = None
    """File for the figures (JSON); new."""

    def __post_init__(self) -> None:
        """Check what is not the ground's."""
        super().__post_init__()
        for name in ("single_envs", "images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if not self.what:
            raise ValueError(f"what: expected one or more of {', '.join(get_args(What))}, got none.")
        check_new(self.out)


def main(arguments: list[str]) -> int:
    """Run the command."""
    config = tyro.cli(Config, args=arguments, prog="skipgym bench env")
    with threads(config.threads):
        found = origin("env", config, arguments) | measured(config)
    show(found)
    leave(config.out, found)
    return 0


def measured(config: Config) -> dict[str, Any]:
    """Return the figures of each kind that was asked for.

    Raises:
        ValueError: If the task cannot be measured so; told before anything is.
    """
    data = config.data()
    task = config.made(data)
    record = task.record() if "table" in config.what else None
    prefix = Prefix(task) if "prefix" in config.what else None
    kinds: dict[What, Callable[[Callable[[], object]], Any]] = {
        "environments": lambda told: compare_environments(
            config, task, data, single_envs=config.single_envs, told=told
        ).as_json("ours"),
        "learners": lambda told: {
            agent: spend(config, task, data, agent=agent, images=config.images) for agent in AGENTS
        },
        "table": lambda told: pace_of_table(config, record or task.record(), data, config.table, told),
        "prefix": lambda told: pace_of_prefix(config, prefix or Prefix(task), data, config.table, told),
        "scaling": lambda told: scale_up(config, config.scale, told=told),
    }
    with tqdm(desc="bench", unit="run", leave=False, disable=None) as bar:
        return {kind: kinds[kind](bar.update) for kind in config.what}


def show(found: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    console = Console()
    console.width = max(console.width, 100)  # a narrower terminal, or a file, would fold the figures
    config, on = found["config"], found["machine"]
    shape = " x ".join(map(str, config["shape"]))
    console.print(f"{config['task']}, {config['backbone']}, images of {shape}, {config['num_envs']} slots")
    console.print(f"{on['processor']}, {on['cores']} cores, threads: {on['threads']}, {config['timer']} time")
    tables = {
        "environments": _environments,
        "learners": _learners,
        "table": _table,
        "prefix": _prefix,
        "scaling": _scaling,
    }
    for kind, table in tables.items():
        if kind in found:
            console.print(table(found[kind]))


def _environments(found: Mapping[str, Any]) -> Table:
    return _paces(found, "decisions per second (quartiles), and how many times as fast ours is", "ours to it")


def _prefix(found: Mapping[str, Any]) -> Table:
    kept = f"{found['rows']:,} rows of {found['kept']}, {found['bytes'] / 1e6:,.0f} MB"
    return _paces(found, f"decisions per second (quartiles), of {kept}", "stored to it")


def _paces(found: Mapping[str, Any], title: str, ratio: str) -> Table:
    table = Table(title=title)
    for column in ("", "decisions per second", ratio):
        table.add_column(column, justify="right" if column else "left")
    for name, rate in found["per_second"].items():
        table.add_row(NAMES[name], _spread(rate, ",.0f"), _spread(found["ratio"].get(name), ".2f"))
    return table


def _learners(found: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title="where a learner's wall-clock goes, validation aside")
    for column in ("", *found, "what"):
        table.add_column(column, justify="right" if column in found else "left")
    for kind, what in KINDS.items():
        shares = [f"{seconds[kind] / sum(seconds.values()):.1%}" for seconds in found.values()]
        table.add_row(kind, *shares, what)
    return table


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(title=f"from a table of {found['rows']:,} rows, {found['kept']} each, {found['bytes'] / 1e6:,.0f} MB")
    for column in ("", "decisions per second"):
        table.add_column(column, justify="right" if column else "left")
    for name, rate in found["per_second"].items():
        table.add_row(name, _spread(rate, ",.0f"))
    return table


def _scaling(found: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="an episode of all slots: its time, and what data and environment take of memory")
    for column in ("varied", "slots", "images", "blocks", "seconds", "decisions per second", "MB"):
        table.add_column(column, justify="left" if column == "varied" else "right")
    for point in found:
        counts = [f"{point[name]:,}" for name in ("num_envs", "images", "blocks")]
        pace = f"{point['seconds']:.3f}", f"{point['decisions_per_second']:,.0f}"
        table.add_row(point["varied"], *counts, *pace, f"{point['bytes'] / 1e6:,.0f}")
    return table


def _spread(found: Mapping[str, float] | None, form: str) -> str:
    """Return the median, with the quartiles."""
    return "" if found is None else "{median:{f}} [{low:{f}}, {high:{f}}]".format(**found, f=form)
