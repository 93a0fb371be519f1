"""Cascades: networks from small to large that share nothing; is the small one's answer enough?"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.registry import held_out, load_backbone
from ..data import ImageData
from .exit_task import ExitTask
from .task import register_task

Words = str | Sequence[str]


@register_task("cascade")
class Cascade(ExitTask):
    """Before each larger network, answer with the last one's answer or run it (Viola and Jones 2001; Park et al. 2015).

    Description:
        Separate frozen networks, from small to large; nothing is shared. The smallest has answered. The agent sees how
        sure that answer looks, and decides whether it is given; otherwise the next network sees the image from the
        beginning. Rows that have answered leave; the others go on as a smaller batch.
    Action space:
        `Discrete(2)`: 0 answers now, 1 runs the next network.
    Observation space:
        Of the last answer: largest probability, entropy (1: all classes alike), margin between the two largest
        probabilities, and the share of earlier networks that named the same class (0 at the first). The interpreter
        appends the position (one-hot) and, where it varies, the price.
    Episode end:
        With the first 0, or when the largest network has answered.
    Cost:
        The sum of the networks that ran. `full_macs` is the largest network alone, which is what a cascade must beat;
        so `compute` exceeds 1 for who runs them all (`most_macs`).

    The backbone is the largest network and carries the smaller ones (`backbone.with_smaller(…)`). Where the task is
    made by its name, they are built from the options, and on embedded data trained on first use.

    Arguments:
        small: Names of the smaller networks, from the cheapest on, on the command line as "resnet8 resnet14"; for a
            CIFAR ResNet by default resnet8 and one whose cost lies between. Those of a backbone that carries some must
            be the same.
        small_weights: Their checkpoints, in the same order; not needed for embedded data. Networks take images
            normalised as each was trained.
    Version history:
        v0: first.
    """

    def __init__(self, backbone: Backbone, *, small: Words | None = None, small_weights: Words | None = None):
        super().__init__(backbone)
        carried = [one.name for one in self.backbone.smaller]
        if not carried:
            raise ValueError(
                f"cascade: expected a backbone that carries smaller networks, got {backbone.name} with none. "
                "Use backbone.with_smaller([…]), or name them when the task is made by its name."
            )
        if small is not None and read_words(small) != carried:
            raise ValueError(
                f"small: expected {' '.join(carried)}, the networks that {backbone.name} carries, "
                f"got {' '.join(read_words(small))}. Leave it out, or pass a backbone without smaller networks."
            )
        macs = [net.full_macs for net in self.networks]
        self.set_stages(macs, [self.backbone.input_shape] * len(macs))

    @classmethod
    def furnish(cls, backbone: Backbone, data: ImageData, **options: Any) -> Backbone:
        """Return a backbone that carries smaller networks: its own, those of checkpoints, or trained on first use."""
        if backbone.smaller:
            return backbone
        given, files = options.get("small"), read_words(options.get("small_weights") or ())
        names = default_small(backbone.name) if given is None else read_words(given)
        if files and len(files) != len(names):
            raise ValueError(
                f"small_weights: expected one file for each of {' '.join(names)}, got {len(files)}. "
                "Give as many as there are smaller networks, in the same order."
            )
        if files:
            return backbone.with_smaller([_loaded(*pair, data) for pair in zip(names, files, strict=True)])
        from ..backbones.embedded import pretrained

        return backbone.with_smaller([pretrained(name, data) for name in names])

    @property
    def networks(self) -> list[Backbone]:
        """All networks, from small to large."""
        return [*self.backbone.smaller, self.backbone]

    @property
    def pieces(self) -> list[str]:
        return [f"beyond {index}: {net.name}" for index, net in enumerate(self.backbone.smaller, 1)]

    def enter(self, inputs: Tensor) -> Tensor:
        """Return the image: every network begins with it."""
        return inputs

    def run(self, stage: int, x: Tensor) -> Tensor:
        """Keep the image for the next network."""
        return x

    def head(self, stage: int, x: Tensor) -> Tensor:
        """Run a whole network."""
        network = self.networks[stage]
        return network(renormalised(x, self.backbone, network))


def renormalised(x: Tensor, of: Backbone, to: Backbone) -> Tensor:
    """Return images prepared for one network as another expects them; the same where both expect the same."""
    if (of.mean, of.std) == (to.mean, to.std):
        return x
    old_mean, old_std, mean, std = (
        torch.tensor(values, device=x.device).view(1, -1, 1, 1) for values in (of.mean, of.std, to.mean, to.std)
    )
    return (x * old_std + old_mean - mean) / std


def default_small(name: str) -> list[str]:
    """Return the smaller networks that go by default with a CIFAR ResNet of 6n+2 layers: n = 1, and near √n.

    Raises:
        ValueError: If it is another network, or the smallest.
    """
    match = re.fullmatch(r"(?:cifar-)?resnet(\d+)(-w\d+)?", name)
    count, rest = divmod(int(match[1]) - 2, 6) if match and name != "resnet50" else (0, 0)
    if not match or rest or count < 2:
        raise ValueError(
            f"small: expected names of networks smaller than {name}, got none, and there is no default for it. "
            'Give them from small to large: --task-options small "resnet8 resnet14".'
        )
    return [f"resnet{6 * n + 2}{match[2] or ''}" for n in sorted({1, round(count**0.5)})]


def read_words(words: Words) -> list[str]:
    """Return names or files as a list: given as one, or as the command line has them, "resnet8 resnet14"."""
    return words.replace(",", " ").split() if isinstance(words, str) else [str(word) for word in words]


def _loaded(name: str, weights: str, data: ImageData) -> Backbone:
    """Return a smaller network with its weights.

    Raises:
        ValueError: If they may have seen the policy's images where the largest network has not.
    """
    if not data.seen and not held_out(weights, data.fingerprint):
        raise ValueError(
            f"small_weights {weights}: expected weights that have not seen the policy's images, as those of the "
            f"largest network, got some without a card that says so. Train them: skipgym pretrain --backbone {name} "
            f"--data {data.name} --out DIR."
        )
    return load_backbone(name, weights, **data.shape)
