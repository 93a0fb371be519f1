"""Look at pieces of an input until enough was seen: what looking at places and looking at frames share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.reader import SHAPES, Reader, check_asked
from ..backbones.reader_training import crop_features
from ..data import ImageData
from .choice import Branch, Choice
from .exit_task import SIGNS, signs
from .outcomes import looking_paths
from .recorded import Record
from .state import State
from .task import Task

FLAGS = {"crops": "--glance … --patch …", "frames": "--moments … --preview …"}
"""How a reader of each kind is asked for where it is trained."""


class Looking(Task):
    """Before each look: answer now, or look at one of several pieces, which a reader remembers.

    The episode, whether pieces run through the network or were encoded before: a subclass says what a look makes of
    rows of memory and logits (`glimpse`).

    Attributes:
        look_macs: Cost of one look, in MACs of one input; the dearest where they differ.
        look_costs: Of each piece.
        shown_size: How many numbers the policy is shown of what is there at first.
        signs_only: Whether the policy sees nothing of what is there at first, nor of the reader's memory.
        reader: Remembers, and answers.
    """

    has_exits = True
    alike = True
    reaches_full = False
    signs_only = False
    look_costs: Sequence[int]

    @property
    def look_macs(self) -> int:
        return max(self.look_costs)

    @property
    @abstractmethod
    def reader(self) -> Reader: ...

    @property
    def looked_size(self) -> int:
        """How many numbers the policy is shown of where was looked."""
        return self.coordinates or self.decisions[0] - 1

    def set_decisions(self, looks: int, *, options: int, source: int, shown: int) -> None:
        """Take what a decision is, and from this what a row holds and what the policy sees.

        Args:
            looks: At most.
            options: Pieces to choose among.
            source: Numbers of what pieces are cut out of.
            shown: How many numbers of `start`'s `shown` the policy sees.
        """
        self.horizon, self.decisions, self.shown_size = looks, (1 + options,), 0 if self.signs_only else shown
        self.row_sizes = [source, self.reader.memory_size, self.backbone.num_classes]
        details = 0 if self.signs_only else self.reader.shown_size + shown
        self.observation_shape = (SIGNS + self.looked_size + details,)

    @abstractmethod
    def glimpse(self, state: State, choice: Choice, onward: Choice) -> Tensor:
        """Return rows after the look that each row chose. Shape (N, *), as `State.features`.

        Args:
            state: Before it.
            choice: Among answering now and the pieces.
            onward: Whether it is any of the pieces.
        """

    def start(self, source: Tensor, sight: Tensor, shown: Tensor, **memory: Tensor) -> State:
        """Return the state before the first look.

        Args:
            source: What pieces are cut out of. Shape (N, *source).
            sight: What the reader remembers first, and answers from. Shape (N, sight_size).
            shown: What the policy sees of it. Shape (N, shown_size).
            memory: What else rows carry along.
        """
        seen = self.reader.remember(None, sight)
        logits = self.reader.answer(seen)
        return State.start(
            torch.cat([source.flatten(1), seen, logits], 1),
            macs=self.least_macs,
            votes=torch.zeros_like(logits),
            looked=logits.new_zeros((source.shape[0], self.looked_size)),
            shown=shown,
            **memory,
        )

    def answer_now(self, state: State) -> Tensor:
        """Return the logits of the last look."""
        return self.parts(state.features)[2]

    def observe(self, state: State) -> Tensor:
        """Return what the answer looks like, what is remembered, where was looked, and what was shown at first."""
        _, memory, logits = self.parts(state.features)
        seen = signs(logits, state.memory["votes"], state.position)
        if self.signs_only:
            return torch.cat([seen, state.memory["looked"]], 1)
        memory = self.reader.shown(memory, logits)
        return torch.cat([seen, memory, state.memory["looked"], state.memory["shown"]], 1)

    def step(self, state: State, choice: Choice) -> State:
        """Let rows leave with the answer that they have, and look where the others choose."""
        before, onward = self.answer_now(state), choice.merged([0, *(1 for _ in self.look_costs)])
        cheap = min(self.look_costs) < self.look_macs
        state = state.advance(
            self.glimpse(state, choice, onward),
            macs=choice.cost([0, *self.look_costs]) if cheap else onward.cost([0, self.look_macs]),
            votes=state.memory["votes"] + F.one_hot(before.argmax(1), before.shape[1]),
            looked=self.looked(state, choice),
        )
        state = state.finish(before, when=choice.weight(0))
        return state if state.position < self.horizon else state.finish(self.answer_now(state))

    def looked(self, state: State, choice: Choice) -> Tensor:
        """Return how often was looked at each piece, as the policy sees it after a choice. Shape (N, looked_size)."""
        taken = torch.stack([choice.weight(option) for option in range(1, self.decisions[0])], 1)
        return state.memory["looked"] + taken

    def _recall(self, onward: Choice, sight: Tensor, rows: Tensor) -> Tensor:
        """Return what rows are after a sight of those that look. Shapes (N, sight_size), (N, *) to (N, *)."""
        return onward.only(1, self._remember, torch.cat([sight, rows], 1), (sum(self.row_sizes),))

    def _remember(self, seen: Tensor) -> Tensor:
        sight, rows = seen.split([self.reader.sight_size, sum(self.row_sizes)], 1)
        return self.remembered(rows, sight)

    def parts(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what pieces are cut out of as flat rows, the reader's memory, and logits."""
        source, memory, logits = rows.split(self.row_sizes, 1)
        return source, memory, logits

    def remembered(self, rows: Tensor, sight: Tensor) -> Tensor:
        """Return rows after one more sight. Shapes (N, *), (N, sight_size) to (N, *)."""
        source, memory, _ = self.parts(rows)
        memory = self.reader.remember(memory, sight)
        return torch.cat([source, memory, self.reader.answer(memory)], 1)


class LookTask(Looking):
    """Looks through the frozen network, at pieces of an input.

    A subclass says which kind of reader it wants, calls `set_looks`, says what is there at first (`first`) and what an
    option cuts out of an input (`cut`). Under mixtures the network sees a mixture of pieces.

    Attributes:
        kind: Of the reader: `crops` or `frames`.
        most_paths: Up to so many ways through are all listed.
        sizes: At how many sizes pieces are encoded.
    """

    sizes: int = 1
    kind: str
    most_paths: int

    def set_looks(
        self,
        looks: int,
        *,
        options: int,
        macs: tuple[int, Sequence[int]],
        source: Sequence[int],
        piece: Sequence[int],
        shown: int,
    ) -> None:
        """Take how often can be looked at what; from this follows all that a task declares.

        Args:
            looks: At most.
            options: Pieces to choose among.
            macs: What the network costs before the first look, and for one at each size of pieces; options go through
                all pieces at the first size, then through all at the next.
            source: Shape of what pieces are cut out of.
            piece: Shape of one, (scales, C, h, w).
            shown: How many numbers of `start`'s `shown` the policy sees.
        """
        reader = self.reader
        self.set_decisions(looks, options=options, source=prod(source), shown=shown)
        self.least_macs = macs[0] + reader.glance_macs
        self.look_costs = [macs[1][size] + reader.look_macs for size in self.piece_sizes]
        self.source_shape, self.piece_shape = tuple(source), tuple(piece)
        self.view_sizes = [1, reader.code_size, prod(piece), sum(self.row_sizes)]

    @property
    def piece_sizes(self) -> list[int]:
        """The number of the size at which each piece is encoded, from 0."""
        pieces = self.decisions[0] - 1
        return [index // (pieces // self.sizes) for index in range(pieces)]

    @abstractmethod
    def first(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the reader remembers at first (N, sight_size), and what the policy is shown of it (N, shown)."""

    @abstractmethod
    def cut(self, index: int, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return where a piece is as numbers for the reader (N, code), and the piece (N, scales, C, h, w).

        Args:
            index: Of the piece, from 0.
            source: What it is cut out of. Shape (N, *source).
        """

    @property
    def reader(self) -> Reader:
        """The backbone's reader, which stays as frozen as that."""
        return self.reader_of(self.backbone, {})

    @classmethod
    def reader_of(cls, backbone: Backbone, asked: Mapping[str, Any]) -> Reader:
        """Return the reader that a backbone carries.

        Raises:
            ValueError: If there is none of this kind, or it is another than was asked for.
        """
        reader = backbone.reader
        if not isinstance(reader, Reader) or reader.kind != cls.kind:
            got = f"{backbone.name} with {'none' if reader is None else f'one of {reader.kind}'}"
            raise ValueError(
                f"{cls.name}: expected a backbone with a reader of {cls.kind}, got {got}. Train one: skipgym pretrain "
                f"--backbone {backbone.name} --init WEIGHTS --data … {FLAGS[cls.kind]} --out DIR, then "
                "--weights DIR/backbone.safetensors; in Python backbone.with_reader(…)."
            )
        check_asked(reader, asked, f"the reader of {backbone.name}")
        return reader

    @classmethod
    @abstractmethod
    def usual_reader(cls, backbone: Backbone) -> dict[str, int]:
        """Return the sizes of the reader that is trained where a user asks for none."""

    @classmethod
    def reader_sizes(cls, backbone: Backbone, **options: Any) -> dict[str, Any]:
        """Return the sizes of the reader that is trained for these options of the task."""
        asked = {name: options.get(name) for name in (*SHAPES[cls.kind], "memory")}
        return cls.usual_reader(backbone) | {name: value for name, value in asked.items() if value is not None}

    @classmethod
    def furnish(cls, backbone: Backbone, data: ImageData, **options: Any) -> Backbone:
        """Return a backbone with a reader: its own, or for embedded data one trained on first use."""
        if backbone.reader is not None:
            return backbone
        from ..backbones.embedded import pretrained_reader

        return pretrained_reader(backbone, data, **cls.reader_sizes(backbone, **options))

    @property
    def most_macs(self) -> int:
        return self.least_macs + self.horizon * self.look_macs

    @property
    def paths(self) -> list[tuple[int, ...]] | None:
        """All ways through where they are few; else None."""
        paths, whole = looking_paths(self.decisions[0] - 1, self.horizon, self.most_paths)
        return paths if whole else None

    def looking(self, order: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the ways that look at the first of some options, at the first two, …, as many as looks."""
        most = min(self.horizon, len(order))
        return [(*order[:count], *(0,) * (self.horizon - count)) for count in range(1, most + 1)]

    @property
    def pieces(self) -> list[str]:
        return [f"look {index}" for index in range(1, self.horizon + 1)]

    def begin(self, inputs: Tensor) -> State:
        """See what is there at first, and answer from that."""
        sight, shown = self.first(inputs)
        return self.start(inputs, sight, shown[:, : self.shown_size])

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all that looks can ever show of images, and nothing of their pixels.

        Returns:
            What the reader remembers at first (N, sight_size), what the policy is shown of it (N, shown), and what is
            there to remember of each piece (N, pieces, sight_size).
        """
        inputs = self.prepare(images)
        pieces = [self.sight_at(size, *self.cut(index, inputs)) for index, size in enumerate(self.piece_sizes)]
        sight, shown = self.first(inputs)
        return sight, shown[:, : self.shown_size], torch.stack(pieces, 1)

    def record(self) -> Record:
        """Return what a table keeps: each piece as the reader remembers it, however many ways through there are."""
        from .encoded import Sights

        return Sights(self)

    def glimpse(self, state: State, choice: Choice, onward: Choice) -> Tensor:
        """Cut out what each row chose, and run that through the network."""
        return onward.only(1, self._look, choice.among(self.cutters, state.features), (sum(self.row_sizes),))

    @property
    def cutters(self) -> list[Branch]:
        """What makes rows of `[1 | code | piece | state]` for each option."""
        return [self._leave, *(partial(self._cut, index) for index in range(self.decisions[0] - 1))]

    def _cut(self, index: int, rows: Tensor) -> Tensor:
        """Return rows of `[1 | code | piece | state]`; under mixtures the first is the share that goes on."""
        return self._opened(rows, *self.cut(index, self.sources(rows)))

    def sources(self, rows: Tensor) -> Tensor:
        """Return what pieces are cut out of. Shape (N, *source)."""
        return self.parts(rows)[0].view(-1, *self.source_shape)

    @staticmethod
    def _opened(rows: Tensor, code: Tensor, piece: Tensor) -> Tensor:
        """Return rows with a piece in front, as `_cut` does."""
        return torch.cat([code.new_ones((rows.shape[0], 1)), code, piece.flatten(1), rows], 1)

    def _leave(self, rows: Tensor) -> Tensor:
        """Return rows like those of `_cut`, of those that look nowhere."""
        return F.pad(rows, (sum(self.view_sizes[:3]), 0))

    def _look(self, rows: Tensor) -> Tensor:
        """Encode what was cut out, remember it and answer."""
        share, code, piece, state = rows.split(self.view_sizes, 1)
        share = share.clamp(min=1e-6)  # the piece of those who go on is not dimmed by those who do not
        return self.remembered(state, self.sight_at(0, code / share, piece / share))

    def sight_at(self, size: int, code: Tensor, piece: Tensor) -> Tensor:
        """Return what there is to remember of pieces. Shapes (N, code), (N, scales x C x h x w) to (N, sight_size).

        Args:
            size: Number of the size at which they are encoded, from 0.
            code: Where they are.
            piece: As they were cut out.
        """
        return self.reader.sight(crop_features(self.backbone, piece.view(-1, *self.piece_shape)), code)
