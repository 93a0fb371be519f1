"""Train a reader on a frozen network, with random crops or frames, as the first stage of Glance and Focus."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import Augment, ImageData, Part
from .backbone import Backbone
from .card import write_part
from .fitting import check_enough, fit, settings_digest
from .glimpses import crop, encode, encode_macs, glance, place_code, shrunk
from .moments import frame_code, frame_macs, prepare_frames, preview
from .reader import SHAPES, MemoryKind, Reader, reader_files, reader_tensors

REVISION = 1  # of the training code; raise it when the same recipe gives other weights


@dataclass(frozen=True, kw_only=True)
class ReaderRecipe:
    """How a reader is trained. Its weights follow from this, the network and the data alone.

    Raises:
        ValueError: If a value is out of range.
    """

    glance: int = 0
    """Side of the image scaled down, in pixels."""
    patch: int = 0
    """Side of a crop, in pixels."""
    scales: int = 1
    """Concentric squares of a crop, each twice as wide as the one before, at the same number of pixels."""
    zooms: int = 1
    """Widths of crops to choose among: patch, twice that, …, at the same number of pixels."""
    moments: int = 0
    """Above 0 it reads clips: so many frames to choose among, evenly spread, instead of crops."""
    preview: int = 0
    """Side of each of those frames scaled down, in pixels."""
    sizes: int = 1
    """Of frames: as they are, half as wide and high, a quarter, …; in training drawn for each look."""
    memory: MemoryKind = "gru"
    """gru: a recurrent cell; mean: an average, whatever the order; slots: each frame at its moment's place."""
    hidden: int = 64
    """Width of the memory, of slots that of each."""
    dropout: float = 0.0
    """Share of features, and of the memory, that is left out in training; for data that is learned by heart."""
    looks: int = 3
    """Crops of each image in training; it answers, and is corrected, after each. Of clips every moment is read, in a
    random order, so that it has seen random subsets of every size."""
    epochs: int = 10
    """Passes over the train part of the data."""
    batch_size: int = 64
    """Images in a step."""
    lr: float = 5e-3
    """Of AdamW at the start; it falls to 0 by half a cosine."""
    seed: int = 0
    """Of initial weights, order, augmentation and places."""
    versions: int = 0
    """Of clips, above 0: the network sees so many versions of each, once, the first as it is and the others varied, and
    all passes are over what it made of these. Many passes then cost little."""
    tune: bool = False
    """Whether the network is trained with the reader, at a tenth of the rate, its BatchNorms' statistics held."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in (*SHAPES[self.kind], "looks", "epochs", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)!r}. Change it.")
        if self.versions < 0 or (self.versions and self.kind == "crops"):
            raise ValueError(f"versions: expected 0, or of clips more, got {self.versions} for {self.kind}. Change it.")
        if self.versions and self.tune:
            raise ValueError(f"versions: expected 0 where the network is trained too, got {self.versions}. Change it.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a share of at least 0 and below 1, got {self.dropout}. Change it.")
        if self.batch_size < 2 or not 0 < self.lr < float("inf"):
            raise ValueError(f"reader: expected batch_size >= 2 and lr > 0, got {self.batch_size} and {self.lr}.")

    @property
    def kind(self) -> str:
        """What is read: `crops` or `frames`."""
        return "frames" if self.moments or self.preview else "crops"

    @property
    def most_looks(self) -> int:
        """How often each input is looked at in training."""
        return self.moments or self.looks

    def check_data(self, data: ImageData) -> None:
        """Raise a ValueError unless these are clips for a reader of frames, or images for one of crops."""
        if data.is_clips != (self.kind == "frames"):
            expected, got = ("clips", "single images") if self.kind == "frames" else ("single images", "clips")
            raise ValueError(
                f"data {data.name}: expected {expected} for a reader of {self.kind}, got {got}. Take other data, or "
                "another reader: crops of images (patch), frames of clips (moments)."
            )

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change with the recipe and with the training code's revision."""
        settings = asdict(self)
        for name in ("versions", "hidden", "dropout", "tune", "sizes"):
            if settings[name] == getattr(type(self), name):  # recipes without them keep their digests, and results
                del settings[name]
        return settings_digest(REVISION, settings)

    def build(self, backbone: Backbone) -> Reader:
        """Return an untrained reader for a network.

        Raises:
            ValueError: If the network does not take glances or crops, or these are larger than its images.
        """
        if self.kind == "crops":
            check_sides(backbone, self.glance, self.patch, self.zooms)
        else:
            frame_macs(backbone, self.sizes - 1)
        shape = {key: getattr(self, key) for key in (*SHAPES[self.kind], "memory", "hidden", "dropout")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Reader(backbone.blocks[-1].out_shape[0], backbone.num_classes, **shape)


def check_sides(backbone: Backbone, glance: int, patch: int, zooms: int) -> tuple[int, int]:
    """Return what a network costs on a glance, and on a crop, in MACs.

    Raises:
        ValueError: If they are larger than the network's images, or it takes none of that size.
    """
    side = min(backbone.input_shape[1:])
    widest = patch * 2 ** (zooms - 1)
    for name, value in (("glance", glance), ("patch", patch if zooms == 1 else widest)):
        if value > side:
            what = name if zooms == 1 or name == "glance" else f"patch at the widest of {zooms} zooms"
            raise ValueError(
                f"{what}: expected at most the {side} pixels of {backbone.name}'s images, got {value}. Choose a "
                "smaller one, or take larger images."
            )
    return encode_macs(backbone, glance), encode_macs(backbone, patch)


def train_reader(
    backbone: Backbone, data: ImageData, recipe: ReaderRecipe, *, device: str | torch.device = "cpu", quiet: bool = True
) -> Backbone:
    """Return the backbone with a trained reader; its network is not touched, unless the recipe says so.

    It sees images of the train part, varied as in pretraining; the policy's images are kept away.

    Raises:
        ValueError: If sizes do not fit the network, or there are too few images.
    """
    recipe.check_data(data)
    reader = recipe.build(backbone)
    trunk = (backbone.eval().requires_grad_(True) if recipe.tune else backbone.frozen()).to(device)
    generator = torch.Generator().manual_seed(recipe.seed)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        answers = read_at_random(trunk, reader, images, recipe.most_looks, generator)
        return torch.stack([F.cross_entropy(answer, labels) for answer in answers]).mean()

    if recipe.versions:
        check_enough(data, recipe.batch_size)
        rows = seen_versions(trunk, reader, data, recipe, device)
        _fit_on_features(reader, rows, data.train.labels.repeat(recipe.versions), recipe, generator)
    else:
        slower = trunk.network if recipe.tune else None
        fit(reader, data, recipe, loss, what="reader", device=device, quiet=quiet, slower=slower)
    return backbone.cpu().with_reader(reader)


@torch.no_grad()
def seen_versions(
    trunk: Backbone, reader: Reader, data: ImageData, recipe: ReaderRecipe, device: str | torch.device
) -> tuple[Tensor, Tensor]:
    """Return previews and frames' features of training clips as they are, then of varied ones, on the CPU.

    Returns:
        Shapes (versions x N, preview) and (versions x N, sizes, moments, D).
    """
    generator, tiny, features = torch.Generator().manual_seed(recipe.seed), [], []
    for version in range(recipe.versions):
        augment = data.augment if version else Augment()
        for clips, _, _ in data.train.batches(recipe.batch_size):
            uniforms = torch.rand((len(clips), data.augment.draws), generator=generator)
            frames = prepare_frames(trunk, augment.apply(clips, uniforms).to(device), reader.moments)
            tiny.append(preview(frames, reader.preview).cpu())
            features.append(frame_features(trunk, frames, reader.sizes).cpu())
    return torch.cat(tiny), torch.cat(features)


def _fit_on_features(
    reader: Reader, rows: tuple[Tensor, Tensor], labels: Tensor, recipe: ReaderRecipe, generator: torch.Generator
) -> None:
    """Train a reader in place as `fit` does, on what a network made of clips; an epoch is a pass over one version."""
    reader.train()
    optimizer = torch.optim.AdamW(reader.parameters(), recipe.lr, weight_decay=1e-2)
    steps = len(labels) // recipe.versions // recipe.batch_size  # of an epoch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * steps)
    for _ in range(recipe.epochs):
        order = torch.randperm(len(labels), generator=generator)[: steps * recipe.batch_size]
        for index in order.split(recipe.batch_size):
            answers = _answers(reader, _shuffled(reader, rows[0][index], rows[1][index], reader.moments, generator))
            loss = torch.stack([F.cross_entropy(answer, labels[index]) for answer in answers]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    reader.eval().requires_grad_(False)


def read_at_random(
    trunk: Backbone, reader: Reader, images: Tensor, looks: int, generator: torch.Generator
) -> list[Tensor]:
    """Return the answers after the glance or preview, and after each crop or frame drawn evenly. Each (N, classes).

    Args:
        trunk: Frozen.
        reader: Of crops or of frames.
        images: Images, or clips, not yet prepared.
        looks: How many crops or frames.
        generator: Of what is looked at.
    """
    views = (_random_frames if reader.kind == "frames" else _random_crops)(trunk, reader, images, looks, generator)
    return _answers(reader, views)


def _answers(reader: Reader, views: Iterator[tuple[Tensor, Tensor]]) -> list[Tensor]:
    memory = reader.begin(next(views)[0])
    answers = [reader.answer(memory)]
    for features, code in views:
        memory = reader.read(memory, features, code)
        answers.append(reader.answer(memory))
    return answers


def _random_crops(
    trunk: Backbone, reader: Reader, images: Tensor, looks: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the features of the glance and of random crops, each with where it was."""
    inputs = trunk.prepare(images)
    yield pooled(trunk, glance(inputs, reader.glance)), inputs.new_zeros(0)
    for _ in range(looks):
        zoom = 2 ** int(torch.randint(reader.zooms, (), generator=generator))
        centres = random_centres(len(inputs), inputs.shape[2:], reader.patch * zoom, generator).to(inputs.device)
        seen = crop_features(trunk, crop(inputs, centres, reader.patch, zoom=zoom, scales=reader.scales))
        yield seen, place_code(centres, zoom, inputs.shape[2:])


def _random_frames(
    trunk: Backbone, reader: Reader, clips: Tensor, looks: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the preview, and the features of frames in a random order, none twice, each with when it was."""
    frames = prepare_frames(trunk, clips, reader.moments)
    features = frame_features(trunk, frames, reader.sizes)
    yield from _shuffled(reader, preview(frames, reader.preview), features, looks, generator)


def _shuffled(
    reader: Reader, tiny: Tensor, features: Tensor, looks: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield previews, and frames' features, of shape (N, sizes, moments, D), in a random order, each at any size."""
    yield tiny, tiny.new_zeros(0)
    order = torch.rand((len(features), reader.moments), generator=generator).argsort(1).to(features.device)
    rows, size = torch.arange(len(features), device=features.device), torch.zeros((), dtype=torch.long)
    for moment in order[:, :looks].unbind(1):
        if reader.sizes > 1:  # one alone is not drawn: it then reads as it did before there were several
            size = torch.randint(reader.sizes, (len(features),), generator=generator)
        size = size.to(features.device)
        yield features[rows, size, moment], frame_code(moment, size, reader)


def random_centres(count: int, size: torch.Size, extent: int, generator: torch.Generator) -> Tensor:
    """Draw centres of squares that lie within images of a size. Shape (count, 2)."""
    room = torch.tensor([side - extent for side in size])
    return extent / 2 + torch.rand((count, 2), generator=generator) * room


def pooled(trunk: Backbone, images: Tensor) -> Tensor:
    """Return a network's features, averaged over places. Shape (N, C, s, s) to (N, D)."""
    return encode(trunk, images).mean((2, 3))


def frame_features(trunk: Backbone, frames: Tensor, sizes: int) -> Tensor:
    """Return a network's features of frames at each size. Shape (N, T, C, H, W) to (N, sizes, T, D)."""
    each = [pooled(trunk, shrunk(frames.flatten(0, 1), 2**size)) for size in range(sizes)]
    return torch.stack([one.unflatten(0, frames.shape[:2]) for one in each], 1)


def crop_features(trunk: Backbone, crops: Tensor) -> Tensor:
    """Return a network's features of crops, scales side by side. Shape (N, S, C, s, s) to (N, S x D)."""
    return pooled(trunk, crops.flatten(0, 1)).unflatten(0, (-1, crops.shape[1])).flatten(1)


@torch.no_grad()
def reader_accuracy(backbone: Backbone, part: Part, looks: int) -> list[float]:
    """Return the share of right answers after the glance or preview, and after each of so many random looks."""
    trunk, generator = backbone.frozen(), torch.Generator().manual_seed(0)
    assert isinstance(trunk.reader, Reader)
    right = torch.zeros(looks + 1)
    device = next(trunk.network.parameters()).device
    for images, labels, _ in part.batches(256):
        answers = read_at_random(trunk, trunk.reader, images.to(device), looks, generator)
        right += torch.stack([(answer.argmax(1).cpu() == labels).sum() for answer in answers])
    return (right / len(part)).tolist()


def write_reader(weights: Path, backbone: Backbone, data: ImageData, recipe: ReaderRecipe) -> dict[str, Any]:
    """Write a backbone's reader beside its weights, and return its card; the test part is read for it, once."""
    return write_beside(weights, backbone, reader_card(backbone, data, recipe))


def write_beside(weights: Path, backbone: Backbone, card: dict[str, Any]) -> dict[str, Any]:
    """Write what a backbone carries as its reader beside its weights, and return its card."""
    reader = backbone.reader
    assert reader is not None
    state, trunk = reader_tensors(reader), backbone.fingerprint()
    write_part(reader_files(weights), "reader", reader.config, state=state, trunk=trunk, card=card)
    return card


def reader_card(backbone: Backbone, data: ImageData, recipe: ReaderRecipe) -> dict[str, Any]:
    """Return what is told of a reader: how it was trained and how often it is right with random looks."""
    parts: Mapping[str, Part] = {"val": data.val, "test": data.test}
    return {
        "data": {"name": data.name, "fingerprint": data.fingerprint, "train": len(data.train)},
        "training": asdict(recipe),
        "accuracy": {
            name: {"after each": reader_accuracy(backbone, part, recipe.most_looks), "n": len(part)}
            for name, part in parts.items()
        },
    }
