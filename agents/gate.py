"""The gate network: from an observation to the logits of a decision. All learners share it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.cost import count_macs
from ..envs.observation import Layout

OPEN_BIAS = 2.0
"""Added to the logit of each part's last option at the start, so that training begins near the full network."""


def price_signal(price: Tensor) -> Tensor:
    """Return how the gates see a price: its logarithm, -1.87 for 0, 0.16 for 0.1 and 1.67 for 1. Any shape.

    Between 0.01 and 0.1 most policies change more than between 0.1 and 1.
    """
    return ((price + 0.005).log() + 2.5) / 1.5


def by_position(x: Tensor, weight: Tensor, bias: Tensor, position: Tensor) -> Tensor:
    """Apply to each row the linear map of its position.

    Args:
        x: Shape (N, D).
        weight: Shape (P, H, D).
        bias: Shape (P, H).
        position: Shape (N,), integers below P.

    Returns:
        Shape (N, H).
    """
    if bool((position == position[0]).all()):  # always so in a controller, whose cohorts share their position
        return F.linear(x, weight[position[0]], bias[position[0]])
    counts = position.bincount(minlength=len(weight))
    order = position.argsort()
    first = counts.cumsum(0) - counts  # of each position, in that order
    rank = torch.empty_like(order)  # of each row, among those of its position
    rank[order] = torch.arange(len(x), device=x.device) - first[position[order]]
    most = int(counts.max())
    place = position * most + rank
    grouped = x.new_zeros(len(weight) * most, x.shape[1]).index_copy(0, place, x).unflatten(0, (-1, most))
    return torch.baddbmm(bias.unsqueeze(1), grouped, weight.transpose(1, 2)).flatten(0, 1).index_select(0, place)


class VectorTrunk(nn.Module):
    """Two layers on pooled features; each position has a first layer of its own, as SkipNet's gates do.

    Features are standardised by constants that `fit` measures before training, since their scale differs by position.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layout: Layout, hidden: int):
        super().__init__()
        self.layout, self.hidden = layout, hidden
        positions, size = max(1, layout.positions), layout.shape[0]
        bound = (size + int(layout.priced)) ** -0.5
        self.weight = nn.Parameter(torch.empty(positions, hidden, size + int(layout.priced)).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(positions, hidden).uniform_(-bound, bound))
        self.second = nn.Linear(hidden, hidden)
        self.register_buffer("mean", torch.zeros(positions, size))
        self.register_buffer("std", torch.ones(positions, size))

    @torch.no_grad()
    def fit(self, observations: Tensor) -> None:
        """Set the constants of standardisation from observations. Shape (N, ...)."""
        features, position, _ = self.layout.split(observations)
        for p in position.unique():
            rows = features[position == p]
            self.mean[p], self.std[p] = rows.mean(0), rows.std(0, unbiased=False).clamp(min=1e-3)

    def forward(self, observation: Tensor) -> Tensor:
        """Return hidden features. Shape (N, D) to (N, hidden)."""
        features, position, price = self.layout.split(observation)
        features = (features - self.mean[position]) / self.std[position]
        seen = torch.cat([features, price_signal(price)], 1)
        x = F.relu(by_position(seen, self.weight, self.bias, position))
        return F.relu(self.second(x))

    def at(self, position: int, features: Tensor, price: Tensor) -> Tensor:
        """Return hidden features where the position is known. Shapes (N, D) and (N,) to (N, hidden)."""
        position = position if self.layout.positions else 0
        weight, bias, mean, std = (one[position] for one in (self.weight, self.bias, self.mean, self.std))
        if torch.compiler.is_exporting():  # constants join the weights: a file runs fewer and smaller steps
            told, weight = weight[:, len(mean) :], weight[:, : len(mean)] / std
            x = F.linear(features, weight, bias - weight @ mean)
            x = x + price_signal(price).unsqueeze(1) * told[:, 0] if self.layout.priced else x
        else:
            x = (features - mean) / std
            x = torch.cat([x, price_signal(price).unsqueeze(1)], 1) if self.layout.priced else x
            x = F.linear(x, weight, bias)
        return F.relu(self.second(F.relu(x)))


class ImageTrunk(nn.Module):
    """Three strided convolutions on an image, pooled: a small stand-in for BlockDrop's ResNet-8."""

    def __init__(self, layout: Layout, hidden: int):
        super().__init__()
        self.layout, self.hidden = layout, hidden
        channels = layout.shape[0] + layout.extras
        first = 1 if min(layout.shape[1:]) <= 16 else 2
        widths = (channels, hidden // 4, hidden // 2, hidden)
        strides = (first, 2, 2)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride, 1) for a, b, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.second = nn.Linear(hidden, hidden)

    def fit(self, observations: Tensor) -> None:
        """Do nothing: images come normalised."""

    def forward(self, observation: Tensor) -> Tensor:
        """Return hidden features. Shape (N, C, H, W) to (N, hidden)."""
        x = observation
        if self.layout.priced:
            x = torch.cat([x[:, :-1], price_signal(x[:, -1:])], 1)
        return self._after(self.convolutions[0](x))

    def at(self, position: int, features: Tensor, price: Tensor) -> Tensor:
        """Return hidden features where the position is known. Shapes (N, C, H, W) and (N,) to (N, hidden)."""
        if not torch.compiler.is_exporting():
            return self(self.layout.join(features, position, price))
        first, count = self.convolutions[0], self.layout.shape[0]
        assert isinstance(first, nn.Conv2d)
        x = F.conv2d(features, first.weight[:, :count], first.bias, first.stride, first.padding)
        # what constant channels add is the same for all images: a file runs fewer and smaller steps
        everywhere = features.new_ones((1, 1, *self.layout.shape[1:]))
        extras = [
            F.conv2d(everywhere, weight.unsqueeze(1), None, first.stride, first.padding)
            for weight in first.weight[:, count:].unbind(1)
        ]
        if self.layout.positions:
            x = x + extras[position]
        if self.layout.priced:
            x = x + price_signal(price).view(-1, 1, 1, 1) * extras[-1]
        return self._after(x)

    def _after(self, x: Tensor) -> Tensor:
        """Return hidden features of what the first convolution made."""
        for convolution in self.convolutions[1:]:
            x = convolution(F.relu(x))
        return F.relu(self.second(F.relu(x).mean((2, 3))))


def make_trunk(layout: Layout, hidden: int) -> VectorTrunk | ImageTrunk:
    """Return the trunk that suits the observation: a vector, or an image.

    Raises:
        ValueError: If it is neither, or `hidden` is too small.
    """
    if hidden < 4:
        raise ValueError(f"hidden: expected at least 4 units, got {hidden}.")
    if len(layout.shape) == 1:
        return VectorTrunk(layout, hidden)
    if len(layout.shape) == 3:
        return ImageTrunk(layout, hidden)
    raise ValueError(f"observation: expected shape (D,) or (C, H, W), got {layout.shape}. Pool or flatten it.")


class Within(torch.autograd.Function):
    """Clamps to -1 … 1; beyond, gradients pass that bring a number back: where a clamp has none it would stay."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return numbers in -1 … 1. Any shape."""
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the gradient, without what would lead further out as it is descended."""
        (x,) = ctx.saved_tensors
        return gradient * ((x.abs() <= 1) | (gradient * x > 0))


class Gate(nn.Module):
    """Trunk, optionally a recurrent core (SkipNet's RNN gate), and one linear layer to the logits.

    Args:
        layout: Of the observation.
        decisions: Options of each part of a decision.
        hidden: Width.
        recurrent: Whether an LSTM remembers earlier positions.
        alike: Whether options above 0 are alike, see `Task`.
        coordinates: Of the place that a decision has, see `Task`.
    """

    def __init__(
        self,
        layout: Layout,
        decisions: Sequence[int],
        *,
        hidden: int = 64,
        recurrent: bool = False,
        alike: bool = False,
        coordinates: int = 0,
    ):
        super().__init__()
        self.alike, self.coordinates = alike, coordinates
        self.layout, self.decisions, self.hidden, self.recurrent = layout, tuple(decisions), hidden, recurrent
        self.trunk = make_trunk(layout, hidden)
        self.core = nn.LSTMCell(hidden, hidden) if recurrent else None
        self.head = nn.Linear(hidden, sum(decisions) + coordinates)

    def forward(self, observation: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the logits of all parts side by side, and the memory (N, 2·hidden) or None.

        Where a decision has a place, that stands behind them, see `split`. Shape (N, sum of decisions + coordinates).
        """
        return self._decide(self.trunk(observation), memory)

    def at(
        self, position: int, features: Tensor, price: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the same for a cohort, whose rows share their position, from what the task observes."""
        return self._decide(self.trunk.at(position, features, price), memory)

    def _decide(self, x: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.core is None:
            return self.head(x), None
        before = x.new_zeros(x.shape[0], 2 * self.hidden) if memory is None else memory
        hidden, cell = self.core(x, tuple(part.contiguous() for part in before.chunk(2, 1)))
        return self.head(hidden), torch.cat([hidden, cell], 1)

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (N, sum of decisions), and the place (N, coordinates) in -1 … 1, None where there is none."""
        if not self.coordinates:
            return outputs, None
        logits, place = outputs.split([sum(self.decisions), self.coordinates], 1)
        return logits, Within.apply(place)

    def macs(self) -> int:
        """Return the cost of one decision, in MACs."""
        device = self.head.weight.device
        return count_macs(self, torch.zeros(1, *self.layout.space.shape, device=device))


def shares_executed(options: int, *, alike: bool = False) -> Tensor:
    """Return how much each option executes: 0 nothing, the last all, those between in proportion. Shape (options,).

    Where options above 0 are alike, each executes all.
    """
    shares = torch.linspace(0, 1, options)
    return shares.ceil() if alike else shares


@torch.no_grad()
def open_wide(head: nn.Linear, decisions: Sequence[int], *, alike: bool = False) -> None:
    """Let the last layer of a gate begin near the full network; where options above 0 are alike, with any of those.

    Option 0 then is as likely as if there were one other only.
    """
    others = torch.tensor(decisions) - 1
    last = others.add(1).cumsum(0) - 1
    if alike:
        head.bias[last - others] += others.log() - OPEN_BIAS
    else:
        head.bias[last] += OPEN_BIAS
