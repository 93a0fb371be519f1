"""A policy that foresees which of a few paths would answer right, and takes the best for its price."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.cost import count_macs
from ..envs.observation import Layout
from ..envs.outcomes import Path
from ..envs.state import State
from .gate import VectorTrunk
from .policy import Policy, check_logits


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ImageBody(nn.Module):
    """Five convolutions, pooled in between while the map is larger than 8 x 8, and mean + maximum at the end."""

    def __init__(self, layout: Layout, width: int):
        super().__init__()
        channels, side = layout.shape[0], min(layout.shape[1:])
        pools = [nn.MaxPool2d(2) if side > limit else nn.Identity() for limit in (16, 8)]
        self.layers = nn.Sequential(
            _convolution(channels, width // 2),
            pools[0],
            _convolution(width // 2, width),
            pools[1],
            _convolution(width, 2 * width),
            _Residual(2 * width),
            nn.MaxPool2d(2),
            _convolution(2 * width, 4 * width),
        )
        self.size = 4 * width

    def fit(self, observations: Tensor) -> None:
        """Do nothing: images come normalised."""

    def forward(self, observation: Tensor) -> Tensor:
        """Return features. Shape (N, C, H, W) to (N, size)."""
        x = self.layers(observation)
        return x.mean((2, 3)) + 0.5 * x.amax((2, 3))

    def at(self, position: int, features: Tensor, price: Tensor) -> Tensor:
        """Return features of what the task observes."""
        return self(features)


class VectorBody(nn.Module):
    """The gate's trunk, for tasks that observe a vector."""

    def __init__(self, layout: Layout, width: int):
        super().__init__()
        self.trunk, self.size = VectorTrunk(layout, width), width

    def fit(self, observations: Tensor) -> None:
        """Standardise by these observations."""
        self.trunk.fit(observations)

    def forward(self, observation: Tensor) -> Tensor:
        """Return features. Shape (N, D) to (N, size)."""
        return self.trunk(observation)

    def at(self, position: int, features: Tensor, price: Tensor) -> Tensor:
        """Return features where the position is known. Shapes (N, D) and (N,) to (N, size)."""
        return self.trunk.at(position, features, price)


class PathNet(nn.Module):
    """Foresees, from the first observation, the probability that each path answers right.

    The class is guessed first, since on a frozen network the path to take is above all a matter of class. How often
    each path is right for each class (`table`) gives the first estimate, in log-odds, and a small head corrects it.

    Args:
        layout: Of the observation.
        classes: Number of classes.
        paths: Number of paths.
        width: Channels of the second convolution, or units for vectors.
    """

    table: Tensor

    def __init__(self, layout: Layout, classes: int, paths: int, *, width: int):
        super().__init__()
        self.layout, self.width = layout, width
        self.body = ImageBody(layout, width) if len(layout.shape) == 3 else VectorBody(layout, width)
        self.classify = nn.Linear(self.body.size, classes)
        self.hidden = nn.Linear(self.body.size, 64)
        self.correct = nn.Linear(64 + classes, paths)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)
        self.register_buffer("table", torch.full((paths, classes), 0.5))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the log-odds that each path answers right. Shape (N, P)."""
        return self.values(*self.features(observation))

    def at(self, position: int, features: Tensor, price: Tensor) -> Tensor:
        """Return the log-odds from what the task observes, where the position is known. Shape (N, P)."""
        x = self.body.at(position, features, price)
        return self.values(x, self.classify(x))

    def features(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, size) and class logits (N, classes)."""
        x = self.body(observation)
        return x, self.classify(x)

    def values(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return the log-odds from what `features` gave. Shape (N, P)."""
        guess = (F.softmax(classes, 1) @ self.table.T).clamp(1e-4, 1 - 1e-4)
        hidden = F.dropout(F.relu(self.hidden(features)), 0.2, self.training)
        belief = F.log_softmax(classes, 1).clamp(min=-8) / 4
        return torch.logit(guess) + self.correct(torch.cat([hidden, belief], 1))


class PathPolicy(Policy):
    """Takes the path with the largest probability of being right minus price x compute.

    It decides at the first position and follows the path from there on. Every price is a policy of its own, without
    training anew.

    Args:
        net: Foresees.
        paths: What can be chosen: one option for each of the task's pieces.
        costs: Of each path, as a share of the full network's MACs, policy aside.
        parts: Parts of one decision.
    """

    priced = True
    paths: Tensor
    costs: Tensor

    def __init__(self, net: PathNet, paths: Sequence[Path], costs: Sequence[float], parts: int):
        super().__init__()
        self.net, self.parts = net, parts
        self.register_buffer("paths", torch.tensor(paths))
        self.register_buffer("costs", torch.tensor(costs, dtype=torch.float32))
        was_training = net.training
        self.macs = count_macs(net.eval(), torch.zeros(1, *net.layout.space.shape, device=net.table.device))
        net.train(was_training)

    def macs_at(self, position: int) -> int:
        """Return the cost of the decision: only the first one computes anything."""
        return self.macs if position == 0 else 0

    def act(self, features: Tensor, state: State, price: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Choose a path at the first position, and return its options of this one.

        Raises:
            ValueError: If the values are not finite.
        """
        if memory is None:
            values = self.net.at(state.position, features, price)
            check_logits(values)
            memory = self.choose(values, price).unsqueeze(1)
        first = state.position * self.parts
        return self.paths[memory[:, 0], first : first + self.parts], memory

    def choose(self, values: Tensor, price: Tensor) -> Tensor:
        """Return the number of the best path, given log-odds (N, P) and prices (N,). Shape (N,)."""
        return (torch.sigmoid(values) - price.unsqueeze(1) * self.costs).argmax(1)

    def config(self) -> dict[str, Any]:
        """Return how to build it again (JSON)."""
        return {
            "kind": "path",
            "layout": asdict(self.net.layout),
            "classes": self.net.classify.out_features,
            "width": self.net.width,
            "parts": self.parts,
            "paths": self.paths.tolist(),
        }


def path_policy(config: dict[str, Any]) -> PathPolicy:
    """Build a saved policy, with random weights and no costs."""
    layout = Layout(tuple(config["layout"]["shape"]), config["layout"]["positions"], config["layout"]["priced"])
    net = PathNet(layout, config["classes"], len(config["paths"]), width=config["width"])
    return PathPolicy(net, config["paths"], [0.0] * len(config["paths"]), config["parts"])
