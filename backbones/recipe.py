"""How a backbone is trained: the recipe, what follows from it, and where it is applied."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor

from .exit_training import ExitRecipe
from .exits import HeadKind
from .fitting import settings_digest
from .reader import MemoryKind
from .reader_training import ReaderRecipe
from .recurrent import CellKind
from .recurrent_training import RecurrentRecipe
from .scaling import read_scales
from .width_training import WidthTraining

WARM_UP = 0.3  # share of a one-cycle schedule in which the learning rate rises
SETTLE = 0.8  # share of a training at several scales after which BatchNorm keeps its statistics
START = 1 / 25  # of the highest learning rate, where a one-cycle schedule begins
READER_FIELDS = (
    *("patch", "glance", "retina", "zooms", "moments", "preview"),
    *("reader_memory", "reader_hidden", "reader_dropout", "reader_looks"),
    *("reader_epochs", "reader_versions", "reader_tunes", "frame_sizes"),
    *("recurrent", "recurrent_hidden", "recurrent_skim"),
)
REVISION = 1  # of the training code; raise it when the same recipe gives other weights
# recipes without these keep their digits, and so their results
_NEWER = ("exit_weights", "scales", "width_training", "token_dropout", "channel_groups")
_NEWER_OF_READERS = ("reader_versions", "reader_hidden", "reader_dropout", "reader_tunes", "frame_sizes")
_OF_TRAINED_EXITS = ("exits", "exit_head", "exit_alpha", "exit_epochs")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. Weights follow from this, the backbone and the data alone.

    Raises:
        ValueError: If a value is out of range.
    """

    epochs: int = 30
    """Passes over the train part of the data; the policy's part is kept away."""
    batch_size: int = 128
    """Images in a step. What is left of an epoch after the last full batch is dropped."""
    lr: float = 0.1
    """Highest learning rate of the schedule."""
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    """one-cycle: up from lr/25 for 30 % of the steps, then half a cosine to 0. cosine: half a cosine from lr to 0."""
    momentum: float = 0.9
    """Nesterov momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty on all parameters."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    stochastic_depth: float = 0.0
    """Probability that the last block is left out of an image's training step (Huang et al. 2016, without rescaling,
    since a policy later skips for good). Above 0 the backbone learns to bear skipping."""
    depth_schedule: Literal["linear", "uniform", "inner"] = "linear"
    """linear: block l of L is left out with l/L times stochastic_depth. uniform: all with the same probability. inner:
    likewise, but blocks that change the shape always run."""
    spare_hard: float = 0.0
    """0: blocks are left out of every image alike. Above: only with probability p^spare_hard, where p is what the full
    path gives the image's label; else it runs in full. So hard images come to need depth that easy ones do not, and
    what to skip depends on the input. Costs one more forward pass."""
    distill: float = 0.0
    """0: the skipped path learns from the labels. Above: the full path does, and the skipped path learns from the full
    one's soft labels, with this weight of their KL divergence. Costs twice the time."""
    token_dropout: float = 0.0
    """Largest share of a vision transformer's tokens, the class token aside, that is left out of a training step. How
    many is drawn for each step, which for each image. Above 0 the backbone learns to bear token-skip."""
    exit_weights: tuple[float, ...] = ()
    """lambda_i, of each exit in the sum of their losses; all 1 where none are given. A network with exits of its own
    (msdnet, ranet) minimises the sum of lambda_i CE_i, where the last weight is that of its last answer."""
    scales: tuple[int, ...] = ()
    """Sizes in pixels of the images' longer side, rising, the last their own. Each step is trained at one of them,
    drawn evenly, so that it costs less than training at full size. All share BatchNorm's statistics, which are between
    those of the scales; so in the last fifth of the epochs they stay as they are, and the weights learn to go with
    them."""
    seed: int = 0
    """Of initial weights, order, augmentation, skipping and scales."""
    keep: Literal["last", "best"] = "last"
    """Which epoch's weights are kept; best by accuracy of the full path on the val part."""
    channels_last: bool = True
    """Memory layout of the weights."""
    width_training: WidthTraining | None = None
    """Of slimmable backbones, in each step. slimmable: every width learns the labels. universal: the largest does; the
    smallest and two drawn between learn the largest's soft labels (sandwich rule, in-place distillation). stagewise:
    likewise, but one of the two draws a width for each stage. bootstrap: those drawn learn from a moving average of the
    largest's weights, the smallest from the mean of that and of the drawn ones' (DS-Net's first stage). By default
    slimmable for slim-…, universal for us-…."""

    channel_groups: int = 0
    """Above 0: groups of the inner channels of each block, of which an image keeps the first k in each training step; k
    is drawn evenly for each image and block. So the backbone learns to bear missing channels (channel-gate)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low, high in (("epochs", 1, math.inf), ("batch_size", 2, math.inf), ("seed", 0, 2**63 - 1)):
            _check(name, getattr(self, name), low <= getattr(self, name) <= high, f"at least {low}")
        _check("lr", self.lr, 0 < self.lr < math.inf, "a number above 0")
        for name in ("momentum", "label_smoothing", "stochastic_depth", "token_dropout"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "a number from 0 to below 1")
        for name in ("weight_decay", "distill", "spare_hard"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "0 or above")
        positive = all(0 < one < math.inf for one in self.exit_weights)
        _check("exit_weights", self.exit_weights, positive, "numbers above 0")
        for name in ("schedule", "depth_schedule", "keep"):
            options = get_args(get_type_hints(Recipe)[name])
            _check(name, getattr(self, name), getattr(self, name) in options, f"one of {', '.join(options)}")
        how = self.width_training
        _check(
            "width_training", how, how is None or how in get_args(WidthTraining), f"one of {get_args(WidthTraining)}"
        )
        _check("channel_groups", self.channel_groups, self.channel_groups in (0, *range(2, 1025)), "0, or 2 … 1024")
        if self.scales:
            read_scales(self.scales)
        alone = not (self.token_dropout and self.stochastic_depth)
        _check("token_dropout", self.token_dropout, alone, "0 beside --stochastic-depth")
        for name in ("distill", "spare_hard"):
            value = getattr(self, name)
            _check(name, value, not value or self.stochastic_depth > 0, "0 without --stochastic-depth")

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change with the recipe and with the training code's revision."""
        own = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        own = {name: value for name, value in own.items() if value or name not in _NEWER}
        return settings_digest(REVISION, own)

    def lr_at(self, progress: float) -> float:
        """Return the learning rate after a share of all steps, 0…1."""
        if self.schedule == "one-cycle" and progress < WARM_UP:
            return self.lr * (START + (1 - START) * progress / WARM_UP)
        fallen = (progress - WARM_UP) / (1 - WARM_UP) if self.schedule == "one-cycle" else progress
        return self.lr * (1 + math.cos(math.pi * fallen)) / 2

    def settled(self, epoch: int) -> bool:
        """Return whether BatchNorm's statistics stay as they are in an epoch, counted from 0."""
        return bool(self.scales) and epoch >= SETTLE * self.epochs

    def skip_probabilities(self, keeps_shape: Sequence[bool]) -> Tensor:
        """Return how likely each block is left out in training. Shape (L,).

        Args:
            keeps_shape: Of each block, whether its output has the shape of its input.
        """
        count = len(keeps_shape)
        if self.depth_schedule == "linear":
            return torch.arange(1, count + 1) / count * self.stochastic_depth
        skippable = torch.tensor(keeps_shape) if self.depth_schedule == "inner" else torch.ones(count)
        return skippable * self.stochastic_depth


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Recipe):
    """What `skipgym pretrain` trains, on what, how, and where the result goes.

    Raises:
        ValueError: If a value is out of range.
    """

    backbone: str = "resnet20"
    """Architecture; `skipgym list` names them."""
    data: str = "digits"
    """Registered name, ImageFolder directory or .npz."""
    out: Path
    """Directory for weights, card, checkpoint and TensorBoard events. The same command again resumes."""
    init: Path | None = None
    """Weights to start from, for instance a published checkpoint that is to learn to bear skipping. Images are then
    normalised as those weights expect: by the .json next to them, else as ImageNet. Of a deeper ResNet some blocks
    are left out, evenly."""
    exits: tuple[int, ...] = ()
    """After how many blocks to put exits, rising: heads that answer from there, trained on the frozen network when it
    is finished. With --init the network itself is not trained: it stays as those weights are."""
    exit_head: HeadKind = "pool"
    """pool: pooling and one linear layer; conv: a strided convolution before it, which costs more."""
    exit_alpha: float = 0.5
    """Exit i minimises alpha CE_i + (1 - alpha) KL(network || i): the labels, against the network's own answer."""
    exit_epochs: int = 20
    """Passes over the train part in which the exits are trained."""
    patch: int = 0
    """Above 0: train a reader for patch-crop on the frozen network when it is finished, which answers from a glance and
    from crops of so many pixels a side. With --init the network itself is not trained, and may know other classes."""
    glance: int = 0
    """Side of the image scaled down for the glance, in pixels; 0 for that of a crop."""
    retina: int = 1
    """Concentric squares of a crop, each twice as wide as the one before, as RAM's retina."""
    zooms: int = 1
    """Widths of crops that can be chosen: patch, twice that, …, at the same number of pixels."""
    moments: int = 0
    """Above 0: train a reader for frame-select on the frozen network when it is finished, which answers from a preview
    and from frames of a clip, at so many moments to choose among. The network is trained on single frames; with --init
    it is not trained, and may know other classes: the reader answers from its features."""
    preview: int = 4
    """Side of each of these frames scaled down for the preview, in pixels."""
    frame_sizes: int = 1
    """Of frames, to choose among with --moments: as they are, half as wide and high, a quarter, …."""
    reader_memory: MemoryKind = "gru"
    """gru: a recurrent cell remembers what was seen; mean: an average; slots, of frames: each at its moment's place."""
    reader_hidden: int = 64
    """Width of the memory; of slots, that of each."""
    reader_dropout: float = 0.0
    """Share of features, and of the memory, that is left out in training the reader."""
    reader_looks: int = 3
    """Crops of each image in training the reader; of clips every moment is read."""
    reader_epochs: int = 10
    """Passes over the train part in which the reader is trained."""
    reader_versions: int = 0
    """With --moments, above 0: the network sees so many versions of each clip, once, the first as it is and the others
    varied, and the reader is trained on what it made of these; many passes then cost little."""
    reader_tunes: bool = False
    """The network is trained with the reader, on what is looked at, at a tenth of the rate; with --init too. So it
    becomes a network for crops or frames; its own answers from whole images are no longer what it is good at."""
    recurrent: CellKind | None = None
    """Train a recurrent network for time-skip, of this kind of cell, on the frozen network when it is finished; it
    reads clips frame by frame, or with --backbone words texts word by word, in reader_epochs passes. With --init the
    network itself is not trained."""
    recurrent_hidden: int = 128
    """Its units."""
    recurrent_skim: int = 0
    """Units that a small cell updates where a step is skimmed; 0 for no small cell."""
    image_size: int | None = None
    """Height and width in pixels to bring the images to."""
    device: str = "auto"
    """auto, cpu, cuda, mps, …; on the CPU a resumed run ends with the same weights bit for bit."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        _check("image_size", self.image_size, self.image_size is None or self.image_size >= 1, "at least 1 pixel")
        rising = list(self.exits) == sorted(set(self.exits)) and all(one >= 1 for one in self.exits)
        _check("exits", self.exits, rising, "rising numbers of blocks, from 1 on")
        self.exit_recipe()
        _check("patch", self.patch, self.patch >= 0, "at least 0")
        _check("moments", self.moments, self.moments >= 0, "at least 0")
        _check("moments", self.moments, not (self.patch and self.moments), "0 beside --patch")
        _check("recurrent", self.recurrent, self.recurrent in (None, *get_args(CellKind)), "gru or lstm")
        alone = not (self.recurrent and (self.patch or self.moments))
        _check("recurrent", self.recurrent, alone, "none beside --patch or --moments")
        _check("frame_sizes", self.frame_sizes, self.frame_sizes == 1 or self.moments > 0, "1 without --moments")
        looks = bool(self.patch or self.moments)
        _check("reader_tunes", self.reader_tunes, looks or not self.reader_tunes, "--patch or --moments with it")
        if self.recurrent:
            self.recurrent_recipe()
        elif self.has_reader:
            self.reader_recipe()

    @property
    def heads_only(self) -> bool:
        """Whether the network stays as it is, and only exits or a reader are trained."""
        return bool(self.exits or self.has_reader) and self.init is not None

    @property
    def has_reader(self) -> bool:
        """Whether a reader is trained."""
        return bool(self.patch or self.moments or self.recurrent)

    def exit_recipe(self) -> ExitRecipe:
        """Return how the exits are trained."""
        return ExitRecipe(
            places=self.exits,
            head=self.exit_head,
            alpha=self.exit_alpha,
            weights=self.exit_weights,
            epochs=self.exit_epochs,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def reader_recipe(self) -> ReaderRecipe:
        """Return how the reader is trained."""
        sizes = {"glance": self.glance or self.patch, "patch": self.patch, "scales": self.retina, "zooms": self.zooms}
        frames = {"moments": self.moments, "preview": self.preview, "sizes": self.frame_sizes}
        return ReaderRecipe(
            **(frames if self.moments else sizes),
            versions=self.reader_versions,
            tune=self.reader_tunes,
            memory=self.reader_memory,
            hidden=self.reader_hidden,
            dropout=self.reader_dropout,
            looks=self.reader_looks,
            epochs=self.reader_epochs,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def recurrent_recipe(self) -> RecurrentRecipe:
        """Return how the recurrent network is trained."""
        return RecurrentRecipe(
            cell=self.recurrent or "gru",
            hidden=self.recurrent_hidden,
            skim=self.recurrent_skim,
            epochs=self.reader_epochs,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them; of special networks, exits and a reader where they say anything."""
        content = json.loads(json.dumps(asdict(self), default=str))
        absent = {name for name in _NEWER if not content[name]}
        absent = absent - {"exit_weights"} if self.exits else absent | {*_OF_TRAINED_EXITS}
        absent |= set() if self.has_reader else {*READER_FIELDS}
        absent |= {name for name in _NEWER_OF_READERS if content[name] == getattr(type(self), name)}
        return {key: value for key, value in content.items() if key not in absent}

    def command(self) -> str:
        """Return the command line that gives this configuration."""
        words = ["skipgym", "pretrain", "--backbone", self.backbone, "--data", self.data]
        for field in fields(self):
            value = getattr(self, field.name)
            flag = field.name.replace("_", "-")
            if field.name in ("backbone", "data") or value == field.default:
                continue
            if isinstance(value, bool):
                words += [f"--{flag}" if value else f"--no-{flag}"]
            elif isinstance(value, tuple):
                words += [f"--{flag}", *map(str, value)]
            else:
                words += [f"--{flag}", str(value)]
        return shlex.join(words)


def _check(name: str, value: Any, ok: bool, expected: str) -> None:
    if not ok:
        flag = name.replace("_", "-")
        raise ValueError(f"{name}: expected {expected}, got {value!r}. Change --{flag}.")
