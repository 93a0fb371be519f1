"""Recurrent networks over the steps of a sequence, words or frames: what reads the features of a frozen network."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .cost import count_macs

CellKind = Literal["gru", "lstm"]
CELLS: dict[str, type[nn.GRUCell | nn.LSTMCell]] = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}


class Recurrent(nn.Module):
    """A recurrent cell, a small one that may stand in for it, and a classifier on what is remembered.

    The small cell updates the first units of the state alone, from all of it (Seo et al. 2018, Neural Speed Reading via
    Skim-RNN); the others stay as they are. Attributes and methods are a `Reader`'s where both have them, so that a
    network carries it as its reader.

    Args:
        width: Channels of the network's last feature map.
        num_classes: Outputs.
        steps: Of the longest sequence.
        cell: Kind of cell.
        hidden: Units.
        skim: Units that the small cell updates; 0 for no small cell.

    Attributes:
        kind: `steps`.
        memory_size: Numbers that are remembered of an input: an LSTM's state has two for each unit.
        step_macs: Cost of an update, in MACs of one input. Likewise `skim_macs` of a part of it, and `answer_macs`.
    """

    kind = "steps"

    def __init__(
        self, width: int, num_classes: int, *, steps: int, cell: CellKind = "gru", hidden: int = 128, skim: int = 0
    ):
        super().__init__()
        if cell not in get_args(CellKind):
            raise ValueError(f"cell: expected one of {', '.join(get_args(CellKind))}, got {cell!r}. Change it.")
        for name, value in (("steps", steps), ("hidden", hidden)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}. Change it.")
        if not isinstance(skim, int) or not 0 <= skim < hidden:
            raise ValueError(f"skim: expected 0 … {hidden - 1}, of {hidden} units, got {skim!r}. Change it.")
        self.width, self.num_classes, self.steps = width, num_classes, steps
        self.cell, self.hidden, self.skim = cell, hidden, skim
        self.norm = nn.BatchNorm1d(width)
        self.whole = CELLS[cell](width, hidden)
        self.small = CELLS[cell](width + hidden - skim, skim) if skim else None
        self.linear = nn.Linear(hidden, num_classes)
        self.states = 2 if cell == "lstm" else 1
        self.memory_size = self.states * hidden
        self.eval()
        memory, features = torch.zeros(1, self.memory_size), torch.zeros(1, width)
        self.step_macs = count_macs(self.read, memory, features)
        self.skim_macs = count_macs(self.skim_over, memory, features) if skim else 0
        self.answer_macs = count_macs(self.answer, memory)

    def read(self, memory: Tensor, features: Tensor) -> Tensor:
        """Return the memory after one more step.

        Args:
            memory: An LSTM's cell state after its output. Shape (N, memory_size).
            features: Of the step. Shape (N, width).
        """
        return self.updated(memory, self.norm(features))

    def skim_over(self, memory: Tensor, features: Tensor) -> Tensor:
        """Return the memory of which a part was updated. Shapes as for `read`.

        Raises:
            ValueError: If there is no small cell.
        """
        return self.partly_updated(memory, self.norm(features))

    def updated(self, memory: Tensor, x: Tensor) -> Tensor:
        """Return what `read` does, of features that are normalised."""
        return self._joined(self.whole(x, self._parted(memory)))

    def partly_updated(self, memory: Tensor, x: Tensor) -> Tensor:
        """Return what `skim_over` does, of features that are normalised."""
        if self.small is None:
            raise ValueError("skim: expected a recurrent network with a small cell, got one without. Train one.")
        parts = memory.unflatten(1, (self.states, self.hidden))
        first, rest = parts.split([self.skim, self.hidden - self.skim], 2)
        updated = self._joined(self.small(torch.cat([x, rest[:, 0]], 1), self._parted(first.flatten(1))))
        return torch.cat([updated.unflatten(1, (self.states, self.skim)), rest], 2).flatten(1)

    def answer(self, memory: Tensor) -> Tensor:
        """Return logits. Shape (N, memory_size) to (N, classes)."""
        return self.linear(memory[:, : self.hidden])

    def _parted(self, memory: Tensor) -> Any:
        """Return the memory as the cell takes it."""
        return memory.chunk(2, 1) if self.states == 2 else memory

    def _joined(self, state: Any) -> Tensor:
        return torch.cat(state, 1) if self.states == 2 else state

    @property
    def config(self) -> dict[str, Any]:
        """How to build it again (JSON)."""
        names = ("width", "num_classes", "steps", "cell", "hidden", "skim")
        return {name: getattr(self, name) for name in names}
