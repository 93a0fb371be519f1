"""Where a network has several ways on, of which one is taken."""

from collections.abc import Iterable
from typing import ClassVar

from torch import nn


class Crossing(nn.Module):
    """A block made of cells, of which one runs: in evaluation the last, in training any.

    It may be reached by several ways that must not be confused, as a tree's level is, whose nodes each have branches of
    their own: those are its places. From option `o` at place `p` a row comes to place `p * options + o` of a crossing
    that has so many.

    Args:
        cells: Of each place all options, from the cheapest to the dearest; the same option costs the same everywhere.
        places: Their number.

    Attributes:
        option_name: What an option is called.
    """

    option_name: ClassVar[str] = "branch"

    def __init__(self, cells: Iterable[nn.Module], *, places: int = 1):
        super().__init__()
        self.cells, self.places = nn.ModuleList(cells), places

    @property
    def options(self) -> int:
        """How many ways on there are from each place."""
        return len(self.cells) // self.places
