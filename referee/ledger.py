"""What of a comparison is done: one directory for each cell, whole or not there."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from .cell import IMAGES, RESULT
from .plan import Cell, CompareConfig, as_json

PLAN = "compare.json"
SAME = ("task", "backbone", "data", "weights", "task_options")
"""What all cells of a directory must share."""


class Ledger:
    """A comparison's directory.

    Args:
        out: The directory: new, empty, or one of an earlier comparison of the same task, backbone and data.
        config: What is compared.
        identity: Fingerprints of backbone and data.

    Raises:
        FileExistsError: If the directory holds anything else.
        ValueError: If it belongs to a comparison of another task, backbone or data.
    """

    def __init__(self, out: Path, config: CompareConfig, identity: dict[str, str]):
        self.out, self.config, self.identity = out, config, identity
        plan = {"identity": identity, "config": as_json(config)}
        if (out / PLAN).is_file():
            _check_same(json.loads((out / PLAN).read_text()), plan, out)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(
                f"--out {out}: expected a new or empty directory, or one of an earlier comparison, got one in use. "
                "Choose another."
            )
        out.mkdir(parents=True, exist_ok=True)
        part = out / f"{PLAN}.part"
        part.write_text(json.dumps(plan, indent=2) + "\n")
        os.replace(part, out / PLAN)

    def directory(self, cell: Cell) -> Path:
        """Return where a cell is, or will be."""
        return self.out / "runs" / cell.key(self.config, self.identity)

    def done(self, cell: Cell) -> bool:
        """Return whether a cell is finished."""
        return (self.directory(cell) / RESULT).is_file()

    def rows(self, cell: Cell) -> list[dict[str, Any]]:
        """Return a finished cell's rows."""
        return json.loads((self.directory(cell) / RESULT).read_text())["rows"]

    def arrays(self, cell: Cell) -> dict[str, Tensor]:
        """Return what a finished cell keeps of each test image."""
        return load_file(self.directory(cell) / IMAGES)


def _check_same(begun: dict[str, Any], plan: dict[str, Any], out: Path) -> None:
    differing = [
        f"{name} {begun['config'].get(name)!r}, got {plan['config'][name]!r}"
        for name in SAME
        if begun["config"].get(name) != plan["config"][name]
    ]
    if not differing and begun["identity"] != plan["identity"]:
        differing = [f"backbone and data {begun['identity']}, got {plan['identity']}"]
    if differing:
        raise ValueError(
            f"--out {out}: begun with something else: expected {'; '.join(differing)}. Rows of different backbones, "
            "tasks or data are not comparable. Choose another --out."
        )
