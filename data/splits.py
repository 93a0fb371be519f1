"""From images as their publisher arranged them to our four parts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .augment import Augment
from .images import PART_NAMES, ImageData, Part, channel_statistics, fingerprint
from .ranks import SEED, class_ranks

PolicyFrom = Literal["held-out", "train"]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How much of the images given as `train` each part gets that was not given.

    Raises:
        ValueError: If a share is not positive or nothing is left for training.
    """

    test: float = 0.2
    val: float = 0.1
    policy: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.test, self.val, self.policy) <= 0 or self.test + self.val + self.policy >= 1:
            raise ValueError(f"Shares do not fit: expected positive ones with a sum below 1, got {self}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Images as their publisher arranged them.

    Attributes:
        name: What to call the data in errors and results.
        parts: At least `train`; what else is given is kept as it is, the rest is cut from `train`.
        class_names: Name of each class, in the order of the labels.
        flip: Whether a mirror image keeps its label.
        shares: What to cut from `train`.
        note: Anything worth knowing of how the images were read.
        cut: Parts that were not given, but cut from `train` as `cut_rows` does where the images were read.
        vocabulary: Of texts, see `words`: the words that the frames are numbers of, from 2 on.

    Raises:
        ValueError: If `train` is missing, a part is unknown, image shapes differ or a label has no class name.
    """

    name: str
    parts: Mapping[str, Part]
    class_names: tuple[str, ...]
    flip: bool
    shares: Shares = field(default_factory=Shares)
    note: str = ""
    vocabulary: tuple[str, ...] = ()
    cut: Collection[str] = ()

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        if "train" not in self.parts or not set(self.parts) <= set(PART_NAMES):
            raise ValueError(
                f"{self.name} has the wrong parts: expected train and any of {', '.join(PART_NAMES[1:])}, got "
                f"{', '.join(self.parts) or 'none'}."
            )
        expected = self.parts["train"].images.shape[1:]
        for name, part in self.parts.items():
            if part.images.shape[1:] != expected:
                raise ValueError(
                    f"{self.name}: images differ in shape: expected {tuple(expected)} (frames if clips, channels, "
                    f"height, width) as in train, got {tuple(part.images.shape[1:])} in {name}. "
                    "Remedy: bring all images to one shape."
                )
            low, high = (int(extreme) for extreme in part.labels.aminmax())
            if low < 0 or high >= len(self.class_names):
                raise ValueError(
                    f"{self.name}: labels in {name} lie outside the classes: expected 0..{len(self.class_names) - 1}, "
                    f"got {low}..{high}. Remedy: number the classes from 0 and name all of them."
                )


def assemble(source: Source, *, policy_from: PolicyFrom, image_size: int | None) -> ImageData:
    """Split a source and describe the result.

    Args:
        source: Images as their publisher arranged them.
        policy_from: `held-out` keeps the policy's images from the backbone; `train` joins both parts, for backbones
            that came trained on everything.
        image_size: Height and width in pixels to bring the images to; None leaves them as they are.

    Raises:
        ValueError: If there are fewer than two classes or a class is too small to be split.
    """
    parts = _split(source)
    if image_size is not None:
        if source.vocabulary:
            raise ValueError(f"image_size: expected none for texts ({source.name}), got {image_size}. Leave it out.")
        parts = {name: Part(resized(part.images, image_size), part.labels) for name, part in parts.items()}
    mean, std = channel_statistics(parts["train"].images)
    data = ImageData(
        name=source.name,
        train=parts["train"],
        policy=parts["policy"],
        val=parts["val"],
        test=parts["test"],
        class_names=source.class_names,
        mean=mean,
        std=std,
        augment=Augment(pad=min(parts["train"].images.shape[-2:]) // 8, flip=source.flip),
        fingerprint=fingerprint(parts, (*source.class_names, *source.vocabulary)),
        note=_note(source),
        vocabulary=source.vocabulary,
    )
    return data.joined() if policy_from == "train" else data


def resized(images: Tensor, size: int) -> Tensor:
    """Bring the shorter side to `size` pixels and crop the centre.

    Args:
        images: Shape (N, C, H, W) or (N, T, C, H, W), uint8.
        size: Height and width of the result.
    """
    height, width = images.shape[-2:]
    if height == width == size:
        return images
    scale = size / min(height, width)
    target = [max(size, round(height * scale)), max(size, round(width * scale))]
    scaled = F.interpolate(images.flatten(0, -4), size=target, mode="bilinear", antialias=True)
    images = scaled.view(*images.shape[:-2], *target)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return images[..., top : top + size, left : left + size].contiguous()


def stratified(labels: Tensor, shares: Mapping[str, float], num_classes: int) -> dict[str, Tensor]:
    """Divide images so that every part has its share, and at least one image, of every class.

    Args:
        labels: Class of each image. Shape (N,), int64, in 0..num_classes - 1, each class once for every part or more.
        shares: Share of each part; `train` gets the rest.
        num_classes: Number of classes.

    Returns:
        The rows of each part, ascending; disjoint, and together all rows.
    """
    ranks, counts = class_ranks(labels), labels.bincount(minlength=num_classes)
    start = torch.zeros_like(counts)
    rows: dict[str, Tensor] = {}
    for after, (name, share) in enumerate(shares.items()):
        end = start + (counts.double() * share).round().long().clamp(min=1)
        end = end.minimum(counts - (len(shares) - after))  # one is left for each part to come
        rows[name] = ((ranks >= start[labels]) & (ranks < end[labels])).nonzero().squeeze(1)
        start = end
    rows["train"] = (ranks >= start[labels]).nonzero().squeeze(1)
    return rows


def cut_rows(
    name: str, labels: Tensor, class_names: Sequence[str], given: Collection[str], shares: Shares
) -> dict[str, Tensor]:
    """Return the rows of `train`, and of each part that is to be cut from it, ascending.

    Args:
        name: Of the data, for errors.
        labels: Of what is given as `train`. Shape (N,), int64.
        class_names: Name of each class.
        given: Parts that there are.
        shares: What to cut.

    Raises:
        ValueError: If there are fewer than two classes or a class is too small to be split.
    """
    missing = {part: share for part, share in vars(shares).items() if part not in given}
    _check_classes(name, labels, class_names, list(missing))
    return stratified(labels, missing, len(class_names))


def _split(source: Source) -> dict[str, Part]:
    given = source.parts["train"]
    rows = cut_rows(source.name, given.labels, source.class_names, source.parts, source.shares)
    if len(rows) == 1:  # nothing is cut: a memory-mapped part stays one
        return dict(source.parts)
    parts = {name: Part(given.images[index], given.labels[index]) for name, index in rows.items()}
    return {**source.parts, **parts}


def _check_classes(name: str, labels: Tensor, class_names: Sequence[str], missing: Sequence[str]) -> None:
    if len(class_names) < 2:
        raise ValueError(f"{name} has too few classes: expected at least 2, got {list(class_names)}.")
    needed = 1 + len(missing)
    counts = labels.bincount(minlength=len(class_names)).tolist()
    small = [f"{one} has {n}" for one, n in zip(class_names, counts, strict=True) if n < needed]
    if small:
        more = ", …" if len(small) > 5 else ""
        raise ValueError(
            f"{name} has too few training images in {len(small)} of {len(counts)} classes: expected at least "
            f"{needed} in each, one for each of {', '.join(['train', *missing])}, got: "
            f"{', '.join(small[:5])}{more}. "
            "Remedy: add images or leave the class out (classes are numbered from 0 without gaps)."
        )


def _note(source: Source) -> str:
    absent = {name for name in PART_NAMES if name not in source.parts} | set(source.cut)
    given = [name for name in PART_NAMES if name not in absent and name != "train"]
    cut = [f"{name} {share:.0%}" for name, share in vars(source.shares).items() if name in absent]
    sentences = [
        f"{', '.join(given)} as published" if given else "",
        f"cut from train by class, seed {SEED}: {', '.join(cut)}" if cut else "",
        source.note,
    ]
    return "; ".join(sentence for sentence in sentences if sentence)
