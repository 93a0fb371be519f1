"""What a policy is given: what the task observes, where in the episode it is, and the price of compute."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .task import Task


@dataclass(frozen=True)
class Layout:
    """How an observation is put together, shared by environments, learners and controllers.

    Vectors are `[features | position, one-hot | price]`; for images the extras are constant channels.

    Attributes:
        shape: Shape of the task's own observation.
        positions: Length of the one-hot position; 0 for tasks with a single decision.
        priced: Whether the price of compute is shown.
    """

    shape: tuple[int, ...]
    positions: int
    priced: bool

    @classmethod
    def of(cls, task: Task, *, priced: bool) -> "Layout":
        """Return the layout of a task's observations."""
        return cls(tuple(task.observation_shape), task.horizon if task.horizon > 1 else 0, priced)

    @property
    def extras(self) -> int:
        return self.positions + int(self.priced)

    @cached_property
    def space(self) -> spaces.Box:
        """The space of one observation."""
        shape = (self.shape[0] + self.extras, *self.shape[1:])
        return spaces.Box(-np.inf, np.inf, shape, np.float32)

    def join(self, features: Tensor, position: int, price: Tensor) -> Tensor:
        """Return observations. `features` has shape (N, *shape), `price` shape (N,)."""
        if not self.extras:
            return features
        extras: list[Tensor] = []
        if self.positions:
            here = torch.arange(self.positions, device=features.device) == position
            extras.append(here.to(features.dtype).expand(features.shape[0], -1))
        if self.priced:
            extras.append(price.to(features.dtype).unsqueeze(1))
        return torch.cat([features, self._spread(torch.cat(extras, 1))], 1)

    def split(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (N, *shape), positions (N,) as integers, and prices (N, 1 or 0)."""
        features, extras = observation.split([self.shape[0], self.extras], 1)
        flat = extras.flatten(2)[:, :, 0] if extras.dim() > 2 else extras
        zeros = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
        position = flat[:, : self.positions].argmax(1) if self.positions else zeros
        return features, position, flat[:, self.positions :]

    def _spread(self, extras: Tensor) -> Tensor:
        """Make extras (N, E) constant channels where features are images."""
        if len(self.shape) == 1:
            return extras
        return extras.view(*extras.shape, *(1,) * (len(self.shape) - 1)).expand(-1, -1, *self.shape[1:])
