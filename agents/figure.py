"""Pictures of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def frontier_figure(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy over compute, a colour for each method and a point for each row of results."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for method in dict.fromkeys(row["method"] for row in rows):
        of = [row for row in rows if row["method"] == method]
        axes.scatter([100 * r["compute"] for r in of], [100 * r["accuracy"] for r in of], label=method, alpha=0.8)
    first = rows[0]
    axes.axhline(100 * first["full_accuracy"], color="grey", linewidth=0.8, linestyle="--", label="untouched network")
    axes.set_xlabel("compute, policy included (% of the full network's MACs)")
    axes.set_ylabel(f"{first['split']} accuracy (%)")
    axes.set_title(f"{first['task']} · {first['backbone']} · {first['data']}")
    axes.set_xlim(0, 105)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
