"""How whatever a frozen network carries is trained: exits, a reader, a recurrent network."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data import Augment, ImageData

SLOWER = 0.1
"""Of the learning rate, for a network that is trained with what it carries."""


class Pace(Protocol):
    """What a recipe says of the passes over the data; `lr` is AdamW's at the start, and falls to 0 by half a cosine."""

    @property
    def epochs(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def seed(self) -> int: ...


def fit(
    part: nn.Module,
    data: ImageData,
    pace: Pace,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    what: str,
    device: str | torch.device,
    quiet: bool,
    slower: nn.Module | None = None,
) -> None:
    """Train a module in place, and leave it frozen on the CPU.

    It sees images of the train part, varied as in pretraining; the policy's images are kept away.

    Args:
        part: What is trained.
        data: Images, or clips.
        pace: Of the training.
        loss: Of inputs, not yet prepared, and labels, both on the device.
        what: It is called beside the progress bar.
        device: Where to compute.
        quiet: Whether to draw no progress bar.
        slower: Is trained with it, at a tenth of the rate, in the mode it is in; stays where it is.

    Raises:
        ValueError: If there are too few images.
    """
    check_enough(data, pace.batch_size)
    part.to(device).train()
    groups = [{"params": part.parameters()}]
    groups += [{"params": slower.parameters(), "lr": SLOWER * pace.lr}] if slower else []
    optimizer = torch.optim.AdamW(groups, pace.lr, weight_decay=1e-2)
    steps = pace.epochs * (len(data.train) // pace.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = varied_batches(data, pace.epochs, pace.batch_size, pace.seed)
    for inputs, labels in tqdm(batches, what, steps, leave=False, disable=True if quiet else None):
        found = loss(inputs.to(device), labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        found.backward()
        optimizer.step()
        schedule.step()
    part.eval().requires_grad_(False).cpu()


def check_enough(data: ImageData, batch_size: int) -> None:
    """Raise a ValueError unless there are training images for a batch."""
    if len(data.train) < batch_size:
        raise ValueError(
            f"batch_size: expected at most the {len(data.train)} training images of {data.name}, "
            f"got {batch_size}. Change --batch-size."
        )


def varied_batches(data: ImageData, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels of all epochs, varied; what is left of an epoch after the last full batch is dropped."""
    generator = torch.Generator().manual_seed(seed)
    count = len(data.train) // batch_size * batch_size
    for _ in range(epochs):
        order = torch.randperm(len(data.train), generator=generator)[:count]
        for rows in order.split(batch_size):
            uniforms = torch.rand((len(rows), Augment.draws), generator=generator)
            yield data.augment.apply(data.train.images[rows], uniforms), data.train.labels[rows]


def settings_digest(revision: int, settings: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that change with settings, and with the revision of the code that takes them."""
    return hashlib.sha256(json.dumps([revision, settings], sort_keys=True).encode()).hexdigest()[:16]
