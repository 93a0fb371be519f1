"""`skipgym export`: write a controller as one file that runs without torch and without skipgym."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..agents.controller import Controller
from ..agents.export import InputType, export_onnx


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a controller as one ONNX file that skips for real."""

    controller: Annotated[Path, tyro.conf.Positional]
    """Directory of a controller."""
    out: Path
    """The file to write; it must not exist."""
    format: Literal["onnx"] = "onnx"
    """What to write."""
    input_type: InputType = "float32"
    """Of the images: floats in 0…1, or uint8."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    config = tyro.cli(Config, args=arguments, prog="skipgym export")
    written = export_onnx(Controller.load(config.controller), config.out, input_type=config.input_type)
    print(f"{written}: {written.stat().st_size / 1e6:.1f} MB. Serve it: skipgym.runtime.Runtime.load({str(written)!r})")
    return 0
