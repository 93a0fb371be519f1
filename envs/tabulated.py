"""A task that looks up what its images would show: every way through was computed once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .choice import Choice
from .state import State, merge
from .task import Box, Task
from .tree import Tree


class Tabulated(Task):
    """A task whose outcomes stand in a table, for the images that the table holds.

    It takes tickets for images: the number of a table's row as 8 bytes, an image of 1 x 1 x 8. What it shows, answers
    and charges is what the live task would, to the last bit that was computed; a controller that is saved with it is
    the live task's.

    Actions can always be looked up. Mixtures of options can where of a decision's options at most one goes on (exits,
    a single decision), since then answers alone are mixed; elsewhere features would be, which no table holds.

    Args:
        live: The task that was tabulated.
        tree: Of its decisions.
        rows: A row for each image, as `Seen.flat` gives it; may be a memory-mapped file. Shape (N, width).
        images: The originals, uint8. Shape (M, C, H, W), or of clips (M, T, C, H, W).
        source: Which of `images` a row was made of. Shape (N,).
    """

    def __init__(self, live: Task, tree: Tree, rows: Tensor, images: Tensor, source: Tensor):
        super().__init__(live.backbone)
        self.live, self.tree, self.images, self.source = live, tree, images, source
        self.name, self.options, self.has_exits = live.name, live.options, live.has_exits
        self.horizon, self.decisions = live.horizon, live.decisions
        self.observation_shape, self.least_macs = live.observation_shape, live.least_macs
        self.alike, self.reaches_full = live.alike, live.reaches_full
        nodes = len(tree.positions)
        shown = nodes * torch.Size(live.observation_shape).numel()
        self.observations = rows[:, :shown].unflatten(1, (nodes, *live.observation_shape))
        self.answers = rows[:, shown:].unflatten(1, (tree.answers, live.backbone.num_classes))
        self.leads, self.macs = tree.children.to(self.device), tree.macs.to(self.device)
        self.positions = tree.positions.to(self.device)
        self.is_comb = tree.is_comb

    @property
    def full_macs(self) -> int:
        return self.live.full_macs

    @property
    def most_macs(self) -> int:
        return self.live.most_macs

    @property
    def paths(self) -> list[tuple[int, ...]] | None:
        return self.live.paths

    @property
    def pieces(self) -> list[str]:
        return self.live.pieces

    @property
    def onward(self) -> tuple[int, ...]:
        return self.live.onward

    @property
    def rules(self) -> Mapping[str, Sequence[tuple[int, ...]]]:
        return self.live.rules

    def region(self, piece: int, option: int) -> Box | None:
        return self.live.region(piece, option)

    def regions(self, actions: Sequence[int]) -> list[Box]:
        return self.live.regions(actions)

    def prepare(self, images: Tensor) -> Tensor:
        """Return the row numbers that tickets name. Shape (N, 1, 1, 8) to (N,)."""
        return images.contiguous().view(torch.int64).flatten()

    def check_images(self, images: Tensor) -> None:
        """Raise a ValueError unless these are tickets of this table."""
        if images.dtype != torch.uint8 or images.shape[1:] != (1, 1, 8):
            raise ValueError(
                f"images: expected tickets of a table, uint8 of 1 x 1 x 8, got {images.dtype} of "
                f"{' x '.join(map(str, images.shape[1:]))}. For other images load the controller that was saved."
            )

    def blank(self) -> Tensor:
        return tickets(torch.zeros(1, dtype=torch.long))

    def pictures(self, images: Tensor) -> Tensor:
        return self.live.pictures(self.images[self.source[self.prepare(images).cpu()]])

    def untouched(self, images: Tensor) -> Tensor:
        return self._look(self.answers, self.prepare(images), self.tree.untouched)

    def begin(self, inputs: Tensor) -> State:
        """Return the root, for row numbers. Shape (N,)."""
        inputs = inputs.to(self.device)
        return State.start(inputs, macs=self.tree.begun, node=torch.zeros_like(inputs))

    def observe(self, state: State) -> Tensor:
        """Return what the live task showed there."""
        return self._look(self.observations, state.features, state.memory["node"])

    def answer_now(self, state: State) -> Tensor:
        """Return the answer of option 0, which every task with exits answers with."""
        return self._look(self.answers, state.features, -1 - self.leads[state.memory["node"], 0])

    def step(self, state: State, choice: Choice) -> State | list[State]:
        """Go where the choice leads."""
        return self._mix(state, choice) if self.is_comb and len(self.decisions) == 1 else self._pick(state, choice)

    def _mix(self, state: State, choice: Choice) -> State:
        """Let the options that answer do so by their weights; the rest goes on where the other leads."""
        node = int(state.memory["node"][0]) if len(state) else 0  # all rows stand at the same one: it is a comb
        children = self.leads[node].tolist()
        answering = [option for option, child in enumerate(children) if child < 0]
        weights = torch.stack([choice.weight(option) for option in answering], 1)
        answers = self._look(self.answers, state.features, [-1 - children[option] for option in answering])
        on = [child for child in children if child >= 0]
        state = state.advance(
            state.features,
            macs=choice.cost(self.macs[node].tolist()),
            position=int(self.positions[on[0]]) if on else self.horizon,
            node=torch.full_like(state.features, on[0] if on else node),
        )
        if len(answering) == 1:
            return state.finish(answers[:, 0], when=weights[:, 0])
        share = weights.sum(1, keepdim=True)
        mixed = (weights.unsqueeze(2) * answers).sum(1) / share.clamp(min=1e-12)
        return state.finish(mixed, when=share[:, 0] if on else 1.0)  # nothing of anybody is left: a sum may fall short

    def _pick(self, state: State, choice: Choice) -> list[State]:
        """Go where actions lead, each row its own way."""
        node, option = state.memory["node"], self._option(choice)
        child = self.leads[node, option]
        leaf = child < 0
        answer = self._look(self.answers, state.features, (-1 - child).clamp(min=0))
        at = child.clamp(min=0)
        state = state.advance(state.features, macs=self.macs[node, option].to(state.macs), node=at)
        state = state.finish(answer, when=leaf.to(state.alive))
        here = self.positions[at]
        groups = [(int(one), here == one) for one in here.unique()]
        return merge(state.select(mask).advance(state.features[mask], macs=0, position=one) for one, mask in groups)

    def _option(self, choice: Choice) -> Tensor:
        """Return the number of the option that each row takes. Shape (N,).

        Raises:
            TypeError: If the choice mixes options.
        """
        number = torch.zeros((), dtype=torch.long, device=self.device)
        for index, count in enumerate(self.decisions):
            part = choice if len(self.decisions) == 1 else choice.part(index)
            weights = torch.stack([part.weight(option) for option in range(count)], 1)
            if weights.requires_grad or bool((weights.amax(1) != 1).any()):
                raise TypeError(
                    f"table: expected actions, got mixtures, which {self.name} makes of features that no table holds. "
                    "Train it live (--table 0), or with a learner that samples: ppo, reinforce."
                )
            number = number * count + weights.argmax(1)
        return number

    def _look(self, column: Tensor, rows: Tensor, index: Tensor | list[int] | int) -> Tensor:
        """Return entries of the table, on the task's device."""
        if isinstance(index, list):
            return column[rows.cpu()][:, index].to(self.device)
        place = index.cpu() if isinstance(index, Tensor) else index
        return column[rows.cpu(), place].to(self.device)


def tickets(numbers: Tensor) -> Tensor:
    """Return row numbers as images. Shape (N,), int64, to (N, 1, 1, 8), uint8."""
    return numbers.contiguous().view(torch.uint8).view(-1, 1, 1, 8)
