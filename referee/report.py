"""The report of a comparison: one HTML page that needs neither network nor server."""

import json
import math
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

PLACEHOLDER = "__CONTENT__"
"""Where the template takes the results, once."""


def write_report(content: dict[str, Any], path: Path) -> None:
    """Write the page in one step, so that no half-written report is ever seen.

    Args:
        content: As in `results.json`: `rows`, and `meta` with `summary`, `verdicts`, `areas`, `notes`, `command`,
            `classes`, `pieces` and versions. Shares (accuracy, compute, `static_gain`, `areas`) lie in 0…1; an area's
            `mean` is the accuracy averaged over its range of compute. What is missing is missing in the page.
        path: The page, replaced if there is one.
    """
    page = fill(template(), content)
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)


def template() -> str:
    """Return the page without results."""
    return (files("skipgym.referee") / "report.html").read_text(encoding="utf-8")


def fill(page: str, content: Mapping[str, Any]) -> str:
    """Put results into the page.

    Raises:
        ValueError: If the page has not exactly one placeholder.
    """
    if (count := page.count(PLACEHOLDER)) != 1:
        raise ValueError(f"report template: expected {PLACEHOLDER} once, got it {count} times. Restore report.html.")
    return page.replace(PLACEHOLDER, script_json(content))


def script_json(content: Any) -> str:
    """Return JSON that may stand inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(_finite(content), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """Return the value with null for NaN and infinity, which are not JSON and would leave the page empty."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
