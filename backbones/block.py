"""One block of a network: what it computes, what takes its place when it is left out, and what both cost."""

import torch
from torch import Tensor, nn

from .cost import count_macs
from .routing import Branch, unchanged


class Block(nn.Module):
    """A piece of a network that may be left out.

    Attributes:
        name: Its name in the network.
        macs: Cost of `run`, in MACs of one input.
        shortcut: What takes its place; None where nothing can, as in a network whose later blocks use all that
            earlier ones add.
        in_shape: Shape of one input row.
        out_shape: Shape of one output row.
        overwrites: Whether `body` takes leave to write over its input, see `folding.fold`.
    """

    overwrites: bool = False

    def __init__(self, name: str, body: nn.Module, shortcut: nn.Module | None, example: Tensor):
        super().__init__()
        with torch.no_grad():
            out = body(example.clone())
            passed = out if shortcut is None else _attempt_bypass(name, shortcut, example.clone())
        if passed.shape != out.shape:
            raise ValueError(
                f"bypass of block {name}: expected shape {tuple(out.shape[1:])} as the block gives, "
                f"got {tuple(passed.shape[1:])}. Pass bypass={{{name!r}: module}} that fits."
            )
        self.in_shape, self.out_shape = tuple(example.shape[1:]), tuple(out.shape[1:])
        self.name, self.body = name, sparing(body, example)
        self.shortcut = None if shortcut is None else sparing(shortcut, example)
        self.macs = count_macs(self.body, example)
        self._bypass_macs = 0 if self.shortcut is None else count_macs(self.shortcut, example)

    @property
    def bypass_macs(self) -> int:
        """Cost of `bypass`, in MACs of one input.

        Raises:
            ValueError: If it cannot be left out.
        """
        self._passable()
        return self._bypass_macs

    def _passable(self) -> nn.Module:
        if self.shortcut is None:
            raise ValueError(
                f"block {self.name}: expected one that can be left out, got one that nothing can replace, since later "
                "ones use what it adds. Use a task of exits (early-exit), no stochastic depth, or another backbone."
            )
        return self.shortcut

    def run(self, x: Tensor) -> Tensor:
        """Execute the block. Shape (N, *in_shape) to (N, *out_shape)."""
        return self.body(x)

    def overwrite(self, x: Tensor) -> Tensor:
        """Execute the block on rows that nobody else needs; it may put its results over them, and return those."""
        return self.body(x, overwrite=True) if self.overwrites else self.body(x)

    @property
    def bypass(self) -> Branch:
        """What leaves the block out: shape (N, *in_shape) to (N, *out_shape); `unchanged` where that is the identity.

        Raises:
            ValueError: If it cannot be left out.
        """
        shortcut = self._passable()
        return unchanged if isinstance(shortcut, nn.Identity) else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Execute the block."""
        return self.body(x)


def residual_shortcut(block: nn.Module) -> nn.Module | None:
    """Return what a residual block computes when its residual branch is zero; None of a block that is not `skippable`.

    Known are blocks with a `shortcut` or a `downsample` followed by ReLU (torchvision's ResNets and ours); any other
    block becomes the identity.
    """
    if getattr(block, "skippable", True) is False:
        return None
    for attribute in ("shortcut", "downsample"):
        shortcut = getattr(block, attribute, None)
        if isinstance(shortcut, nn.Module) and not isinstance(shortcut, nn.Identity):
            return nn.Sequential(shortcut, nn.ReLU())
    return nn.Identity()


def _attempt_bypass(name: str, shortcut: nn.Module, example: Tensor) -> Tensor:
    try:
        return shortcut(example)
    except RuntimeError as error:
        raise ValueError(
            f"bypass of block {name}: expected a module that takes shape {tuple(example.shape[1:])}, got {error}. "
            f"Pass bypass={{{name!r}: module}}."
        ) from error


class _OnCopy(nn.Module):
    """A module that would write to its input, given a copy of it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.clone())


def sparing(piece: nn.Module, example: Tensor) -> nn.Module:
    """Return a piece that leaves its input as it is: the other branch, or another run, may need it too."""
    probe = example.clone()
    version = probe._version
    with torch.no_grad():
        piece(probe)
    return piece if probe._version == version else _OnCopy(piece)
