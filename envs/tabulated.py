"""A task that looks up what its images would show: every way through was computed once."""

from typing import Any

import torch
from torch import Tensor

from .choice import Choice
from .recorded import Column, Record, Recorded
from .state import State
from .task import Task
from .tree import Tree, explore


class Tabulated(Recorded):
    """A task whose outcomes stand in a table, for the images that the table holds.

    What it shows, answers and charges is what the live task would, to the last bit that was computed.

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
        super().__init__(live, images, source)
        self.tree = tree
        shown = len(tree.positions) * torch.Size(live.observation_shape).numel()
        self.observations = Column(rows, 0, live.observation_shape)
        self.answers = Column(rows, shown, (live.backbone.num_classes,))
        self.leads, self.macs = tree.children.to(self.device), tree.macs.to(self.device)
        self.positions = tree.positions.to(self.device)
        self.ahead = tree.ahead()
        self.is_comb = tree.is_comb

    def untouched(self, images: Tensor) -> Tensor:
        rows = self.prepare(images)
        return self.answers.look(rows, torch.full_like(rows, self.tree.untouched))

    def begin(self, inputs: Tensor) -> State:
        """Return the root, for row numbers. Shape (N,)."""
        inputs = inputs.to(self.device)
        return State.start(inputs, macs=self.tree.begun, node=torch.zeros_like(inputs))

    def observe(self, state: State) -> Tensor:
        """Return what the live task showed there."""
        return self.observations.look(state.features, state.memory["node"])

    def answer_now(self, state: State) -> Tensor:
        """Return the answer of option 0, which every task with exits answers with."""
        return self.answers.look(state.features, -1 - self.leads[state.memory["node"], 0])

    def step(self, state: State, choice: Choice) -> State | list[State]:
        """Go where the choice leads."""
        return self._mix(state, choice) if self.is_comb and len(self.decisions) == 1 else self._pick(state, choice)

    def _mix(self, state: State, choice: Choice) -> State:
        """Let the options that answer do so by their weights; the rest goes on where the other leads."""
        node = int(state.memory["node"][0]) if len(state) else 0  # all rows stand at the same one: it is a comb
        children = self.leads[node].tolist()
        answering = [option for option, child in enumerate(children) if child < 0]
        weights = torch.stack([choice.weight(option) for option in answering], 1)
        leaves = [torch.full_like(state.features, -1 - children[option]) for option in answering]
        answers = torch.stack([self.answers.look(state.features, leaf) for leaf in leaves], 1)
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

    def _pick(self, state: State, choice: Choice) -> State | list[State]:
        """Go where actions lead, each row its own way."""
        way = state.memory["node"] * self.leads.shape[1] + self._option(choice)
        child, macs = self.leads.view(-1)[way], self.macs.view(-1)[way].to(state.macs)
        positions, answering = self.ahead[state.position]
        if not answering and len(positions) == 1:
            return state.advance(state.features, macs=macs, position=positions[0], node=child)
        state = state.advance(state.features, macs=macs, node=child)
        if not positions:
            return state.finish(self.answers.look(state.features, -1 - child))
        leaf = child < 0
        here = self.positions[child.clamp(min=0)]
        answered = state.select(leaf)
        answered = answered.finish(self.answers.look(answered.features, -1 - answered.memory["node"]))
        onward = [state.select(~leaf & (here == one)) for one in positions]
        return [
            answered,
            *(one.advance(one.features, macs=0, position=at) for one, at in zip(onward, positions, strict=True)),
        ]

    def _option(self, choice: Choice) -> Tensor:
        """Return the number of the option that each row takes. Shape (N,).

        Raises:
            TypeError: If the choice mixes options.
        """
        parts = [choice] if len(self.decisions) == 1 else [choice.part(index) for index in range(len(self.decisions))]
        number = None
        for part, count in zip(parts, self.decisions, strict=True):
            taken = part.taken(count)
            if taken is None:
                raise TypeError(
                    f"table: expected actions, got mixtures, which {self.name} makes of features that no table holds. "
                    "Train it live (--table 0), or with a learner that samples: ppo, reinforce."
                )
            number = taken if number is None else number * count + taken
        assert number is not None
        return number


class Ways(Record):
    """Of each image what it shows and is answered on every way through."""

    def __init__(self, task: Task):
        self.task, probe = task, explore(task, task.blank())
        self.tree, self.width = probe.tree, probe.flat().shape[1]

    @property
    def page(self) -> dict[str, Any]:
        return {"tree": self.tree.as_json()}

    def describe(self) -> str:
        return f"{self.tree.leaves:,} ways through"

    def rows(self, images: Tensor) -> Tensor:
        """Return what images show and are answered.

        Raises:
            ValueError: If they have other ways through than the blank one.
        """
        seen = explore(self.task, images)
        if seen.tree.as_json() != self.tree.as_json():
            raise ValueError(
                f"table: expected every image to have the same ways through {self.task.name} at the same cost, got "
                "others. Run it live (--table 0)."
            )
        return seen.flat()

    def open(self, rows: Tensor, images: Tensor, source: Tensor) -> Tabulated:
        return Tabulated(self.task, self.tree, rows, images, source)
