"""Exits: heads part of the way through a network, that answer from there; how they are kept beside its weights."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cost import count_macs
from .stepped import Answer

HeadKind = Literal["pool", "conv"]


class Exit(nn.Module):
    """A head after some of a network's blocks.

    Args:
        after: How many blocks run before it.
        in_shape: Of one row of what those blocks give: (C, H, W), or (T, D) for tokens.
        num_classes: Outputs.
        kind: `pool`, maps pooled to at most 4 x 4 cells by a learned mixture of mean and maximum, then one linear layer
            (Shallow-Deep Networks, Kaya et al. 2019); `conv`, before that a strided convolution (as MSDNet, Huang et
            al. 2018, has two). Of tokens the class token and their mean are taken.

    Attributes:
        seen_shape: Of one row of the features that it answers from, here `in_shape`.
        macs: Cost of `forward`, in MACs of one input.
    """

    def __init__(self, after: int, in_shape: Sequence[int], num_classes: int, *, kind: HeadKind = "pool"):
        super().__init__()
        if kind not in get_args(HeadKind):
            raise ValueError(f"exit head: expected one of {', '.join(get_args(HeadKind))}, got {kind!r}.")
        self.after, self.in_shape, self.kind = after, tuple(in_shape), kind
        self.seen_shape = self.in_shape
        self.convolution = _convolution(self.in_shape) if kind == "conv" and len(self.in_shape) == 3 else None
        self.mixture = nn.Parameter(torch.zeros(()))  # by its sigmoid: of the mean, against the maximum
        x = torch.zeros((1, *self.in_shape))
        with torch.no_grad():
            width = self.eval()._pooled(x).shape[1]
        self.norm = nn.LayerNorm(width) if len(self.in_shape) == 2 else nn.BatchNorm1d(width)
        self.linear = nn.Linear(width, num_classes)
        self.macs = count_macs(self.eval(), x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits. Shape (N, *in_shape) to (N, classes)."""
        return self.linear(self.norm(self._pooled(x)))

    def seen(self, x: Tensor) -> Tensor:
        """Return the features that it answers from."""
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return torch.cat([x[:, 0], x.mean(1)], 1)
        if self.convolution is not None:
            x = self.convolution(x)
        size = (min(4, x.shape[2]), min(4, x.shape[3]))
        share = self.mixture.sigmoid()
        mixed = share * F.adaptive_avg_pool2d(x, size) + (1 - share) * F.adaptive_max_pool2d(x, size)
        return torch.flatten(mixed, 1)


class OwnExit(nn.Module):
    """An exit that is part of its network, and was trained with it.

    Args:
        after: How many blocks run before it.
        answer: The network's module; parameters are shared.

    Attributes:
        in_shape: Of one row of what it takes.
        seen_shape: Of one row of the features that it answers from.
        macs: Cost of `forward`, in MACs of one input.
    """

    def __init__(self, after: int, answer: Answer):
        super().__init__()
        self.after, self.takes = after, answer.takes
        self.head: nn.Module = answer
        self.in_shape, self.seen_shape = (sum(self.takes.sizes),), self.takes.shapes[-1]
        self.macs = count_macs(answer, torch.zeros((1, *self.in_shape), device=next(answer.parameters()).device))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits. Shape (N, *in_shape) to (N, classes)."""
        return self.head(x)

    def seen(self, x: Tensor) -> Tensor:
        """Return the features that it answers from. Shape (N, *in_shape) to (N, *seen_shape)."""
        return self.takes.last(x)


def _convolution(shape: tuple[int, ...]) -> nn.Sequential:
    width = 2 * shape[0]
    return nn.Sequential(nn.Conv2d(shape[0], width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def check_places(places: Sequence[int], blocks: int) -> tuple[int, ...]:
    """Return where exits are to be, as a tuple.

    Raises:
        ValueError: Unless they are whole numbers of blocks, rising, each with blocks before and after it.
    """
    found = tuple(places)
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in found)
    if not found or not whole or list(found) != sorted(set(found)) or not 1 <= found[0] <= found[-1] < blocks:
        raise ValueError(
            f"exits: expected one or more rising numbers of blocks from 1 to {blocks - 1}, got {_said(found)}. Each "
            f"says after how many of the {blocks} blocks an exit is; after the last the network answers by itself."
        )
    return found


def _said(places: Sequence[Any]) -> str:
    return " ".join(map(str, places)) or "none"


def even_places(block_macs: Sequence[int], count: int = 3) -> tuple[int, ...]:
    """Return places for exits that part the blocks' cost evenly, as far as there are blocks."""
    total, places = sum(block_macs), set()
    for share in range(1, count + 1):
        spent = [abs(sum(block_macs[:n]) - total * share / (count + 1)) for n in range(1, len(block_macs))]
        if spent:
            places.add(1 + spent.index(min(spent)))
    return tuple(sorted(places))


def digest(state: Mapping[str, Tensor]) -> str:
    """Return a hash of tensors with their names: 16 hexadecimal digits."""
    found = hashlib.sha256()
    for key, value in sorted(state.items()):
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def exit_files(weights: Path) -> tuple[Path, Path]:
    """Return where the exits of these weights lie, and their card: `backbone.exits.safetensors` and `.exits.json`."""
    return weights.with_suffix(".exits.safetensors"), weights.with_suffix(".exits.json")


def describe_exits(exits: Sequence[Exit]) -> list[dict[str, Any]]:
    """Return how to build exits again (JSON)."""
    return [{"after": one.after, "kind": one.kind} for one in exits]


def exit_tensors(exits: Sequence[Exit]) -> dict[str, Tensor]:
    """Return the weights of exits by name."""
    return {
        f"{index}.{key}": value.detach().cpu().contiguous()
        for index, one in enumerate(exits)
        for key, value in one.state_dict().items()
    }


def build_exits(
    described: Sequence[Mapping[str, Any]], state: Mapping[str, Tensor], shapes: Sequence[tuple[int, ...]], classes: int
) -> list[Exit]:
    """Build exits as described, with their weights.

    Args:
        described: From `describe_exits`.
        state: From `exit_tensors`.
        shapes: Of one row of what each block gives.
        classes: Outputs.

    Raises:
        ValueError: If description, weights and network do not fit each other.
    """
    places = check_places([one["after"] for one in described], len(shapes))
    exits = []
    for index, (after, one) in enumerate(zip(places, described, strict=True)):
        built = Exit(after, shapes[after - 1], classes, kind=one["kind"])
        own = {key.partition(".")[2]: value for key, value in state.items() if key.partition(".")[0] == str(index)}
        try:
            built.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"exits: expected the weights of exit {index}, got others ({error}).") from error
        exits.append(built.eval())
    return exits


def exits_of_card(
    card: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    trunk: str,
    shapes: Sequence[tuple[int, ...]],
    classes: int,
) -> list[Exit]:
    """Return the exits that a card describes.

    Args:
        card: As `write_exits` wrote it.
        state: Their weights.
        trunk: Fingerprint of the network that they are to be put on.
        shapes: Of one row of what each of its blocks gives.
        classes: Outputs.

    Raises:
        ValueError: If they are damaged, or were trained on another network.
    """
    return build_exits(described_in(card, "exits", state, trunk), state, shapes, classes)


def described_in(card: Mapping[str, Any], part: str, state: Mapping[str, Tensor], trunk: str) -> Any:
    """Return how a part is built that lies beside a network's weights, from its card.

    Args:
        card: As `card.write_part` wrote it.
        part: What it is: `exits`, `reader`.
        state: Its weights.
        trunk: Fingerprint of the network that it is to be put on.

    Raises:
        ValueError: If it is damaged, or was trained on another network.
    """
    try:
        described, found, of = card[part], card["fingerprint"], card["trunk"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected the card of {part} that skipgym pretrain writes, got no {error}") from error
    if of != trunk:
        raise ValueError(f"expected {part} of a network with fingerprint {trunk}, got those of {of}")
    if found != digest(state):
        raise ValueError(f"expected weights with fingerprint {found} as their card says, got {digest(state)}")
    return described
