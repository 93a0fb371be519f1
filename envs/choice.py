"""A decision for each row of a batch, in the forms that interpreters need.

A task asks its choice what becomes of the computation; it never knows who chooses. See the design in README.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Self

import torch
from torch import Tensor

from ..backbones.routing import Branch, route

Mixture = Callable[[Tensor, Tensor], Tensor]


def cost_dtype(device: torch.device) -> torch.dtype:
    """Return the type in which MACs are summed: double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def random_places(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return numbers for places, each as likely as another, in -1 … 1."""
    return 2 * torch.rand(tuple(shape), generator=generator) - 1


class Choice(ABC):
    """One decision for each of N rows. A decision has one part, or several that are made at the same time.

    Attributes:
        gathers: Whether what is left out within a row, a token or a place, is not to be computed; else all of it is
            computed, and masked.
        place: Where, of tasks whose decisions have a place beside their option; None where none is said. Shape
            (N, coordinates), in -1 … 1.
    """

    gathers: bool = False
    place: Tensor | None = None

    @abstractmethod
    def among(self, branches: Sequence[Branch], x: Tensor) -> Tensor:
        """Return what the chosen branches make of the rows.

        Args:
            branches: One function for each option; all give the same shape.
            x: Rows. Shape (N, ...).
        """

    def blend(self, branches: Sequence[Branch], x: Tensor, mixture: Mixture) -> Tensor:
        """Return what `among` does, of branches that can be mixed before they run.

        Args:
            branches: One function for each option; all give the same shape.
            x: Rows. Shape (N, ...).
            mixture: Takes the options' weights, (N, options), and the rows; at weights of one and zero it gives what
                the branches give.
        """
        return self.among(branches, x)

    @abstractmethod
    def only(self, option: int, branch: Branch, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Return what a branch makes of the rows that chose an option, where nothing is made of the others.

        The others are not to be looked at: they have answered. Under mixtures the branch runs on all rows, and what it
        gives is not scaled: it is the answers that are mixed, by the share that gives them.

        Args:
            option: Whose rows go on.
            branch: What they go through.
            x: Rows. Shape (N, ...).
            shape: Of one row that the branch gives.
        """

    @abstractmethod
    def weight(self, option: int) -> Tensor:
        """Return how much an option is chosen, 0…1. Shape (N,)."""

    @abstractmethod
    def part(self, index: int) -> "Choice":
        """Return one part of a decision that has several."""

    @abstractmethod
    def merged(self, groups: Sequence[int]) -> "Choice":
        """Return the choice among groups of options, given the group of each option, 0, 1, …."""

    def placed(self, place: Tensor | None) -> Self:
        """Return the same choice at a place. Shape (N, coordinates)."""
        if place is None:
            return self
        choice = copy(self)
        choice.place = place
        return choice

    def taken(self, options: int) -> Tensor | None:
        """Return the one option of so many that each row takes, shape (N,); None where any are mixed."""
        weights = torch.stack([self.weight(option) for option in range(options)], 1)
        mixed = weights.requires_grad or bool((weights.amax(1) != 1).any())
        return None if mixed else weights.argmax(1)

    def within(self, place: Tensor, options: int) -> "Choice":
        """Return the choice among the options of several places together, `place * options + option`.

        Args:
            place: How much each row stands at each place: 1 at one of them, or mixed. Shape (N, places).
            options: Of each place.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot choose by where rows have come from.")

    def in_place(self) -> "Choice":
        """Return the same choice, with leave to overwrite the rows that it is given; itself where it would not."""
        return self

    def astray(self) -> tuple[Tensor, Tensor] | None:
        """Return pairs of rows that would only have to change places for all that choose option 0 to lie together.

        None where that brings nothing. Each of shape (M,).
        """
        return None

    def select(self, rows: Tensor) -> "Choice":
        """Return the choices of some rows, in this order. Shape (M,)."""
        raise NotImplementedError(f"{type(self).__name__} chooses for all rows together.")

    def cost(self, costs: Sequence[float]) -> Tensor:
        """Return what was chosen costs, given what each option costs. Shape (N,)."""
        weights = torch.stack([self.weight(option) for option in range(len(costs))], 1)
        dtype = cost_dtype(weights.device)
        return weights.to(dtype) @ torch.tensor(costs, dtype=dtype, device=weights.device)

    def charged(self, macs: Tensor, *, most: float) -> Tensor:
        """Return the cost of what a decision leaves of each row, where that is no sum over its options: as it is.

        Args:
            macs: What is left costs. Shape (N,).
            most: What a row costs of which nothing is left out.
        """
        return macs


class Hard(Choice):
    """Actions: rows are grouped by action, and each branch runs on its own rows only.

    Args:
        actions: Chosen option of each row, or of each part of each row. Shape (N,) or (N, parts), integers.
        overwrites: Whether rows that it is given may be overwritten.
    """

    gathers = True

    def __init__(self, actions: Tensor, *, overwrites: bool = False):
        self.actions, self.overwrites = actions, overwrites

    def among(self, branches: Sequence[Branch], x: Tensor) -> Tensor:
        """Run each branch on the rows that chose it."""
        return route(branches, x, self.actions, in_place=self.overwrites)

    def only(self, option: int, branch: Branch, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Run the branch on the rows that chose the option; the others become zeros."""
        return route([partial(_zeros, shape), branch], x, (self.actions == option).long())

    def weight(self, option: int) -> Tensor:
        """Return 1 where the option was chosen, else 0."""
        return (self.actions == option).float()

    def part(self, index: int) -> "Hard":
        """Return the actions of one part."""
        return type(self)(self.actions[:, index], overwrites=self.overwrites)

    def merged(self, groups: Sequence[int]) -> "Hard":
        """Return the groups of the chosen options."""
        of_option = torch.tensor(groups, device=self.actions.device)
        return type(self)(of_option[self.actions.long()], overwrites=self.overwrites)

    def taken(self, options: int) -> Tensor:
        """Return the actions."""
        return self.actions.long()

    def within(self, place: Tensor, options: int) -> "Hard":
        """Return each row's option at its place."""
        return type(self)(place.argmax(1) * options + self.actions, overwrites=self.overwrites)

    def in_place(self) -> "Hard":
        """Return the same actions; rows that a branch leaves `unchanged` then stay where they are."""
        return type(self)(self.actions, overwrites=True).placed(self.place)

    def astray(self) -> tuple[Tensor, Tensor] | None:
        """Return as few pairs as can be: those of option 0 come to lie in front, or behind the others."""
        if self.actions.dim() != 1 or not self.gathers:
            return None
        left_out = self.actions == 0
        count = int(left_out.count_nonzero())
        if count in (0, len(left_out)):
            return None
        ways = [(left_out, count), (~left_out, len(left_out) - count)]
        pairs = [((~front[:size]).nonzero()[:, 0], size + front[size:].nonzero()[:, 0]) for front, size in ways]
        first, second = min(pairs, key=lambda pair: len(pair[0]))
        return (first, second) if len(first) else None

    def select(self, rows: Tensor) -> "Hard":
        """Return the actions of some rows."""
        place = None if self.place is None else self.place[rows]
        return type(self)(self.actions[rows], overwrites=self.overwrites).placed(place)

    def cost(self, costs: Sequence[float]) -> Tensor:
        """Return the cost of the chosen option. Shape (N,)."""
        device = self.actions.device
        return torch.tensor(costs, dtype=cost_dtype(device), device=device)[self.actions.long()]


class Masked(Hard):
    """Actions, executed as released research code does: every branch on all rows, then select. To compare against."""

    gathers = False

    def among(self, branches: Sequence[Branch], x: Tensor) -> Tensor:
        """Run every branch on all rows and keep what was chosen."""
        first, *others = (branch(x) for branch in branches)
        rows = (-1, *(1,) * (first.dim() - 1))
        for option, result in enumerate(others, 1):
            first = torch.where((self.actions == option).view(rows), result, first)
        return first

    def only(self, option: int, branch: Branch, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Run the branch on all rows, and make zeros of those that did not choose the option."""
        return _scaled(branch(x), self.weight(option))


class Soft(Choice):
    """Weights: branches are mixed, and cost is differentiable.

    Args:
        weights: For each part, the weight of each option; rows sum to 1. Each of shape (N, options). One-hot weights
            with a straight-through gradient give the values of `Hard`.
    """

    def __init__(self, weights: Sequence[Tensor] | Tensor):
        self.weights = [weights] if isinstance(weights, Tensor) else list(weights)

    def among(self, branches: Sequence[Branch], x: Tensor) -> Tensor:
        """Run every branch on all rows and mix the results."""
        first, *others = (_scaled(branch(x), self.weight(i)) for i, branch in enumerate(branches))
        return sum(others, start=first)

    def blend(self, branches: Sequence[Branch], x: Tensor, mixture: Mixture) -> Tensor:
        """Run the mixture, once."""
        return mixture(self.weights[0], x)

    def only(self, option: int, branch: Branch, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Run the branch on all rows."""
        return branch(x)

    def weight(self, option: int) -> Tensor:
        """Return the weight of an option."""
        return self.weights[0][:, option]

    def within(self, place: Tensor, options: int) -> "Soft":
        """Return the products of the places' weights and the options'."""
        return Soft(products(place, self.weights[0]))

    def part(self, index: int) -> "Soft":
        """Return the weights of one part."""
        return Soft(self.weights[index])

    def merged(self, groups: Sequence[int]) -> "Soft":
        """Return the sums of the weights of each group."""
        return Soft(together(self.weights[0], groups))


def together(weights: Tensor, groups: Sequence[int]) -> Tensor:
    """Return the sums of the weights of each group. Shape (N, options) to (N, groups)."""
    members = [[option for option, of in enumerate(groups) if of == group] for group in range(1 + max(groups))]
    return torch.stack([weights[:, options].sum(1) for options in members], 1)


def products(place: Tensor, weights: Tensor) -> Tensor:
    """Return each place's share of each option. Shapes (N, places), (N, options) to (N, places * options)."""
    return (place.unsqueeze(2) * weights.unsqueeze(1)).flatten(1)


def _zeros(shape: Sequence[int], x: Tensor) -> Tensor:
    """Return a row of zeros for each row."""
    return x.new_zeros((len(x), *shape))


def _scaled(rows: Tensor, weights: Tensor) -> Tensor:
    """Scale each row, whatever a branch has made of its shape."""
    return rows * weights.view(-1, *(1,) * (rows.dim() - 1))


def one_hot(actions: Tensor, options: Sequence[int]) -> Soft:
    """Return actions as weights: the point where soft and hard execution must agree.

    Args:
        actions: Shape (N,) or (N, parts), integers.
        options: Number of options of each part.
    """
    columns = actions.view(len(actions), len(options)).unbind(1)
    pairs = zip(columns, options, strict=True)
    return Soft([torch.nn.functional.one_hot(column, count).float() for column, count in pairs])
