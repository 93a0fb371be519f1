"""Two runs of each input, one drawn and one greedy, as one batch: what both do alike is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backbones.routing import room
from ..envs.choice import Hard, cost_dtype
from ..envs.rollout import Run, advance
from ..envs.state import State, merge
from ..envs.task import Task
from ..envs.view import View
from .gate import Gate
from .policy import check_logits, greedy


def bounded(probabilities: Tensor, bound: float) -> Tensor:
    """Pull probabilities in, so that every option keeps being tried. Shape (..., A); for A = 2 as in BlockDrop."""
    return bound * probabilities + (1 - bound) * (1 - probabilities) / (probabilities.shape[-1] - 1)


@dataclass(frozen=True)
class Draws:
    """M decisions that were drawn for N inputs, as a gradient needs them.

    Attributes:
        observations: What the gate saw. Shape (M, ...).
        rows: For which input. Shape (M,).
        actions: What was drawn. Shape (M, parts).
        free: 1 where it was drawn, 0 where it was forced. Shape (M, parts).
        places: Where, as drawn, if decisions have a place; else nothing. Shape (M, coordinates).
        count: N.
    """

    observations: Tensor
    rows: Tensor
    actions: Tensor
    free: Tensor
    places: Tensor
    count: int

    def judged(self, gate: Gate, bound: float, spread: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the logarithm of how likely an input's draws were, and their entropy; with gradients. Each (N,).

        Of places it is the density, without its constant; their entropy is constant, and left out. `spread` as drawn.
        """
        logits, means = gate.split(gate(self.observations)[0])
        parts = by_part(logits, gate.decisions)
        probabilities = [bounded(part.softmax(2), bound) for part in parts]
        actions = self.actions.split([part.shape[1] for part in parts], 1)
        pairs = list(zip(probabilities, actions, strict=True))
        logs = [part.gather(2, taken.unsqueeze(2))[:, :, 0].log() for part, taken in pairs]
        entropies = [-(part * part.log()).sum(2) for part in probabilities]
        if means is not None:  # a decision of one part, whose place matters where it looks
            density = -((self.places - means) / spread).square().sum(1, keepdim=True) / 2
            logs = [logs[0] + (self.actions > 0) * density]
        return self._summed(logs), self._summed(entropies)

    def _summed(self, parts: Sequence[Tensor]) -> Tensor:
        """Add up what was free, for each input."""
        each = (torch.cat(list(parts), 1) * self.free).sum(1)
        return each.new_zeros(self.count).index_add(0, self.rows, each)


@dataclass(frozen=True)
class Pair:
    """What became of N inputs, twice.

    Attributes:
        drawn: As sampled.
        greedy: As the likeliest options lead.
        draws: Of the first.
        spent: On both together, what they share once, in MACs. Shape (N,).
    """

    drawn: Run
    greedy: Run
    draws: Draws
    spent: Tensor


def by_part(logits: Tensor, decisions: Sequence[int]) -> list[Tensor]:
    """Return logits part by part, in as few pieces as can be. Shape (N, sum of decisions) to (N, parts, options) each.

    Args:
        logits: Of all parts, side by side.
        decisions: Options of each part.
    """
    if len(set(decisions)) == 1:
        return [logits.unflatten(1, (len(decisions), decisions[0]))]
    return [part.unsqueeze(1) for part in logits.split(list(decisions), 1)]


class Twins:
    """Decides for a batch in which row i is input i as drawn, and row N + i the same as greedy, once they differ.

    Args:
        task: What is decided.
        gate: Decides.
        price: Shown to it. Shape (N,).
        bound: See `bounded`.
        forced: So many pieces from the first on are always executed, by both.
        generator: Of the draws.
        spread: Standard deviation of places around the gate's.
    """

    def __init__(
        self,
        task: Task,
        gate: Gate,
        price: Tensor,
        *,
        bound: float,
        forced: int,
        generator: torch.Generator,
        spread: float = 0.0,
    ):
        self.task, self.gate, self.bound, self.forced, self.generator = task, gate, bound, forced, generator
        self.spread = spread
        self.count, self.price = len(price), price.repeat(2)
        self.onward = torch.tensor(task.onward, device=price.device)
        self.free = torch.arange(len(task.pieces), device=price.device) >= forced
        self.view = View(task, 2 * self.count)
        self.actions = torch.full((2 * self.count, len(task.pieces)), -1, device=price.device)
        self.places = price.new_zeros((2 * self.count, task.horizon, task.coordinates))
        self.parted = torch.zeros(self.count, dtype=torch.bool, device=price.device)
        self.shared = torch.zeros_like(price, dtype=cost_dtype(price.device))
        self.kept: list[tuple[Tensor, ...]] = []
        self.room: Tensor | None = None

    def decide(self, state: State) -> State:
        """Decide for a cohort, and return it with the rows added that part from their twins here."""
        parts = len(self.task.decisions)
        here = slice(state.position * parts, (state.position + 1) * parts)
        if here.stop <= self.forced:
            self.actions[state.rows, here] = self.onward[here]
            return state
        seen, price, free = self.view.look(state), self.price[state.rows], self.free[here]
        outputs, _ = self.gate.at(state.position, seen, price)
        check_logits(outputs)
        logits, place = self.gate.split(outputs)
        mine = (state.rows < self.count).nonzero()[:, 0]
        best, drawn = greedy(logits, self.gate.decisions, alike=self.gate.alike), self._draw(logits[mine])
        if here.start < self.forced:
            best, drawn = (torch.where(free, taken, self.onward[here]) for taken in (best, drawn))
        rows = state.rows[mine]
        observations = self.gate.layout.join(seen[mine], state.position, price[mine])
        where = self._place(state, place, mine)
        self.kept.append((observations, rows, drawn, free.expand_as(drawn), where))
        differs = (drawn != best[mine]).any(1) if place is None else (drawn + best[mine] > 0).any(1)
        self.actions[state.rows, here] = best
        state = self._part(state, mine[differs & ~self.parted[rows]])
        self.actions[rows, here], self.places[rows, state.position] = drawn, where.clamp(-1, 1)
        return state

    def choice(self, state: State) -> Hard:
        """Return what was decided for a cohort."""
        parts = len(self.task.decisions)
        first = state.position * parts
        choice = self.task.choice(self.actions[state.rows, first : first + parts])
        if self.task.coordinates and first >= self.forced:
            choice = choice.placed(self.places[state.rows, state.position])
        self.view.decided(state, choice)
        return choice

    def pair(self, answered: Sequence[State]) -> Pair:
        """Return what became of all, given the rows that have answered."""
        rows = torch.cat([state.rows for state in answered])
        place = torch.arange(2 * self.count, device=rows.device)
        place[self.count :][~self.parted] -= self.count  # who never parted has gone the same way
        order = torch.empty_like(place)
        order[rows] = torch.arange(len(rows), device=rows.device)
        order = order[place]
        logits = torch.cat([state.answer for state in answered if state.answer is not None])[order]
        macs, actions = torch.cat([state.macs for state in answered])[order], self.actions[place]
        halves = zip(*(one.split(self.count) for one in (logits, macs, actions)), strict=True)
        first, second = (Run(*half) for half in halves)
        spent = first.macs + torch.where(self.parted, second.macs - self.shared, 0)
        draws = Draws(*(torch.cat(column) for column in zip(*self.kept, strict=True)), count=self.count)
        return Pair(first, second, draws, spent)

    def _draw(self, logits: Tensor) -> Tensor:
        """Draw an option of each part. Shape (N, sum of decisions) to (N, parts)."""
        drawn = []
        for part in by_part(logits, self.gate.decisions):
            likely = bounded(part.softmax(2), self.bound).flatten(0, 1)
            drawn.append(torch.multinomial(likely, 1, generator=self.generator).view(part.shape[:2]))
        return torch.cat(drawn, 1)

    def _place(self, state: State, place: Tensor | None, mine: Tensor) -> Tensor:
        """Keep where the gate would look, and draw places around that for some rows. Shape (M, coordinates)."""
        if place is None:
            return self.places[mine, 0]
        self.places[state.rows, state.position] = place
        noise = torch.randn(place[mine].shape, generator=self.generator, device=place.device)
        return place[mine] + self.spread * noise

    def _part(self, state: State, index: Tensor) -> State:
        """Add the greedy twins of some rows, which have gone the same way so far."""
        if not len(index):
            return state
        old = state.select(index)
        new = replace(old, rows=old.rows + self.count)
        self.parted[old.rows], self.shared[old.rows] = True, old.macs
        self.actions[new.rows], self.places[new.rows] = self.actions[old.rows], self.places[old.rows]
        self.view.copy(old.rows, new.rows)
        return self._join(state, new)

    def _join(self, state: State, new: State) -> State:
        """Return both as one cohort. Features get room for all twins to come: those that stay are copied once."""
        count, both, features = len(state), len(state) + len(new), state.features
        if self.room is None or self.room.data_ptr() != features.data_ptr():
            self.room = room(features, 2 * self.count)
            self.room[:count] = features
        self.room[count:both] = new.features
        (joined,) = merge([replace(one, features=one.rows) for one in (state, new)])
        return replace(joined, features=self.room[:both])


@torch.no_grad()
def follow_both(
    task: Task,
    start: State,
    gate: Gate,
    price: Tensor,
    *,
    bound: float,
    forced: int,
    generator: torch.Generator,
    spread: float = 0.0,
) -> Pair:
    """Run inputs from a state before the first decision, as drawn from a gate and as it likes best.

    Args:
        task: What is decided.
        start: Its features may be overwritten.
        gate: Decides; it remembers nothing from one decision to the next.
        price: Shown to it. Shape (N,).
        bound: See `bounded`.
        forced: So many pieces from the first on are always executed; not all.
        generator: Of the draws.
        spread: Standard deviation of places around the gate's, where decisions have a place.
    """
    twins = Twins(task, gate, price, bound=bound, forced=forced, generator=generator, spread=spread)
    cohorts, answered = [start], []
    while cohorts:
        cohorts, done = advance(task, [twins.decide(state) for state in cohorts], twins.choice, spare=True)
        answered += done
    return twins.pair(answered)
