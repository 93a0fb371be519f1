"""What a data set is to the rest of the gym: four disjoint parts of images and labels."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .augment import Augment
from .clips import real_frames
from .ranks import class_ranks
from .words import translated

PartName = Literal["train", "policy", "val", "test"]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)


@dataclass(frozen=True, eq=False, repr=False)
class Part:
    """Images, or clips, with their labels.

    Attributes:
        images: Pixels. Shape (N, C, H, W), of clips (N, T, C, H, W) as `clips` pads them, uint8, C is 1 or 3.
        labels: Class of each image. Shape (N,), int64.

    Raises:
        ValueError: If a shape or dtype differs from the above, or the part is empty.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        images, labels = self.images, self.labels
        shaped = images.ndim in (4, 5) and images.shape[-3] in (1, 3) and images.numel() > 0
        if images.dtype != torch.uint8 or not shaped:
            raise ValueError(
                "These are no images: expected uint8 of shape (N, 1 or 3, H, W), or clips (N, T, 1 or 3, H, W), none "
                f"of them 0, got {images.dtype} of shape {tuple(images.shape)}. Remedy: put the channels first and "
                "scale the pixels to 0..255."
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"Labels do not fit their images: expected int64 of shape ({len(images)},), got {labels.dtype} of "
                f"shape {tuple(labels.shape)}. Remedy: give one class number for each image."
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __repr__(self) -> str:
        """Return size and image shape, not the pixels."""
        what = "clips" if self.is_clips else "images"
        return f"Part({len(self)} {what} of {'x'.join(map(str, self.images.shape[1:]))})"

    @property
    def is_clips(self) -> bool:
        """Whether these are clips."""
        return self.images.ndim == 5

    def frames(self) -> "Part":
        """Return the frames of clips as images, each with its clip's label; what fills up short clips is left out."""
        if not self.is_clips:
            return self
        images, clip = real_frames(self.images)
        return Part(images, self.labels[clip])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield images, labels and the images' numbers within this part, in order; the last batch may be smaller.

        Args:
            size: Images in a batch, at least 1.
        """
        _check_positive("size of a batch", size)
        index = torch.arange(len(self))
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield self.images[rows], self.labels[rows], index[rows]

    def subset(self, n: int) -> "Part":
        """Return n images with the classes in (nearly) the same proportions, or all of them if there are fewer.

        A smaller subset is contained in a larger one. Calls with the same n agree, in every process.
        """
        _check_positive("size of a subset", n)
        if n >= len(self):
            return self
        share = (class_ranks(self.labels) + 0.5) / self.labels.bincount()[self.labels]
        rows = share.argsort(stable=True)[:n].sort().values
        return Part(self.images[rows], self.labels[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """A data set, split.

    A network knows the images by heart which it was trained on, so a policy trained on the same ones learns that
    everything is easy. Hence `policy` lies outside `train`. Where a backbone came trained from elsewhere nothing of the
    training images is new to it, and `seen` says so: the policy's images then want `Augment.strong`, and `val`, which
    is cut from the training images unless its publisher kept it apart, flatters that backbone too.

    Attributes:
        name: Registered name, or name of the file or directory.
        train: What the backbone is trained on.
        policy: What the policy is trained on.
        val: What hyper-parameters and checkpoints are chosen on.
        test: What is read once, at the end.
        class_names: Name of each class, in the order of the labels.
        mean: Mean of each channel over `train` before anything is joined to it, with pixels scaled to [0, 1].
        std: Standard deviation to go with `mean`; at least 1/255.
        augment: Augmentation that leaves these images' labels true.
        fingerprint: 16 hexadecimal digits of the SHA-256 of images, labels and the split.
        note: How the parts came about.
        seen: Whether the policy part consists of the backbone's training images.
        varied: Whether the policy part holds augmented images already, as an outcome table does.
        vocabulary: Of texts, which are clips of words (see `words`): what the frames are numbers of, from 2 on.
    """

    name: str
    train: Part
    policy: Part
    val: Part
    test: Part
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment
    fingerprint: str
    note: str
    seen: bool = False
    varied: bool = False
    vocabulary: tuple[str, ...] = ()

    def part(self, name: PartName) -> Part:
        """Return the part called train, policy, val or test.

        Raises:
            ValueError: If there is no such part.
        """
        parts = {"train": self.train, "policy": self.policy, "val": self.val, "test": self.test}
        if name not in parts:
            raise ValueError(f"Unknown part of the data: expected one of {', '.join(parts)}, got {name!r}.")
        return parts[name]

    def joined(self) -> "ImageData":
        """Return the data for a backbone that came trained from elsewhere: train and policy are one, and seen."""
        parts = (self.train, self.policy)
        both = Part(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
        note = f"{self.note}; train and policy joined: the backbone has seen the policy's images"
        return self if self.seen else replace(self, train=both, policy=both, note=note, seen=True)

    def with_varied_val(self, augment: Augment) -> "ImageData":
        """Return the data with each validation image varied once, for backbones that know them as they are."""
        uniforms = torch.rand((len(self.val), Augment.draws), generator=torch.Generator().manual_seed(0))
        val = Part(augment.apply(self.val.images, uniforms), self.val.labels)
        changed = hashlib.sha256(f"{self.fingerprint} val {augment}".encode()).hexdigest()[:16]
        return replace(self, val=val, fingerprint=changed, note=f"{self.note}; validation images varied: {augment}")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image, or frame."""
        channels, height, width = self.train.images.shape[-3:]
        return channels, height, width

    @property
    def is_clips(self) -> bool:
        """Whether these are clips, each of several frames."""
        return self.train.is_clips

    @property
    def shape(self) -> dict[str, Any]:
        """What a backbone is built with to take these images and answer with these classes."""
        words = {"vocabulary": self.vocabulary} if self.vocabulary else {}
        named = {"num_classes": self.num_classes, "input_shape": self.image_shape, "class_names": self.class_names}
        return named | words

    def with_vocabulary(self, vocabulary: tuple[str, ...]) -> "ImageData":
        """Return texts in the numbers of another vocabulary, such as that of a network; what is no text as it is."""
        if not self.vocabulary or not vocabulary or vocabulary == self.vocabulary:
            return self
        parts = {
            name: Part(translated(self.part(name).images, self.vocabulary, vocabulary), self.part(name).labels)
            for name in PART_NAMES
        }
        changed = fingerprint(parts, (*self.class_names, *vocabulary))
        return replace(self, **parts, vocabulary=vocabulary, fingerprint=changed)

    def frames(self) -> "ImageData":
        """Return the frames of clips as images, each with its clip's label: what a network of images is trained on."""
        if not self.is_clips:
            return self
        parts = {name: self.part(name).frames() for name in PART_NAMES}
        return replace(self, **parts, note=f"{self.note}; single frames, with the labels of their clips")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, for pixels scaled to [0, 1].

    They come from histograms: exact, and without a float copy of the images.

    Args:
        images: Shape (N, C, H, W) or (N, T, C, H, W), uint8.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(-3):
        counts = sum(torch.bincount(few.flatten(), minlength=256) for few in channel.split(256))  # no copy of them all
        weights = torch.as_tensor(counts).double() / channel.numel()
        mean = (weights * levels).sum()
        std = (weights * (levels - mean) ** 2).sum().sqrt()
        means.append(float(mean))
        stds.append(max(float(std), 1 / 255))  # a constant channel must not divide by zero
    return tuple(means), tuple(stds)


def fingerprint(parts: Mapping[str, Part], class_names: tuple[str, ...]) -> str:
    """Return 16 hexadecimal digits that change with any image, label, class name or with the split."""
    digest = hashlib.sha256(repr(class_names).encode())
    for name in PART_NAMES:
        part = parts[name]
        digest.update(f"{name} {tuple(part.images.shape)}".encode())
        for rows in part.images.split(1024):  # all those of a mapped file would not all fit into memory
            digest.update(rows.contiguous().numpy().data)
        digest.update(part.labels.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _check_positive(what: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"The {what} is too small: expected at least 1, got {value}.")
