"""`skipgym compare`: methods on equal terms."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from ..agents.evaluate import chosen_lines
from ..referee.compare import CellsFailedError, Content, compare
from ..referee.plan import CompareConfig


@dataclass(frozen=True, kw_only=True)
class Config(CompareConfig):
    """Compare methods on one task, backbone and budget of training, over seeds, with intervals.

    The same command again goes on where it was stopped. Leaves results.json, frontier.png, report.html.
    """

    out: Path
    """Directory: new, empty, or of an earlier comparison of the same task, backbone and data."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    config = tyro.cli(Config, args=arguments, prog="skipgym compare")
    try:
        content = compare(config, config.out, command=["skipgym", "compare", *arguments])
    except CellsFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(content, Console())
    for what, name in (("results", "results.json"), ("report", "report.html")):
        print(f"{what:8} {config.out / name}")
    print(f"curves   tensorboard --logdir {config.out}")
    return 0


def show(content: Content, console: Console) -> None:
    """Print the summary and the verdicts."""
    console.width = max(console.width, 110)  # a narrower terminal, or a file, would fold the figures
    console.print(table(content["rows"][0], content["meta"]["summary"]))
    for sentence in content["meta"]["verdicts"]:
        console.print(f"· {sentence}", highlight=False)
    for row in content["rows"]:
        for line in chosen_lines(row):
            console.print(f"{row['budget']}, seed {row['seed']}, {line}", highlight=False)


def table(row: Mapping[str, Any], summary: Sequence[Mapping[str, Any]]) -> Table:
    """Return the summary as a table."""
    title = f"{row['data']}, {row['split']}, {row['count']:,} images, {row['backbone']}, {row['task']}"
    found = Table(title=title)
    for column in ("method", "budget", "seeds", "accuracy [95 %]", "compute", "gain over static", "paths", "constant"):
        found.add_column(column, justify="left" if column in ("method", "budget") else "right")
    for entry in summary:
        found.add_row(
            entry["method"],
            entry["budget"],
            str(entry["seeds"]),
            _percent(entry["accuracy"]),
            f"{entry['compute']['mean']:.1%}",
            _percent(entry["static_gain"]),
            f"{entry['unique_paths']:.0f}" if "unique_paths" in entry else "",
            f"{entry['constant_pieces']:.1f}" if "constant_pieces" in entry else "",
        )
    return found


def _percent(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return ""
    if interval["low"] is None:
        return f"{100 * interval['mean']:.2f}"
    return f"{100 * interval['mean']:.2f} [{100 * interval['low']:.2f}, {100 * interval['high']:.2f}]"
