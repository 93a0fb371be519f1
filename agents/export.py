"""Write a controller as one ONNX file that skips for real and needs neither torch nor skipgym."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..runtime.extra import need
from ..runtime.file import FORMAT, KEY, graph_hash
from .controller import Controller
from .policy import RandomPolicy
from .traced import TracedController, before_macs

InputType = Literal["float32", "uint8"]
OUTPUTS = ("logits", "actions", "macs", "policy_macs")
OPSET = 20


def export_onnx(controller: Controller, path: str | Path, *, input_type: InputType = "float32") -> Path:
    """Write a controller as an ONNX file, for one image at a time; `skipgym.runtime` runs batches from it too.

    Inputs are `image` (1, C, H, W), floats in 0…1 or uint8, and `price` (1,), float. Outputs are `logits`
    (1, classes), `actions` (1, pieces) with -1 where nothing was decided, `macs` (1,), policy included, and
    `policy_macs` (1,). The metadata entry `skipgym` tells the rest as JSON.

    Args:
        controller: Of any task that keeps its rows together, with a policy that can be saved.
        path: Of the file, which must not exist.
        input_type: Of the images.

    Raises:
        FileExistsError: If the file exists.
        ImportError: If the extra `onnx` is not installed.
        ValueError: If the task or the policy cannot be written.
    """
    need("onnx", "onnxruntime", "onnxscript")
    import onnx

    from ..runtime.flow import with_branches

    path = Path(path)
    if path.exists():
        raise FileExistsError(f"export: expected a new file, got {path}, which exists. Choose another name.")
    if isinstance(controller.policy, RandomPolicy):
        raise ValueError("export: expected a policy without chance, got random. Export a trained one, or static.")
    marked, costs, batched = _marked(controller, input_type)
    model = with_branches(marked)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    content = describe(controller, input_type, costs, batched=batched)
    entry = model.metadata_props.add(key=KEY)
    entry.value = json.dumps({**content, "sha256": graph_hash(model)}, sort_keys=True)
    onnx.checker.check_model(model, full_check=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(model.SerializeToString())
    os.replace(part, path)  # whole, or not at all
    return path


def describe(
    controller: Controller, input_type: InputType, costs: list[list[float]], *, batched: bool
) -> dict[str, Any]:
    """Return what the file tells about itself (JSON)."""
    from .. import __version__

    task, backbone, config = controller.task, controller.task.backbone, controller.config()
    trained = controller.info.get("config", {}).get("price")
    known = trained if isinstance(trained, list | tuple) and trained else [0.0, None]
    return {
        "format": FORMAT,
        "skipgym": __version__,
        "task": config["task"],
        "backbone": backbone.name,
        "classes": list(backbone.class_names),
        "input": {
            "shape": list(backbone.input_shape),
            "type": input_type,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
        },
        "price": {
            "default": controller.price,
            "least": min(known) if known[-1] is not None else 0.0,
            "most": max(known) if known[-1] is not None else None,
            "told": controller.policy.priced,
        },
        "pieces": task.pieces,
        "macs": {
            "full": task.full_macs,
            "least": task.least_macs,
            "most": task.most_macs,
            "policy_decision": controller.policy.macs,
            "pieces": costs if len(costs) == len(task.pieces) else None,
        },
        "batched": batched,
        "hashes": {"weights": backbone.identity(), "policy": _policy_hash(controller)},
        "info": _plain(controller.info),
    }


def _policy_hash(controller: Controller) -> str:
    from ..backbones.exits import digest

    return digest(controller.policy.state_dict())


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    """Return what of the notes is short: where they were trained, on what."""
    return {key: info[key] for key in ("data", "config", "accuracy") if key in info}


def _marked(controller: Controller, input_type: InputType) -> tuple[Any, list[list[float]], bool]:
    """Return the ONNX model with marked branches, what options cost, and whether it holds for any number of rows.

    A task that reads the number of rows as a Python number, `len(x)` in place of `x.shape[0]`, is traced for one row.
    """
    task, costs, batched = controller.task, list[list[float]](), True
    traced = TracedController(task, controller.policy, before_macs=before_macs(task), costs=costs.append).eval()
    program = _program(traced, input_type, rows=2)
    if isinstance(_rows(program), int):
        costs.clear()
        batched, program = False, _program(traced, input_type, rows=1)
    written = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=["image", "price"], output_names=OUTPUTS, verbose=False
    )
    if written is None:
        raise RuntimeError("export: expected torch.onnx to return a program, got none.")
    return written.model_proto, costs, batched


def _rows(program: torch.export.ExportedProgram) -> int | torch.SymInt:
    """Return the number of rows of the image that a program takes."""
    named = {node.name: node for node in program.graph.nodes}
    return named["image"].meta["val"].shape[0]


def _program(traced: TracedController, input_type: InputType, *, rows: int) -> torch.export.ExportedProgram:
    shape, automatic = traced.task.backbone.input_shape, torch.export.Dim.AUTO
    image = torch.zeros((rows, *shape), dtype=torch.uint8 if input_type == "uint8" else torch.float32)
    dims = {0: automatic if rows > 1 else torch.export.Dim.STATIC}
    inputs: tuple[Tensor, Tensor] = (image, torch.zeros(rows))
    with torch.no_grad():
        return torch.export.export(traced, inputs, dynamic_shapes=(dims, dims), strict=False)
