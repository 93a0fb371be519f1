"""The frontier as a picture: accuracy over compute with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MARKERS = "osD^vPX*<>hd"


def interval_figure(summary: Sequence[Mapping[str, Any]], row: Mapping[str, Any], path: Path) -> None:
    """Draw each method's accuracy over compute, with its intervals, a line through its budgets.

    Args:
        summary: As `summarise` gives.
        row: Any row of the results, for task, backbone, data and the full network's accuracy.
        path: The picture.
    """
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    methods = [name for name in dict.fromkeys(s["method"] for s in summary) if name != "full"]
    for index, name in enumerate(methods):
        of = sorted((s for s in summary if s["method"] == name), key=lambda s: s["compute"]["mean"])
        style = {"learned": "-", "baseline": "--", "bound": ":"}[of[0]["kind"]]
        axes.errorbar(
            [100 * s["compute"]["mean"] for s in of],
            [100 * s["accuracy"]["mean"] for s in of],
            yerr=_errors(of),
            linestyle=style,
            marker=MARKERS[index % len(MARKERS)],
            markerfacecolor="none" if style == ":" else None,
            markersize=5,
            linewidth=1,
            capsize=2,
            label=name,
            color=f"C{index}" if index < 10 else f"{0.3 + 0.1 * (index - 10):.1f}",
        )
    axes.axhline(100 * row["full_accuracy"], color="grey", linewidth=0.8, linestyle="--", label="untouched network")
    axes.set_xlabel("compute, policy included (% of the full network's MACs)")
    axes.set_ylabel(f"{row['split']} accuracy (%)")
    axes.set_title(f"{row['task']} · {row['backbone']} · {row['data']}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    learned = [s["accuracy"]["mean"] for s in summary if s["kind"] == "learned"]
    if learned:  # a random policy far below would flatten all others; the report shows everything
        low, high = min(learned), max(*learned, row["full_accuracy"])
        axes.set_ylim(100 * (low - 0.4 * (high - low) - 0.01), 100 * (high + 0.2 * (high - low) + 0.005))
    figure.savefig(path, dpi=150)


def _errors(of: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Return the distances from mean to limits, 0 where there are none."""

    def distance(s: Mapping[str, Any], end: str) -> float:
        limit = s["accuracy"][end]
        return 0.0 if limit is None else 100 * abs(s["accuracy"]["mean"] - limit)

    return [[distance(s, end) for s in of] for end in ("low", "high")]
