"""Exported files: what they tell about themselves, and whether they are whole."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .extra import need

if TYPE_CHECKING:
    import onnx

FORMAT = 1
KEY = "skipgym"
"""Of our entry in a file's metadata."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What an exported file tells about itself.

    Attributes:
        task: Name of the task.
        classes: Names of the outputs.
        input_shape: (C, H, W) of an image.
        input_type: `float32` in 0…1, or `uint8`.
        price: Default price.
        prices: Least and largest price that the policy knows; None where there is no largest.
        pieces: What is decided about, one name for each action.
        full_macs: Cost of the untouched network, in MACs of one image.
        batched: Whether its pieces hold for any number of rows.
        content: Everything, as it stands in the file (JSON).
    """

    task: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    input_type: str
    price: float
    prices: tuple[float, float | None]
    pieces: tuple[str, ...]
    full_macs: int
    batched: bool
    content: dict[str, Any]

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Card":
        """Read the metadata.

        Raises:
            KeyError: If something is missing.
        """
        price, (channels, height, width) = content["price"], content["input"]["shape"]
        return cls(
            task=content["task"]["name"],
            classes=tuple(content["classes"]),
            input_shape=(channels, height, width),
            input_type=content["input"]["type"],
            price=price["default"],
            prices=(price["least"], price["most"]),
            pieces=tuple(content["pieces"]),
            full_macs=content["macs"]["full"],
            batched=content["batched"],
            content=content,
        )


def graph_hash(model: "onnx.ModelProto") -> str:
    """Return the SHA-256 of a model's graph, weights included."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def read(path: str | Path) -> "tuple[onnx.ModelProto, Card]":
    """Read an exported file.

    Raises:
        FileNotFoundError: If there is none.
        ImportError: If the extra `onnx` is not installed.
        ValueError: If it is damaged, was changed, was not written by skipgym, or comes from a newer one.
    """
    need("onnx", "onnxruntime")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"runtime: expected an exported file, got {path}, which is none. Check the path.")
    model = _parse(path)
    content = _metadata(model, path)
    if content["format"] > FORMAT:
        raise ValueError(f"runtime {path}: expected format {FORMAT}, got {content['format']}. Update skipgym.")
    found = content.pop("sha256", None)
    if found != graph_hash(model):
        raise ValueError(f"runtime {path}: its hash is not that of its graph. It was changed; export it again.")
    try:
        return model, Card.of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"runtime {path}: expected whole metadata, got {error!r}. Export it again.") from error


def _parse(path: Path) -> "onnx.ModelProto":
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"runtime {path}: expected ONNX, got {error}. It is truncated or no ONNX file.") from error
    if not model.graph.node:
        raise ValueError(f"runtime {path}: expected an ONNX graph, got none. It is truncated or no ONNX file.")
    return model


def _metadata(model: "onnx.ModelProto", path: Path) -> dict[str, Any]:
    entries = {entry.key: entry.value for entry in model.metadata_props}
    try:
        content = json.loads(entries[KEY])
        version = content["format"]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"runtime {path}: expected a file that skipgym exported, got one without its metadata ({error!r}). "
            "Export a controller: skipgym export CONTROLLER --format onnx --out FILE."
        ) from error
    if not isinstance(version, int):
        raise ValueError(f"runtime {path}: expected a format number, got {version!r}. Export it again.")
    return content
