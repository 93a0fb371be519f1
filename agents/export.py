"""Write a controller as one ONNX file that skips for real and needs neither torch nor skipgym."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.card import write_whole
from ..envs.task import Task
from ..runtime.extra import need
from ..runtime.file import FORMAT, KEY, Card, graph_hash
from ..runtime.runtime import Runtime
from .controller import Controller
from .policy import RandomPolicy
from .traced import TracedController, before_macs

if TYPE_CHECKING:
    import onnx

InputType = Literal["float32", "uint8"]
OUTPUTS = ("logits", "actions", "macs", "policy_macs")
OPSET = 20
COMPARED = 16
"""Images of noise on which a file is compared with torch before it is written."""
TOLERANCE = 1e-4
"""Of logits, as a share of the largest (of 1, where that is smaller): sums are taken in another order."""


def export_onnx(controller: Controller, path: str | Path, *, input_type: InputType = "float32") -> Path:
    """Write a controller as an ONNX file, for one image at a time; `skipgym.runtime` runs batches from it too.

    Inputs are `image` (1, C, H, W), floats in 0…1 or uint8, and `price` (1,), float. Outputs are `logits`
    (1, classes), `actions` (1, pieces) with -1 where nothing was decided, `macs` (1,), policy included, and
    `policy_macs` (1,). The metadata entry `skipgym` tells the rest as JSON.
    Before anything is written, the file runs on images of noise and is compared with the controller.

    Args:
        controller: Of any task that keeps its rows together, with a policy that can be saved.
        path: Of the file, which must not exist.
        input_type: Of the images.

    Raises:
        FileExistsError: If the file exists.
        ImportError: If the extra `onnx` is not installed.
        ValueError: If the task or the policy cannot be written, or decides or answers otherwise than in torch.
    """
    need("onnx", "onnxruntime", "onnxscript")
    path = _new(path)
    if isinstance(controller.policy, RandomPolicy):
        raise ValueError("export: expected a policy without chance, got random. Export a trained one, or static.")
    if controller.task.takes_clips:
        raise ValueError(
            f"export: expected a task on images, got {controller.task.name}, which takes clips or texts of any length. "
            "Serve it by skipgym.Controller instead."
        )
    if controller.task.has_masks:
        raise ValueError(
            f"export: expected a task whose options are ways through the network, got {controller.task.name}, which "
            "leaves out places within it. Serve it by skipgym.Controller instead."
        )
    if controller.task.coordinates:
        raise ValueError(
            f"export: expected a task whose decisions are among options, got {controller.task.name} whose places are "
            "numbers. Take places of a grid, --task-options places grid, or serve it by skipgym.Controller instead."
        )
    model = _written(controller, input_type)
    _put(path, model)
    return path


def export_static(task: Task, path: str | Path) -> Path:
    """Write the untouched network as a plain ONNX file, to compare speeds with: `image` to `logits`, any rows.

    Args:
        task: Whose network; images are floats in 0…1.
        path: Of the file, which must not exist.

    Raises:
        FileExistsError: If the file exists.
        ImportError: If the extra `onnx` is not installed.
    """
    need("onnx", "onnxscript")
    path, rows = _new(path), {0: torch.export.Dim.DYNAMIC}
    image = torch.zeros((2, *task.backbone.input_shape))
    with torch.no_grad():
        program = torch.export.export(_Untouched(task).eval(), (image,), dynamic_shapes=(rows,), strict=False)
    _put(path, _onnx(program, ["image"], ["logits"]))
    return path


class _Untouched(nn.Module):
    """The untouched network from images to logits."""

    def __init__(self, task: Task):
        super().__init__()
        self.task = task

    def forward(self, image: Tensor) -> Tensor:
        return self.task.untouched(image)


def _new(path: str | Path) -> Path:
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"export: expected a new file, got {path}, which exists. Choose another name.")
    return path


def _onnx(program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Return a traced program as an ONNX model."""
    written = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs, verbose=False
    )
    if written is None:
        raise RuntimeError("export: expected torch.onnx to return a program, got none.")
    return written.model_proto


def _put(path: Path, model: "onnx.ModelProto") -> None:
    """Write a file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: part.write_bytes(model.SerializeToString()))


def _written(controller: Controller, input_type: InputType) -> "onnx.ModelProto":
    """Return the model that a file holds, compared with the controller."""
    from ..runtime.flow import with_branches
    from ..runtime.tidy import tidied

    name = controller.task.name
    try:
        marked, costs, batched = _marked(controller, input_type)
        model = tidied(with_branches(marked))
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = 1
        content = describe(controller, input_type, costs, batched=batched)
        entry = model.metadata_props.add(key=KEY)
        entry.value = json.dumps({**content, "sha256": graph_hash(model)}, sort_keys=True)
        _compare(controller, Runtime(model, Card.of(content)))
    except Exception as error:  # torch, ONNX and its runtime each refuse in errors of their own
        raise ValueError(
            f"export: expected that {name} can be written as ONNX, got {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''} Serve it by skipgym.Controller instead."
        ) from error
    return model


def _compare(controller: Controller, runtime: Runtime) -> None:
    """Run noise of several strengths in every way, and by the controller.

    Raises:
        ValueError: If decisions, MACs or logits differ.
    """
    shape, generator = controller.task.backbone.input_shape, torch.Generator().manual_seed(0)
    strength = torch.linspace(0, 255, COMPARED).view(-1, *(1,) * len(shape))
    images = (strength * torch.rand(COMPARED, *shape, generator=generator)).to(torch.uint8)
    expected = controller(images.to(controller.task.device))
    for way in runtime.ways:
        found = runtime(images.numpy(), way=way)
        for name in ("actions", "macs", "policy_macs", "logits"):
            wanted, got = getattr(expected, name).cpu().numpy(), getattr(found, name)
            atol = TOLERANCE * max(1.0, float(abs(wanted).max())) if name == "logits" else 0
            if not np.allclose(got, wanted, rtol=0, atol=atol):
                raise ValueError(f"{name} ({way}) differ from torch's by up to {abs(got - wanted).max():.3g}.")


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
    task, batched = controller.task, True
    traced = TracedController(task, controller.policy, before_macs=before_macs(task)).eval()
    program = _program(traced, input_type, rows=2)
    if isinstance(_rows(program), int):
        batched, program = False, _program(traced, input_type, rows=1)
    return _onnx(program, ["image", "price"], OUTPUTS), [costs for _, costs in traced.bill.entries], batched


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
