"""Train a recurrent network on a frozen one, with steps left out at random, so that it bears skipping."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import ImageData, Part
from .backbone import Backbone
from .fitting import fit, settings_digest
from .moments import frame_macs
from .reader_training import write_beside
from .recurrent import CellKind, Recurrent
from .sequences import prepare_steps, step_features

REVISION = 1  # of the training code; raise it when the same recipe gives other weights


@dataclass(frozen=True, kw_only=True)
class RecurrentRecipe:
    """How a recurrent network is trained. Its weights follow from this, the frozen network and the data alone.

    Raises:
        ValueError: If a value is out of range.
    """

    cell: CellKind = "gru"
    """Kind of cell."""
    hidden: int = 128
    """Units."""
    skim: int = 0
    """Units that a small cell updates where a step is skimmed; 0 for no small cell."""
    whole: float = 0.5
    """Share of the sequences of which every step is read. Of the others steps are left out, at a rate that is drawn
    evenly for each; with a small cell half of those left out are skimmed instead."""
    epochs: int = 10
    """Passes over the train part of the data."""
    batch_size: int = 128
    """Sequences in a step."""
    lr: float = 1e-2
    """Of AdamW at the start; it falls to 0 by half a cosine."""
    seed: int = 0
    """Of initial weights, order and skips."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("hidden", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)!r}. Change it.")
        if self.batch_size < 2 or not 0 < self.lr < float("inf") or not 0 <= self.whole <= 1:
            got = f"{self.batch_size}, {self.lr} and {self.whole}"
            raise ValueError(f"recurrent: expected batch_size >= 2, lr > 0 and whole in 0 … 1, got {got}.")

    def check_data(self, data: ImageData) -> None:
        """Raise a ValueError unless these are clips."""
        if not data.is_clips:
            raise ValueError(
                f"data {data.name}: expected clips or texts for a recurrent network, got images. Take other data."
            )

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change with the recipe and with the training code's revision."""
        return settings_digest(REVISION, asdict(self))

    def build(self, backbone: Backbone, steps: int) -> Recurrent:
        """Return an untrained one for the features of a network.

        Raises:
            ValueError: If that gives no feature maps.
        """
        frame_macs(backbone)  # which refuses one without
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            shape = {"steps": steps, "cell": self.cell, "hidden": self.hidden, "skim": self.skim}
            return Recurrent(backbone.blocks[-1].out_shape[0], backbone.num_classes, **shape)


def train_recurrent(
    backbone: Backbone,
    data: ImageData,
    recipe: RecurrentRecipe,
    *,
    device: str | torch.device = "cpu",
    quiet: bool = True,
) -> Backbone:
    """Return the backbone with a trained recurrent network; its own is not touched.

    It answers, and is corrected, after each step, and most of all after the last: so it can be asked at any time.

    Raises:
        ValueError: If these are no clips, there are too few, or the network gives no feature maps.
    """
    recipe.check_data(data)
    reader = recipe.build(backbone, data.train.images.shape[1])
    trunk = backbone.frozen().to(device)
    generator = torch.Generator().manual_seed(recipe.seed)

    def loss(clips: Tensor, labels: Tensor) -> Tensor:
        how = draw_skips(len(clips), reader.steps, generator, whole=recipe.whole, skims=recipe.skim > 0)
        return _loss(*answers_after(trunk, reader, clips, how.to(clips.device)), labels)

    fit(reader, data, recipe, loss, what="recurrent network", device=device, quiet=quiet)
    return backbone.with_reader(reader)


def draw_skips(count: int, steps: int, generator: torch.Generator, *, whole: float, skims: bool) -> Tensor:
    """Draw what becomes of each step: 2 it is read, 1 skimmed, 0 left out. Shape (count, steps)."""
    rate, partly = (torch.rand((count, 1), generator=generator) for _ in range(2))
    drawn, kind = (torch.rand((count, steps), generator=generator) for _ in range(2))
    skipped = (drawn < rate) & (partly >= whole)
    return torch.where(skipped, (kind < 0.5).long() * int(skims), 2)


def answers_after(trunk: Backbone, reader: Recurrent, clips: Tensor, how: Tensor) -> tuple[Tensor, Tensor]:
    """Return the answers after each step, and which steps are real.

    Args:
        trunk: Frozen.
        reader: The recurrent network.
        clips: Not yet prepared. Shape (N, T, C, H, W).
        how: From `draw_skips`. Shape (N, steps).

    Returns:
        Shapes (N, steps, classes) and (N, steps).
    """
    with torch.no_grad():
        x, real = prepare_steps(trunk, clips, reader.steps)
        features = step_features(trunk, x.flatten(0, 1))
    seen = reader.norm(features).unflatten(0, x.shape[:2])
    memory, kept = features.new_zeros((len(clips), reader.memory_size)), []
    for step in range(reader.steps):
        use = how[:, step] * (real[:, step] > 0)
        after = torch.where((use == 2)[:, None], reader.updated(memory, seen[:, step]), memory)
        if reader.skim:
            after = torch.where((use == 1)[:, None], reader.partly_updated(memory, seen[:, step]), after)
        memory = after
        kept.append(memory)
    answers = reader.answer(torch.stack(kept, 1).flatten(0, 1))
    return answers.unflatten(0, real.shape), real


def _loss(answers: Tensor, real: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of the last answers, and the mean of those on the way."""
    each = F.cross_entropy(answers.flatten(0, 1), labels.repeat_interleave(answers.shape[1]), reduction="none")
    on_the_way = (each.view_as(real) * real).sum() / real.sum()
    return F.cross_entropy(answers[:, -1], labels) + on_the_way


@torch.no_grad()
def recurrent_accuracy(backbone: Backbone, part: Part) -> dict[str, float]:
    """Return the share of right answers after all steps (`full`), and after a random half of them (`half`)."""
    trunk, generator = backbone.frozen(), torch.Generator().manual_seed(0)
    reader, device = trunk.reader, next(trunk.network.parameters()).device
    assert isinstance(reader, Recurrent)
    right: dict[str, int] = {"full": 0, "half": 0}
    for clips, labels, _ in part.batches(256):
        half = 2 * torch.randint(2, (len(clips), reader.steps), generator=generator)
        for name, how in (("full", torch.full_like(half, 2)), ("half", half)):
            answers, _ = answers_after(trunk, reader, clips.to(device), how.to(device))
            right[name] += int((answers[:, -1].argmax(1).cpu() == labels).sum())
    return {name: count / len(part) for name, count in right.items()}


def write_recurrent(weights: Path, backbone: Backbone, data: ImageData, recipe: RecurrentRecipe) -> dict[str, Any]:
    """Write a recurrent network beside the weights that it reads, and return its card; test is read for it, once."""
    parts: Mapping[str, Part] = {"val": data.val, "test": data.test}
    card = {
        "data": {"name": data.name, "fingerprint": data.fingerprint, "train": len(data.train)},
        "training": asdict(recipe),
        "accuracy": {name: {**recurrent_accuracy(backbone, part), "n": len(part)} for name, part in parts.items()},
    }
    return write_beside(weights, backbone, card)
