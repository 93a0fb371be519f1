"""What every `skipgym bench` tells of its figures, and the file that they are left in."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..agents.evaluate import versions
from ..backbones.card import write_whole
from ..bench.race import machine


def check_new(out: Path | None) -> None:
    """Raise a FileExistsError unless a file can be made there; None is for no file."""
    if out and (out.exists() or not out.parent.is_dir()):
        raise FileExistsError(f"--out {out}: expected a new file in a directory that exists. Choose another.")


def origin(name: str, config: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what figures were made with: command, configuration, machine, versions."""
    return {
        "command": ["skipgym", "bench", name, *arguments],
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "machine": machine(),
        "versions": versions(),
    }


def leave(out: Path | None, found: dict[str, Any]) -> None:
    """Write figures (JSON) in one step, where a file was asked for."""
    if out:
        write_whole(out, lambda part: part.write_text(json.dumps(found, indent=1) + "\n"))
