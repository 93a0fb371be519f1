"""Measure an exported file on data, and hold it against the controller in torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data import ImageData, Part
from ..runtime import Decision, Runtime
from .baselines import full_accuracy
from .controller import Controller
from .export import TOLERANCE

TIMED = 200
"""Images whose latency is measured, one at a time."""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How alike a file and its controller answer.

    Attributes:
        images: Number of images compared.
        decisions: Of these, how many were decided otherwise.
        logits: Largest difference of a logit where decisions agree.
        scale: Largest logit of the controller's, at least 1.
        full_accuracy: Of the untouched network, in torch.
    """

    images: int
    decisions: int
    logits: float
    scale: float
    full_accuracy: float

    @property
    def agrees(self) -> bool:
        """Whether all decisions are the same, and logits differ by at most `TOLERANCE` of the largest."""
        return self.decisions == 0 and self.logits <= TOLERANCE * self.scale


def check_served(runtime: Runtime, data: ImageData) -> None:
    """Check that a file takes the images of a data set, and knows as many classes.

    Raises:
        ValueError: If not.
    """
    card, got = runtime.card, data.image_shape
    if got[1:] != card.input_shape[1:] or got[0] not in (1, card.input_shape[0]):
        raise ValueError(f"data {data.name}: expected images of {card.input_shape}, as the file takes, got {got}.")
    if data.num_classes != len(card.classes):
        raise ValueError(f"data {data.name}: expected {len(card.classes)} classes, got {data.num_classes}.")


def served_row(
    runtime: Runtime, decision: Decision, part: Part, *, data: str, split: str, price: float | None = None
) -> dict[str, Any]:
    """Return one row of `results.json`, with the milliseconds that one image takes."""
    card, macs = runtime.card, decision.macs
    decided = np.maximum((decision.actions >= 0).sum(0), 1)
    executed = ((decision.actions > 0).sum(0) / decided).tolist()
    trained: Mapping[str, Any] = card.content["info"].get("config", {})
    return {
        "task": card.task,
        "backbone": card.content["backbone"],
        "data": data,
        "split": split,
        "method": trained.get("agent", "controller"),
        "runtime": "onnx",
        "price": card.price if price is None else price,
        "seed": trained.get("seed", 0),
        "accuracy": float((decision.labels == part.labels.numpy()).mean()),
        "macs": float(macs.mean()),
        "policy_macs": float(decision.policy_macs.mean()),
        "full_macs": card.full_macs,
        "full_accuracy": None,  # a file holds no untouched network
        "compute": float(macs.mean()) / card.full_macs,
        "count": len(part),
        "unique_paths": len(np.unique(decision.actions, axis=0)),
        "execution": dict(zip(card.pieces, executed, strict=True)),
        "latency": latency(runtime, part, price=price),
    }


def latency(runtime: Runtime, part: Part, *, price: float | None = None) -> dict[str, float]:
    """Return the milliseconds that single images take: median (`p50_ms`) and 95th percentile (`p95_ms`)."""
    told = runtime.price if price is None else price
    (line,) = runtime.calibrate(part.images[:TIMED].numpy(), prices=[told], repeats=1)
    return {"p50_ms": line.p50_ms, "p95_ms": line.p95_ms}


def compare_with_torch(
    controller: Controller, decision: Decision, part: Part, *, price: float | None = None, batch_size: int = 512
) -> Likeness:
    """Run the controller over the same images in torch, and compare."""
    found = [controller(images, price=price, batch_size=batch_size) for images, _, _ in part.batches(batch_size)]
    actions = torch.cat([one.actions for one in found]).cpu().numpy()
    logits = torch.cat([one.logits for one in found]).cpu().numpy()
    same = (decision.actions == actions).all(1)
    return Likeness(
        images=len(part),
        decisions=int((~same).sum()),
        logits=float(np.abs(decision.logits - logits)[same].max(initial=0)),
        scale=max(1.0, float(np.abs(logits).max())),
        full_accuracy=full_accuracy(controller.task, part, batch_size=batch_size),
    )
