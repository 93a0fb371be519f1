"""Inner channels of a block: what its first layer gives only to its second, so that some can be left out.

Of a residual block of convolutions these are channels, of a transformer's block the neurons of its fully connected
layers. The block's own input and output keep their shapes (runtime neural pruning, Lin et al. 2017).
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .backbone import Backbone

Layer = nn.Conv2d | nn.Linear


class Inner(NamedTuple):
    """A block's two layers around its inner channels, and the BatchNorm between them, if any."""

    first: Layer
    norm: nn.BatchNorm2d | None
    second: Layer

    @property
    def channels(self) -> int:
        """How many inner channels there are."""
        return len(self.first.weight)


def inner_layers(block: nn.Module) -> Inner | None:
    """Return the layers around a block's inner channels, by the names that ResNets and transformers give them.

    Returns:
        None if it has no such layers.
    """
    named = dict(block.named_modules())
    for first, norm, second in (("conv1", "bn1", "conv2"), ("mlp.0", "", "mlp.3")):
        one, between, two = named.get(first), named.get(norm) if norm else None, named.get(second)
        if not isinstance(one, Layer) or not isinstance(two, Layer) or getattr(two, "groups", 1) > 1:
            continue
        if len(one.weight) == two.weight.shape[1] and isinstance(between, nn.BatchNorm2d) == bool(norm):
            return Inner(one, between if isinstance(between, nn.BatchNorm2d) else None, two)
    return None


def gated_blocks(backbone: Backbone, groups: int) -> list[nn.Module]:
    """Return the modules of a backbone's blocks, whose inner channels must make so many groups.

    Raises:
        ValueError: If there is one group, a block has no inner channels, or they do not make groups of one size.
    """
    if groups < 2:
        raise ValueError(
            f"groups: expected 2 or more, got {groups}. Between all channels and all channels there is nothing to "
            "choose; use 4."
        )
    blocks = backbone.own_blocks
    for named, block in zip(backbone.blocks, blocks, strict=True):
        if (inner := inner_layers(block)) is None:
            raise ValueError(
                f"groups: expected blocks of two layers with channels between them, got {named.name} of "
                f"{backbone.name}, which has none that are known. Use a ResNet of plain convolutions or a vision "
                "transformer."
            )
        if inner.channels % groups:
            raise ValueError(
                f"groups: expected a number that divides the channels, got {groups} for the {inner.channels} of "
                f"{named.name}. Use a divisor, or a wider network."
            )
    return blocks


@torch.no_grad()
def kept(block: nn.Module, channels: Sequence[int]) -> nn.Module:
    """Return a copy of a block with some of its inner channels only: smaller layers, their weights copied."""
    clone = copy.deepcopy(block)
    inner, index = inner_layers(clone), torch.as_tensor(channels)
    assert inner is not None  # see `gated_blocks`
    _take(inner.first, index, ("weight", "bias"), 0)
    _take(inner.second, index, ("weight",), 1)
    if inner.norm is not None:
        _take(inner.norm, index, ("weight", "bias", "running_mean", "running_var"), 0)
    sizes: list[tuple[Any, str]] = [(inner.norm, "num_features")] if inner.norm is not None else []
    sizes += [(inner.first, "out_channels" if isinstance(inner.first, nn.Conv2d) else "out_features")]
    sizes += [(inner.second, "in_channels" if isinstance(inner.second, nn.Conv2d) else "in_features")]
    for module, name in sizes:
        setattr(module, name, len(channels))
    return clone


def _take(module: nn.Module, index: Tensor, names: Sequence[str], dim: int) -> None:
    """Leave the indexed rows or columns of a module's tensors."""
    for name in names:
        value = getattr(module, name)
        if isinstance(value, nn.Parameter):
            setattr(module, name, nn.Parameter(value.index_select(dim, index.to(value.device)), value.requires_grad))
        elif value is not None:
            setattr(module, name, value.index_select(dim, index.to(value.device)))


def drop_channels(backbone: Backbone, groups: int) -> list[RemovableHandle]:
    """Let a backbone learn to bear missing channels: in training each image keeps the first k groups of each block.

    k is drawn evenly from 1 to `groups`, for each image and block, from torch's global generator; channels beyond are
    zero for the second layer. In evaluation nothing changes.

    Returns:
        What removes this again.

    Raises:
        ValueError: As `gated_blocks` does.
    """
    inners = [inner_layers(block) for block in gated_blocks(backbone, groups)]
    drop = partial(_drop, groups)
    return [inner.second.register_forward_pre_hook(drop) for inner in inners if inner is not None]


def _drop(groups: int, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor | None:
    if not layer.training:
        return None
    x = inputs[0]
    channels = x.shape[1] if isinstance(layer, nn.Conv2d) else x.shape[-1]
    share = torch.randint(1, groups + 1, (len(x), 1), device=x.device) * (channels // groups)
    mask = (torch.arange(channels, device=x.device) < share).to(x.dtype)
    return x * (mask.view(-1, channels, 1, 1) if isinstance(layer, nn.Conv2d) else mask.unsqueeze(1))
