"""Which tokens to go on with: those of a vision transformer are dropped between its blocks."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.tokens import encoder_blocks, run_tokens, token_macs
from ..data import ImageData
from .choice import Choice, Hard, cost_dtype
from .state import State
from .task import Task, register_task

By = Literal["share", "token"]
Numbers = Sequence[float] | str | float


@register_task("token-skip")
class TokenSkip(Task):
    """Between blocks of a vision transformer, drop tokens for good (DynamicViT, Rao 2021; EViT, Liang 2022).

    Description:
        The first blocks have run on all tokens. The agent decides which of them go on; the next blocks run on a shorter
        sequence, of the class token and those. So again, until the head answers from the class token. What is dropped
        is not fused into a token of its own, as EViT's is.
    Action space:
        By share: `Discrete(len(keep))`, how large a share of the tokens that are there goes on, rounded up; those that
        the class token attends to most in the last block, over all heads. By token: `MultiDiscrete([2] * tokens)`, for
        each token of the image, row by row, 0 drops it and 1 keeps it if it is there. The class token is always kept.
    Observation space:
        The class token, and for each token of the image how much the class token attended to it in the last block, as a
        multiple of even attention; 0 where it was dropped. The interpreter appends the position (one-hot) and, where it
        varies, the price.
    Episode end:
        After one decision for each entry of `after`.
    Cost:
        Stem and head; a block of width D with an MLP of width M costs 4TD² + 2TDM + 2T²D MACs on T tokens. To rank them
        is element-wise work and counts nothing.

    Rows with equally many tokens left run as one smaller batch of shorter sequences. Mixtures run all tokens under
    DynamicViT's attention masking; they are charged for the sum of their tokens' weights as if that were a number of
    tokens. With weights of one and zero both are the same.

    For embedded data the transformer is trained on first use with tokens left out at random.

    Arguments:
        by: What is decided, `share` or `token`.
        keep: Shares to choose among, rising, the last 1.
        after: Numbers of blocks after which is decided, rising; by default after each quarter, as EViT does thrice.
    Version history:
        v0: first.
    """

    has_masks = True
    adds_up = False
    default_data = "cluttered-digits"
    default_backbone = "vit4-w32-p3"

    def __init__(
        self, backbone: Backbone, *, by: By = "share", keep: Numbers = "0.4 0.7 1", after: Numbers | None = None
    ):
        super().__init__(backbone)
        if by not in get_args(By):
            raise ValueError(f"by: expected one of {', '.join(get_args(By))}, got {by!r}. Change it.")
        self.by, self.keep = by, read_keep(keep)
        self.layers, count = encoder_blocks(self.backbone), len(self.backbone.blocks)
        places = read_after(default_after(count) if after is None else after, count)
        self.bounds = [*places, count]
        self.tokens, width = self.backbone.blocks[0].in_shape
        self.tokens -= 1
        self.side = round(self.tokens**0.5)
        self.horizon = len(places)
        self.decisions = (len(self.keep),) if by == "share" else (2,) * self.tokens
        self.observation_shape = (width + self.tokens,)
        self.least_macs = self._least()
        self.most = [self._blocks_macs(*segment, 1 + self.tokens) for segment in pairwise(self.bounds)]

    def _least(self) -> int:
        """Return what option 0 everywhere costs."""
        left, least = self.tokens, self.backbone.stem_macs + self._blocks_macs(0, self.bounds[0], 1 + self.tokens)
        for first, last in pairwise(self.bounds):
            left = ceil(self.keep[0] * left - ROUNDING) if self.by == "share" else 0
            least += self._blocks_macs(first, last, 1 + left)
        return least + self.backbone.head_macs

    @classmethod
    def recipe(cls, data: ImageData, **options: Any) -> Mapping[str, Any]:
        """Train at full depth, with tokens left out."""
        return {"stochastic_depth": 0.0, "spare_hard": 0.0, "token_dropout": 0.5}

    @property
    def pieces(self) -> list[str]:
        names = [f"tokens after {self.backbone.blocks[count - 1].name}" for count in self.bounds[:-1]]
        if self.by == "share":
            return names
        return [f"{name}: {i // self.side},{i % self.side}" for name in names for i in range(self.tokens)]

    @property
    def rules(self) -> dict[str, list[tuple[int, ...]]]:
        """The same share at every decision, or the tokens nearest to the middle."""
        if self.by == "share":
            return {"even": [(option,) * self.horizon for option in range(len(self.keep))]}
        kept = nearest_first(self.side)
        ways = [tuple(int(i in kept[:count]) for i in range(self.tokens)) for count in range(self.tokens + 1)]
        return {"centre": [way * self.horizon for way in ways]}

    def begin(self, inputs: Tensor) -> State:
        """Run the first blocks on all tokens."""
        x, seen = self._run(self.backbone.stem(inputs), 0, self.bounds[0])
        macs = self.backbone.stem_macs + self._blocks_macs(0, self.bounds[0], 1 + self.tokens)
        return State.start(x, macs=macs, keep=torch.ones_like(seen), seen=seen)

    def observe(self, state: State) -> Tensor:
        """Return the class token, and its attention."""
        return torch.cat([state.features[:, 0], self.tokens * state.memory["seen"]], 1)

    def step(self, state: State, choice: Choice) -> State:
        """Go on with some of the tokens; answer after the last block."""
        keep, (first, last) = self._kept(state, choice), self.bounds[state.position : state.position + 2]
        if choice.gathers:
            x, seen = self._gathered(state.features, keep, first, last)
        else:
            x, seen = self._run(state.features, first, last, keep)
        left = 1 + keep.sum(1).to(cost_dtype(keep.device))
        macs = choice.charged(self._macs(left, first, last), most=self.most[state.position])
        state = state.advance(x, macs=macs, keep=keep, seen=seen)
        if state.position < self.horizon:
            return state
        return state.finish(self.backbone.head(x), macs=self.backbone.head_macs)

    def _kept(self, state: State, choice: Choice) -> Tensor:
        """Return how much of each token goes on. Shape (N, tokens)."""
        before, seen = state.memory["keep"], state.memory["seen"]
        if self.by == "token":
            return before * torch.stack([choice.part(i).weight(1) for i in range(self.tokens)], 1)
        rank = seen.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0 for the most attended
        there = before.detach().sum(1, keepdim=True)
        chosen = torch.zeros_like(before)
        for option, share in enumerate(self.keep):
            chosen = chosen + choice.weight(option).unsqueeze(1) * (rank < (share * there - ROUNDING).ceil())
        return before * chosen

    def _gathered(self, x: Tensor, keep: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Run blocks on the kept tokens only, rows with equally many together; the others stay as they are."""
        out, seen, counts = x.clone(), torch.zeros_like(keep), keep.sum(1)
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero()
            places = keep[rows[:, 0]].nonzero()[:, 1].view(len(rows), -1)
            index = F.pad(1 + places, (1, 0))  # the class token first
            out[rows, index], seen[rows, places] = self._run(x[rows, index], first, last)
        return out, seen

    def _run(self, x: Tensor, first: int, last: int, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run blocks; return tokens, and the class token's attention to the others, 0 where nobody will ask."""
        keep = None if keep is None else F.pad(keep, (1, 0), value=1.0)
        seen = x.new_zeros(x.shape[:2])
        for index in range(first, last):
            shown = index == last - 1 < len(self.layers) - 1
            x, shares = run_tokens(self.layers[index], x, keep, shown=shown)
            seen = shares if shown and shares is not None else seen
        return x, seen[:, 1:]

    def _macs(self, tokens: Tensor, first: int, last: int) -> Tensor:
        """Return what blocks cost on so many tokens of each row. Shape (N,) to (N,)."""
        costs = [token_macs(block, tokens) for block in self.layers[first:last]]
        return torch.stack(costs).sum(0)

    def _blocks_macs(self, first: int, last: int, tokens: int) -> int:
        return int(self._macs(torch.tensor([tokens], dtype=torch.double), first, last))

    @torch.inference_mode()
    def masks(self, image: Tensor, actions: Sequence[int]) -> dict[str, Tensor]:
        """Return which tokens went on, after each decision."""
        state, found = self.begin(self.prepare(image.unsqueeze(0))), {}
        table = torch.tensor(actions, device=self.device).view(1, self.horizon, -1)
        for position, count in enumerate(self.bounds[:-1]):
            decided = table[:, position]
            state = self.step(state, Hard(decided[:, 0] if self.by == "share" else decided))
            found[f"after block {count}"] = state.memory["keep"].view(self.side, self.side)
        return found

    def executed(
        self, image: Tensor, actions: Sequence[int], *, places: Tensor | None = None, frames: Sequence[int] = ()
    ) -> list[str]:
        """Return how many tokens went on, or which."""
        if self.by == "token":
            return super().executed(image, actions)
        return [
            f"{int(mask.sum())} of {self.tokens} tokens {name}" for name, mask in self.masks(image, actions).items()
        ]


ROUNDING = 1e-4
"""A share of a number of tokens may come out above a whole number by that."""


def nearest_first(side: int) -> list[int]:
    """Return the numbers of a square raster's places, row by row, by their distance from its middle."""
    middle = (side - 1) / 2
    return sorted(range(side**2), key=lambda i: ((i // side - middle) ** 2 + (i % side - middle) ** 2, i))


def default_after(blocks: int) -> list[int]:
    """Return the numbers of blocks after the first three quarters."""
    return sorted({max(1, blocks * quarter // 4) for quarter in (1, 2, 3)} - {blocks})


def read_keep(keep: Numbers) -> tuple[float, ...]:
    """Return shares as numbers: given as such, or as the command line has them, "0.4 0.7 1".

    Raises:
        ValueError: If they are not two or more, rising from above 0 to 1.
    """
    found = _numbers("keep", keep)
    if len(found) < 2 or found != sorted(set(found)) or not found[0] > 0 or found[-1] != 1:
        raise ValueError(f'keep: expected two or more shares, rising from above 0 to 1, got {keep!r}. Try "0.4 0.7 1".')
    return tuple(found)


def read_after(after: Numbers, blocks: int) -> list[int]:
    """Return numbers of blocks: given as such, or as the command line has them, "3 6 9".

    Raises:
        ValueError: If they do not rise within the network.
    """
    found = _numbers("after", after)
    if not found or found != sorted(set(found)) or any(one not in range(1, blocks) for one in found):
        raise ValueError(
            f"after: expected numbers of blocks, rising within 1 … {blocks - 1}, got {after!r}. "
            f'Try "{" ".join(map(str, default_after(blocks)))}".'
        )
    return [int(one) for one in found]


def _numbers(name: str, given: Numbers) -> list[float]:
    words = given.replace(",", " ").split() if isinstance(given, str) else given
    try:
        return [float(word) for word in (words if isinstance(words, Sequence) else [words])]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, got {given!r}. Mend it.") from error
