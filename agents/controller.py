"""Policy and backbone in one deployable piece."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..backbones import Backbone, make_backbone
from ..backbones.carried import carried_tensors, describe_carried, with_carried
from ..backbones.registry import load_state
from ..envs.rollout import Run, rollout
from ..envs.task import Task, make_task
from .policy import Decider, Policy, make_policy

FORMAT = 2
"""Of saved controllers. Since 2 gates are told the price's logarithm."""


@dataclass(frozen=True)
class Decision:
    """What a controller makes of N images.

    Attributes:
        logits: Answers. Shape (N, classes).
        macs: Spent, policy included. Shape (N,).
        policy_macs: Spent by the policy. Shape (N,).
        actions: What was decided about each of the task's pieces; -1 where nothing was. Shape (N, pieces).
        compute: `macs` as a share of the full network's. Shape (N,).
        places: Where, of tasks whose decisions have a place, in -1 … 1; NaN where none was said. Shape
            (N, horizon, coordinates).
    """

    logits: Tensor
    macs: Tensor
    policy_macs: Tensor
    actions: Tensor
    compute: Tensor
    places: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """The class with the largest logit. Shape (N,)."""
        return self.logits.argmax(1)


class Controller(nn.Module):
    """A task and a policy: runs images through the network and executes what the policy chooses.

    Args:
        task: What can be decided.
        policy: Who decides.
        price: What a policy that knows several budgets is told, where a call does not say.
        info: Anything to keep with it (JSON): data, training, accuracy.
    """

    def __init__(self, task: Task, policy: Policy, *, price: float = 0.0, info: dict[str, Any] | None = None):
        super().__init__()
        self.task, self.policy, self.price, self.info = task, policy.to(task.device), price, info or {}
        self.eval()

    @torch.inference_mode()
    def forward(self, images: Tensor, *, price: float | None = None, batch_size: int = 512) -> Decision:
        """Answer.

        Args:
            images: Shape (N, C, H, W), uint8 or floats in 0…1.
            price: Of compute, for policies that are told; the controller's own by default.
            batch_size: Rows at a time.

        Raises:
            ValueError: If the images do not fit the backbone, or the price is negative.
        """
        self.task.check_images(images)
        price = self.price if price is None else price
        if not 0 <= price < float("inf"):
            raise ValueError(f"price: expected a number >= 0, got {price}.")
        runs = [self._run(batch, price) for batch in images.split(batch_size)]
        logits, macs, actions = (torch.cat([getattr(r, f) for r, _ in runs]) for f in ("logits", "macs", "actions"))
        policy_macs = torch.cat([spent for _, spent in runs])
        places = [run.places for run, _ in runs if run.places is not None]
        macs = macs + policy_macs
        compute = macs / self.task.full_macs
        return Decision(logits, macs, policy_macs, actions, compute, torch.cat(places) if places else None)

    def _run(self, images: Tensor, price: float) -> tuple[Run, Tensor]:
        """Return what became of the images, and what the policy cost each."""
        inputs = self.task.prepare(images)
        decider = Decider(self.task, self.policy, torch.full((len(inputs),), price, device=inputs.device))
        return rollout(self.task, inputs, decider), decider.macs

    def save(self, path: str | Path) -> Path:
        """Write a directory: `controller.json`, `policy.safetensors`, `backbone.safetensors`, and what that carries.

        Raises:
            FileExistsError: If the path exists.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"controller: expected a new path, got {path}, which exists. Choose another.")
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=path.parent))  # renamed when whole, so that no half of it is ever seen
        try:
            _save_tensors(self.policy, scratch / "policy.safetensors")
            for name, tensors in carried_tensors(self.task.backbone).items():
                save_file(tensors, scratch / f"{name}.safetensors")
            files = {name.name: _sha256(name.read_bytes()) for name in sorted(scratch.iterdir())}
            content = {**self.config(), "files": files}
            (scratch / "controller.json").write_text(json.dumps({**content, "sha256": _hash(content)}, indent=2) + "\n")
            scratch.chmod(0o755)
            os.replace(scratch, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return path

    def config(self) -> dict[str, Any]:
        """Return everything but the weights (JSON)."""
        return {
            "format": FORMAT,
            "task": {"name": self.task.name, "options": self.task.options},
            "backbone": self.task.backbone.config,
            **describe_carried(self.task.backbone),
            "policy": self.policy.config(),
            "price": self.price,
            "macs": {"full": self.task.full_macs, "policy_decision": self.policy.macs},
            "info": self.info,
        }

    @classmethod
    def load(cls, path: str | Path, *, backbone: Backbone | None = None) -> "Controller":
        """Read a saved controller.

        Args:
            path: Directory that `save` wrote.
            backbone: The wrapped network, where it is not one of the registry's; its weights are read from the
                controller.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged, was changed, or comes from a newer skipgym.
        """
        path = Path(path)
        content = _read_json(path / "controller.json")
        tensors = {name: _read_tensors(path / name, digest) for name, digest in content["files"].items()}
        if backbone is None:
            if not content["backbone"]:
                raise ValueError(
                    f"controller {path}: expected backbone=…, since its network is not a registered one, got none. "
                    "Pass the wrapped network: Controller.load(path, backbone=skipgym.wrap(…))."
                )
            backbone = make_backbone(**content["backbone"])
        load_state(backbone, tensors["backbone.safetensors"], str(path))
        backbone = with_carried(backbone, content, tensors, str(path))
        policy = make_policy(content["policy"])
        policy.load_state_dict(tensors["policy.safetensors"])
        task = make_task(content["task"]["name"], backbone, **content["task"]["options"])
        return cls(task, policy, price=content["price"], info=content["info"])


def _save_tensors(module: nn.Module, path: Path) -> None:
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _hash(content: dict[str, Any]) -> str:
    return _sha256(json.dumps(content, sort_keys=True).encode())


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"controller: expected a directory with {path.name}, got {path.parent}. Check the path."
        )
    try:
        content = json.loads(path.read_text())
        found, version = content.pop("sha256"), content["format"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"controller {path}: expected what skipgym saved, got {error!r}. Save it again.") from error
    if version > FORMAT:
        raise ValueError(f"controller {path}: expected format {FORMAT}, got {version}. Update skipgym.")
    if found != _hash(content):
        raise ValueError(f"controller {path}: its hash is not that of its content. It was changed; save it again.")
    if version < 2 and content["policy"].get("layout", {}).get("priced"):
        raise ValueError(
            f"controller {path}: expected format {FORMAT} where the gate is told the price, got {version}, whose gates "
            "were told it otherwise. Train it again."
        )
    return content


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"controller: expected {path}, which does not exist. Copy the whole directory.")
    if _sha256(path.read_bytes()) != digest:
        raise ValueError(f"controller {path}: its hash differs from controller.json. It is truncated or was changed.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"controller {path}: expected safetensors, got {error}. Save it again.") from error
