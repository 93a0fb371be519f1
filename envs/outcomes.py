"""What would have come of it: the outcome of every input under each of many paths, prefixes shared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from math import comb

import torch
from torch import Tensor
from tqdm import tqdm

from ..backbones.routing import Branch
from .choice import Hard
from .rollout import Decide, follow
from .state import State
from .task import Task

Path = tuple[int, ...]


@dataclass
class Memo:
    """What the last path computed: for each use of a piece input, option, output; and the MACs that reuse saved."""

    last: dict[tuple[str, int], tuple[Tensor, int, Tensor]] = field(default_factory=dict)
    saved: float = 0.0


class Shared(Hard):
    """The same options for all rows; what an earlier path computed from the same tensor is reused.

    Args:
        options: One for each part of this decision.
        count: Number of rows.
        memo: Shared by all paths of one batch.
        first: Number of the decision's first piece.
        device: Of the rows.
        view: Tells apart several choices about one piece.
    """

    def __init__(self, options: Path, count: int, memo: Memo, first: int, device: torch.device, *, view: str = ""):
        actions = torch.tensor(options, device=device).expand(count, -1)
        super().__init__(actions.squeeze(1) if len(options) == 1 else actions)
        self.options, self.count, self.memo, self.first, self.device = options, count, memo, first, device
        self.key, self.reused, self.uses = f"{view}{first}", False, 0
        self.parts: dict[int, Shared] = {}

    def among(self, branches: Sequence[Branch], x: Tensor) -> Tensor:
        """Run the chosen branch on all rows, unless the last path through here did the same."""
        return self._once(branches[self.options[0]], x)

    def only(self, option: int, branch: Branch, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Likewise, where the option was chosen; else nothing runs."""
        if self.options[0] != option:
            return x.new_zeros((len(x), *shape))
        return self._once(branch, x)

    def _once(self, branch: Branch, x: Tensor) -> Tensor:
        use = self.key, self.uses  # the same tensor may come again, unchanged by an identity, for other branches
        self.uses += 1
        last = self.memo.last.get(use)
        self.reused = last is not None and last[0] is x and last[1] == self.options[0]
        if last is not None and self.reused:
            return last[2]
        out = branch(x)
        self.memo.last[use] = (x, self.options[0], out)
        return out

    def cost(self, costs: Sequence[float]) -> Tensor:
        """Return what the option costs, and keep account of what was not spent."""
        if self.reused:
            self.memo.saved += costs[self.options[0]] * self.count
        return super().cost(costs)

    def part(self, index: int) -> "Shared":
        """Return the option of one part."""
        if index not in self.parts:
            option = (self.options[index],)
            self.parts[index] = Shared(option, self.count, self.memo, self.first + index, self.device)
        return self.parts[index]

    def within(self, place: Tensor, options: int) -> "Shared":
        """Return the option at the place where all rows stand."""
        option = int(place[0].argmax()) * options + self.options[0]
        return Shared((option,), self.count, self.memo, self.first, self.device, view="within ")

    def in_place(self) -> "Shared":
        """Return itself: nothing is overwritten, since a later path may begin with it."""
        return self

    def merged(self, groups: Sequence[int]) -> "Shared":
        """Return the group of the option, for all rows."""
        view = f"merged into {max(groups)} "
        return Shared((groups[self.options[0]],), self.count, self.memo, self.first, self.device, view=view)


@dataclass(frozen=True)
class Outcomes:
    """What became of N inputs under P paths.

    Attributes:
        correct: Whether the answer was right. Shape (N, P).
        probability: Of the right class. Shape (N, P).
        answers: The class that was answered. Shape (N, P), the smallest integers that hold it.
        macs: Cost of each path, policy aside. Shape (P,).
        spent: MACs that making the table took.
    """

    correct: Tensor
    probability: Tensor
    answers: Tensor
    macs: Tensor
    spent: float


@torch.no_grad()
def outcomes(task: Task, images: Tensor, labels: Tensor, paths: Sequence[Path], *, quiet: bool = True) -> Outcomes:
    """Follow every path with every image.

    Paths are followed in lexicographic order, so that each shares its beginning with the one before.

    Args:
        task: One in which all rows stay together while they choose alike.
        images: Shape (N, C, H, W), uint8 or floats in 0…1.
        labels: Shape (N,).
        paths: One option for each of the task's pieces.
        quiet: Whether to draw no progress bar.
    """
    start = task.begin(task.prepare(images))
    found = outcomes_from(task, start, labels, paths, quiet=quiet)
    return replace(found, spent=found.spent + float(start.macs.sum()))


@torch.no_grad()
def outcomes_from(task: Task, start: State, labels: Tensor, paths: Sequence[Path], *, quiet: bool = True) -> Outcomes:
    """Follow every path from a state before the first decision; what was spent until there is not spent again."""
    labels, memo, parts = labels.to(task.device), Memo(), len(task.decisions)
    correct = torch.empty((len(start), len(paths)), dtype=torch.bool, device=task.device)
    probability = torch.empty((len(start), len(paths)), device=task.device)
    answers = torch.empty((len(start), len(paths)), dtype=_small(task.backbone.num_classes), device=task.device)
    macs = torch.empty(len(paths), dtype=start.macs.dtype, device=task.device)
    order = sorted(range(len(paths)), key=lambda i: paths[i])
    for index in tqdm(order, desc="paths", unit="path", disable=quiet, leave=False):
        run = follow(task, start, _replay(paths[index], parts, memo))
        answers[:, index] = answer = run.logits.argmax(1)
        correct[:, index] = answer == labels
        probability[:, index] = run.logits.softmax(1).gather(1, labels.unsqueeze(1))[:, 0]
        macs[index] = run.macs[0]
    spent = float(macs.sum()) * len(start) - float(start.macs.sum()) * len(paths) - memo.saved
    return Outcomes(correct, probability, answers, macs, spent)


def _small(classes: int) -> torch.dtype:
    """Return integers that hold a class: tables are large."""
    return torch.uint8 if classes <= 256 else torch.int16 if classes <= 32768 else torch.int32


def _replay(path: Path, parts: int, memo: Memo) -> Decide:
    def decide(state: State) -> Shared:
        first = state.position * parts
        return Shared(path[first : first + parts], len(state), memo, first, state.rows.device)

    return decide


def candidate_paths(pieces: int, limit: int) -> list[Path]:
    """Return paths of binary pieces worth trying, at most `limit`.

    All 2^pieces where that many are allowed. Otherwise those that leave out at most two pieces, and those that execute
    at most k, for the largest k that fits.
    """
    if pieces < 20 and 2**pieces <= limit:
        return list(product((0, 1), repeat=pieces))
    paths = {path for left in range(3) for path in _with_kept(pieces, pieces - left)}
    for count in range(pieces - 2):
        if len(paths) + comb(pieces, count) > limit:
            break
        paths |= set(_with_kept(pieces, count))
    return sorted(paths)


def looking_paths(others: int, horizon: int, limit: int) -> tuple[list[Path], bool]:
    """Return the paths on which option 0 ends all, and whether these are all of them.

    Args:
        others: Options of a decision beside 0.
        horizon: Number of decisions at most.
        limit: Where more paths would come, the longest are left out.
    """
    longest = next((n - 1 for n in range(1, horizon + 1) if sum(others**i for i in range(n + 1)) > limit), horizon)
    paths = [
        (*taken, *(0,) * (horizon - length))
        for length in range(longest + 1)
        for taken in product(range(1, others + 1), repeat=length)
    ]
    return paths, longest == horizon


def _with_kept(pieces: int, count: int) -> Iterator[Path]:
    """Yield the paths with exactly `count` pieces executed."""
    for kept in combinations(range(pieces), count):
        yield tuple(int(i in kept) for i in range(pieces))
