"""Train exits on a frozen network, as the heads of a multi-exit network are, but that the network stays as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import ImageData, Part
from .backbone import Backbone
from .card import write_part
from .exits import Exit, HeadKind, describe_exits, even_places, exit_files, exit_tensors
from .fitting import fit, settings_digest

REVISION = 1  # of the training code; raise it when the same recipe gives other weights


@dataclass(frozen=True, kw_only=True)
class ExitRecipe:
    """How exits are trained. Their weights follow from this, the network and the data alone.

    Raises:
        ValueError: If a value is out of range.
    """

    places: tuple[int, ...] = ()
    """After how many blocks each exit is, rising; none for three that part the blocks' cost evenly."""
    head: HeadKind = "pool"
    """pool: pooling and one linear layer; conv: a strided convolution before it, which costs more."""
    alpha: float = 0.5
    """Weight of the labels; 1 - alpha is that of the network's own answer, from which the exits are distilled:
    exit i minimises alpha CE_i + (1 - alpha) KL(network || i)."""
    weights: tuple[float, ...] = ()
    """lambda_i, of each exit in the sum; all 1 where none are given."""
    epochs: int = 20
    """Passes over the train part of the data."""
    batch_size: int = 64
    """Images in a step."""
    lr: float = 5e-3
    """Of AdamW at the start; it falls to 0 by half a cosine."""
    seed: int = 0
    """Of initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check("exit_alpha", self.alpha, 0 <= self.alpha <= 1, "0 … 1")
        _check("exit_epochs", self.epochs, self.epochs >= 1, "at least 1")
        _check("batch_size", self.batch_size, self.batch_size >= 2, "at least 2")
        _check("exit_lr", self.lr, 0 < self.lr < float("inf"), "a number above 0")
        positive = all(0 < one < float("inf") for one in self.weights)
        _check("exit_weights", self.weights, positive, "numbers above 0")
        if self.weights and self.places and len(self.weights) != len(self.places):
            raise ValueError(
                f"exit_weights: expected one for each of {len(self.places)} exits, got {len(self.weights)}. "
                "Give as many --exit-weights as --exits, or none."
            )

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change with the recipe and with the training code's revision."""
        return settings_digest(REVISION, asdict(self))


def _check(name: str, value: Any, ok: bool, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {value!r}. Change it.")


def train_exits(
    backbone: Backbone, data: ImageData, recipe: ExitRecipe, *, device: str | torch.device = "cpu", quiet: bool = True
) -> Backbone:
    """Return the backbone with trained exits; its network is not touched.

    Each exit is trained on what the frozen network gives at its place, images of the train part varied as in
    pretraining; the policy's images are kept away, so that exits are as unsure of them as of new ones.

    Raises:
        ValueError: If a place is out of order or there are too few images.
    """
    places = recipe.places or even_places(backbone.block_macs)
    backbone.check_exits(places)
    trunk = backbone.frozen().to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        exits = [
            Exit(after, backbone.blocks[after - 1].out_shape, backbone.num_classes, kind=recipe.head)
            for after in places
        ]

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            features, last = features_at(trunk, trunk.prepare(images), places)
        return exits_loss([one(x) for one, x in zip(exits, features, strict=True)], last, labels, recipe)

    fit(nn.ModuleList(exits), data, recipe, loss, what="exits", device=device, quiet=quiet)
    return backbone.with_exits(exits)


def exits_loss(answers: Sequence[Tensor], last: Tensor, labels: Tensor, recipe: ExitRecipe) -> Tensor:
    """Return the sum over exits of lambda_i (alpha CE_i + (1 - alpha) KL(network || i)).

    Args:
        answers: Logits of each exit. Each (N, classes).
        last: Of the network itself. Shape (N, classes).
        labels: Shape (N,).
        recipe: Says alpha and the lambdas.
    """
    target = F.log_softmax(last, 1)
    total = torch.zeros((), device=last.device)
    for answer, weight in zip(answers, recipe.weights or (1.0,) * len(answers), strict=True):
        distance = F.kl_div(F.log_softmax(answer, 1), target, reduction="batchmean", log_target=True)
        total = total + weight * (recipe.alpha * F.cross_entropy(answer, labels) + (1 - recipe.alpha) * distance)
    return total


def features_at(backbone: Backbone, x: Tensor, places: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Return what a network gives after so many blocks, and its answer."""
    x, found = backbone.stem(x), []
    for count, block in enumerate(backbone.blocks, 1):
        x = block.run(x)
        if count in places:
            found.append(x)
    return found, backbone.head(x)


@torch.no_grad()
def exit_accuracy(backbone: Backbone, part: Part) -> list[float]:
    """Return the share of right answers, in evaluation mode, of each exit, and last of the network itself."""
    was_training, right = backbone.training, torch.zeros(len(backbone.exits) + 1)
    device = next(backbone.network.parameters()).device
    backbone.eval()
    for images, labels, _ in part.batches(256):
        answers = backbone.answers(backbone.prepare(images.to(device)))
        right += torch.stack([(answer.argmax(1).cpu() == labels).sum() for answer in answers])
    backbone.train(was_training)
    return (right / len(part)).tolist()


def write_exits(weights: Path, backbone: Backbone, card: Mapping[str, Any]) -> None:
    """Write a backbone's exits beside its weights; the card comes last, so that where it lies all is there."""
    told = {"macs": [one.macs for one in backbone.exits], **card}
    exits, trunk = backbone.added_exits, backbone.fingerprint()
    write_part(exit_files(weights), "exits", describe_exits(exits), state=exit_tensors(exits), trunk=trunk, card=told)


def exit_card(backbone: Backbone, data: ImageData, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of exits: how they were trained and, read once, how often they are right."""
    parts = {"val": data.val, "test": data.test}
    return {
        "data": {"name": data.name, "fingerprint": data.fingerprint, "train": len(data.train)},
        "training": dict(settings),
        "accuracy": {name: {"of each": exit_accuracy(backbone, part), "n": len(part)} for name, part in parts.items()},
    }
