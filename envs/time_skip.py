"""Which steps of a sequence a recurrent network reads: update or leave out, jump ahead, skim, answer early."""

from collections.abc import Collection, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.moments import check_clips, frame_macs
from ..backbones.reader import check_asked
from ..backbones.recurrent import Recurrent
from ..backbones.sequences import (
    glimpse_of_step,
    prepare_steps,
    step_features,
    step_shape,
)
from ..data import ImageData
from ..data.clips import evenly
from ..data.words import spell
from .choice import Choice
from .exit_task import SIGNS, signs
from .state import State
from .step_pictures import CELL, draw_steps
from .task import Box, Task, register_task

RECURRENT = ("cell", "hidden", "skim")
"""Options that are the recurrent network's own."""


class Move(NamedTuple):
    """What an option does: how the step is read, and how far it is from there to the next decision."""

    how: str
    ahead: int


class Parts(NamedTuple):
    """What a row holds: the steps, which of them are real, where it stands, what is remembered, and the answer."""

    source: Tensor
    real: Tensor
    place: Tensor
    memory: Tensor
    logits: Tensor


@register_task("time-skip")
class TimeSkip(Task):
    """Is this step worth reading, how far ahead is the next one that is, and is it enough? (Skip RNN, LSTM-Jump).

    Description:
        A recurrent network goes along a sequence, words of a text or frames of a clip. Standing before a step the agent
        chooses: answer now; leave out this step, or several, so that the state is copied (Skip RNN, Campos et al.
        2018); read it and go on to the next one; read it and jump ahead (LSTM-Jump, Yu et al. 2017); or, with `skim`,
        have a small cell read it, which updates a part of the state (Skim-RNN, Seo et al. 2018). After each reading the
        network could answer. A row that comes to the end of its sequence answers with what it has.
    Action space:
        `Discrete`: 0 answers now; then, as far as they are asked for, leaving out, reading and jumping, each from the
        farthest to the nearest, and skimming; last reading. `moves` names them.
    Observation space:
        Of the present answer: largest probability, entropy (1: all classes alike), margin between the two largest
        probabilities, and the share of earlier answers that named the same class. Then the state of the recurrent
        network; how much of the sequence lies behind, 0…1; and what comes next: a word's vector, or a frame of
        `preview` x `preview` pixels without colour. The interpreter appends the position (one-hot), which is the number
        of decisions taken, and, where it varies, the price.
    Episode end:
        With the first 0, or at the end of the sequence.
    Cost:
        The answer before the first step, from a state of zeros; for each step read, what the network costs on a frame
        (a word's vector is looked up, which counts nothing), the cell and an answer; skimmed, likewise with the small
        cell. Leaving out costs nothing, and its step is not looked at by the network. `full_macs` is what reading all
        `steps` costs and one answer; a shorter sequence costs less, even read whole.

    Sequences of a batch may differ in length: of a clip the last frame repeats, and of a text one end mark is read. Of
    texts longer than those that the network was trained on the rest is left out.

    The backbone carries the recurrent network, trained on it frozen with steps left out at random: `skipgym pretrain
    --recurrent` leaves it beside its weights, and for embedded data it is trained on first use. `--backbone words`
    gives word vectors. Gates trained by gradient see a mixture of steps and states.

    Arguments:
        skip: How far to go ahead without reading, as 1 to the next step: one number, or several joined by commas; ""
            for never.
        jumps: Likewise after reading, from 2 on, beside to the next step.
        preview: Side of the tiny frame that is seen of what comes next; 0 hides what comes next, words too.
        cell: The recurrent network's: `gru` or `lstm`; where one is trained, `gru`.
        hidden: Likewise, units; by default 128.
        skim: Likewise, units that the small cell updates; by default 0, which allows no skimming.
    Version history:
        v0: first.
    """

    has_exits = True
    takes_clips = True
    takes_words = True
    default_data = "key-phrases"
    default_backbone = "words"

    def __init__(
        self,
        backbone: Backbone,
        *,
        skip: int | str = "1,5",
        jumps: int | str = "",
        preview: int = 4,
        cell: str | None = None,
        hidden: int | None = None,
        skim: int | None = None,
    ):
        super().__init__(backbone)
        self.check_reader({"cell": cell, "hidden": hidden, "skim": skim})
        if not isinstance(preview, int) or preview < 0:
            raise ValueError(f"preview: expected at least 0 pixels, got {preview!r}. Change it.")
        reader, self.preview = self.reader, preview
        far = distances("skip", skip, least=1), distances("jumps", jumps, least=2)
        self.moves = _moves(*far, skims=reader.skim > 0)
        self.decisions, self.horizon = (len(self.moves) + 1,), reader.steps
        self.least_macs = reader.answer_macs
        step = frame_macs(self.backbone)
        self.read_macs = step + reader.step_macs + reader.answer_macs
        self.skim_macs = step + reader.skim_macs + reader.answer_macs
        cost = {"leave": 0, "skim": self.skim_macs, "read": self.read_macs}
        self.costs = [0, *(cost[move.how] for move in self.moves)]
        self.step_shape = step_shape(self.backbone)
        source = reader.steps * prod(self.step_shape)
        self.sizes = [source, reader.steps, reader.steps, reader.memory_size, self.backbone.num_classes]
        coming = glimpse_of_step(self.backbone, torch.zeros((1, *self.step_shape)), preview).shape[1] if preview else 0
        self.observation_shape = (SIGNS + reader.memory_size + 1 + coming,)

    @classmethod
    def furnish(cls, backbone: Backbone, data: ImageData, **options: Any) -> Backbone:
        """Return a backbone with a recurrent network: its own, or for embedded data one trained on first use."""
        if isinstance(backbone.reader, Recurrent):
            return backbone
        from ..backbones.embedded import pretrained_recurrent

        asked = {name: options[name] for name in RECURRENT if options.get(name) is not None}
        return pretrained_recurrent(backbone, data, **asked)

    def check_reader(self, asked: dict[str, Any]) -> None:
        """Raise a ValueError unless the backbone carries a recurrent network, the one that was asked for."""
        reader, name = self.backbone.reader, self.backbone.name
        if not isinstance(reader, Recurrent):
            raise ValueError(
                f"time-skip: expected a backbone with a recurrent network, got {name} without. Train one: skipgym "
                f"pretrain --backbone {name} --init WEIGHTS --data … --recurrent gru --out DIR, then --weights "
                "DIR/backbone.safetensors; in Python backbone.with_reader(…)."
            )
        check_asked(reader, asked, f"the recurrent network of {name}")

    @property
    def reader(self) -> Recurrent:
        """The backbone's recurrent network, which stays as frozen as that."""
        assert isinstance(self.backbone.reader, Recurrent)
        return self.backbone.reader

    @property
    def full_macs(self) -> int:
        return self.reader.steps * (self.read_macs - self.reader.answer_macs) + self.reader.answer_macs

    @property
    def most_macs(self) -> int:
        return self.least_macs + self.reader.steps * self.read_macs

    @property
    def rules(self) -> dict[str, list[tuple[int, ...]]]:
        """Read the first steps; where steps can be left out one by one, also the last, or evenly spread ones.

        They are those of the longest sequence: of a shorter one there are fewer.
        """
        steps, counts = self.reader.steps, range(1, self.reader.steps + 1)
        first = {"first": [self._reading(range(count)) for count in counts]}
        if Move("leave", 1) not in self.moves:
            return first
        even = ([int((2 * i + 1) * steps / (2 * count)) for i in range(count)] for count in counts)
        last = [self._reading(range(steps - count, steps)) for count in counts]
        return first | {"last": last, "uniform": [self._reading(places) for places in even]}

    def _reading(self, places: Collection[int]) -> tuple[int, ...]:
        """Return the way that reads these steps, leaves out those between, and answers after the last."""
        option = {move: number for number, move in enumerate(self.moves, 1)}
        how = ("read" if step in places else "leave" for step in range(max(places) + 1))
        way = [option[Move(name, 1)] for name in how]
        return (*way, *(0,) * (self.horizon - len(way)))

    def read_places(self, actions: Sequence[int]) -> list[tuple[int, str]]:
        """Return which steps were read, from 0, and how, on a way through; what was not decided is -1."""
        places, at = [], 0
        for action in actions:
            if action < 1 or at >= self.reader.steps:
                break
            move = self.moves[action - 1]
            places += [(at, move.how)] if move.how != "leave" else []
            at += move.ahead
        return places

    def offered(self, length: int) -> list[int]:
        """Return the numbers of evenly spread frames, no more than the recurrent network was trained on."""
        return evenly(length, self.reader.steps)

    def executed(
        self, image: Tensor, actions: Sequence[int], *, places: Tensor | None = None, frames: Sequence[int] = ()
    ) -> list[str]:
        """Return the words that were read, or the numbers of frames, from 1; skimmed ones in brackets."""
        vocabulary = self.backbone.vocabulary
        words = spell(image, vocabulary) if vocabulary else [f"frame {n + 1}" for n in frames or range(len(image))]
        read = [(words[place], how) for place, how in self.read_places(actions) if place < len(words)]
        return [word if how == "read" else f"({word})" for word, how in read]

    def regions(self, actions: Sequence[int], places: Tensor | None = None) -> list[Box]:
        """Return where the steps that were read are in the strip that `pictures` gives."""
        width, height = CELL if self.backbone.vocabulary else self.backbone.input_shape[:0:-1]
        return [(0.0, float(place * width), float(height), float(width)) for place, _ in self.read_places(actions)]

    def check_images(self, images: Tensor) -> None:
        """Raise a ValueError unless these are texts, or clips no longer than what the network was trained on."""
        check_clips(self.backbone, images)
        if images.shape[1] > self.reader.steps and not self.backbone.vocabulary:
            raise ValueError(
                f"clips: expected at most the {self.reader.steps} steps that the recurrent network was trained on, got "
                f"{images.shape[1]}. Cut them, or train another."
            )

    def prepare(self, images: Tensor) -> Tensor:
        """Return a row for each sequence: its steps as the network takes them, and which of them are real."""
        steps = self.reader.steps
        source, real = prepare_steps(self.backbone, images[:, :steps].to(self.device), steps)
        return torch.cat([source.flatten(1), real], 1)

    def blank(self) -> Tensor:
        """Return one sequence of full length and no content."""
        images = torch.zeros((1, self.reader.steps, *self.backbone.input_shape))
        images[:, -1] = 1  # a repeated last step would be no step
        return images

    def untouched(self, images: Tensor) -> Tensor:
        """Return the logits after all steps. Shape (N, classes)."""
        source, real = self._split(self.prepare(images), self.sizes[:2])
        memory = source.new_zeros((len(source), self.reader.memory_size))
        for step, x in enumerate(source.view(len(source), -1, *self.step_shape).unbind(1)):
            after = self.reader.read(memory, step_features(self.backbone, x))
            memory = torch.where(real[:, step, None] > 0, after, memory)
        return self.reader.answer(memory)

    def pictures(self, images: Tensor) -> Tensor:
        """Return the steps side by side, uint8: frames, or words as they are written."""
        return draw_steps(images, self.backbone.vocabulary)

    def begin(self, inputs: Tensor) -> State:
        """Stand before the first step, with an answer from a state of zeros."""
        source, real = self._split(inputs, self.sizes[:2])
        memory = inputs.new_zeros((len(inputs), self.reader.memory_size))
        logits = self.reader.answer(memory)
        place = F.one_hot(torch.zeros(len(inputs), dtype=torch.long), self.reader.steps).to(real)
        rows = self._row(Parts(source, real, place, memory, logits))
        return State.start(rows, macs=self.least_macs, votes=torch.zeros_like(logits))

    def answer_now(self, state: State) -> Tensor:
        """Return the logits of the last reading."""
        return self._open(state.features).logits

    def observe(self, state: State) -> Tensor:
        """Return what the answer looks like, the state, how far it is along, and what comes next."""
        row = self._open(state.features)
        steps = torch.arange(self.reader.steps, device=row.place.device, dtype=row.place.dtype)
        behind = (self._shares(row) * steps).sum(1) / row.real.sum(1).clamp(min=1)
        seen = [signs(row.logits, state.memory["votes"], state.position), row.memory, behind.unsqueeze(1)]
        if self.preview:
            seen.append(glimpse_of_step(self.backbone, self._here(row), self.preview))
        return torch.cat(seen, 1)

    def step(self, state: State, choice: Choice) -> State:
        """Let rows leave with the answer that they have, and take the others as far as they choose."""
        before = self._open(state.features)
        x = choice.among([torch.zeros_like, *(partial(self._move, move) for move in self.moves)], state.features)
        after = self._open(x)
        votes = state.memory["votes"] + F.one_hot(before.logits.argmax(1), before.logits.shape[1])
        left = after.place.sum(1) / before.place.sum(1).clamp(min=1e-6)  # of one who goes on, the share not at the end
        state = state.advance(x, macs=choice.cost(self.costs), votes=votes).finish(before.logits, when=choice.weight(0))
        return state.finish(after.logits, when=1 - left if state.position < self.horizon else 1.0)

    def _move(self, move: Move, rows: Tensor) -> Tensor:
        """Read as a move says, and go ahead."""
        row = self._open(rows)
        memory, logits = row.memory, row.logits
        if move.how != "leave":
            update = self.reader.read if move.how == "read" else self.reader.skim_over
            memory = update(memory, step_features(self.backbone, self._here(row)))
            logits = self.reader.answer(memory)
        place = F.pad(row.place, (move.ahead, 0))[:, : self.reader.steps] * row.real
        return self._row(Parts(row.source, row.real, place, memory, logits))

    def _here(self, row: Parts) -> Tensor:
        """Return the step before which each row stands; under mixtures that of all places. Shape (N, *step_shape)."""
        steps = row.source.view(len(row.source), self.reader.steps, -1)
        return (self._shares(row)[:, :, None] * steps).sum(1).view(-1, *self.step_shape)

    @staticmethod
    def _shares(row: Parts) -> Tensor:
        """Return where rows stand, of those not at the end. Shape (N, steps)."""
        return row.place / row.place.sum(1, keepdim=True).clamp(min=1e-6)

    @staticmethod
    def _row(parts: Parts) -> Tensor:
        """Return parts as rows; the first number becomes the share of those that go on."""
        return torch.cat([torch.ones_like(parts.logits[:, :1]), *parts], 1)

    def _open(self, rows: Tensor) -> Parts:
        """Return the parts of rows, of those that go on."""
        share, rest = rows[:, :1], rows[:, 1:]
        return Parts(*self._split(rest / share.clamp(min=1e-6), self.sizes))

    @staticmethod
    def _split(rows: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        return rows.split(sizes, 1)


def distances(name: str, value: int | str, *, least: int) -> tuple[int, ...]:
    """Return how far an option goes ahead, of a number, or several in a text; farthest first.

    Raises:
        ValueError: If they are not different numbers from `least` on.
    """
    words = [word.strip() for word in str(value).split(",") if word.strip()]
    numbers = {int(word) for word in words if word.isdecimal()}
    if len(numbers) < len(words) or min(numbers, default=least) < least:
        raise ValueError(
            f"{name}: expected different numbers from {least} on, joined by commas, or an empty text for none, got "
            f"{value!r}. Change it."
        )
    return tuple(sorted(numbers, reverse=True))


def _moves(skip: Sequence[int], jumps: Sequence[int], *, skims: bool) -> list[Move]:
    """Return what the options above 0 do, from the cheapest on."""
    skimmed = [Move("skim", 1)] if skims else []
    return [*(Move("leave", n) for n in skip), *(Move("read", n) for n in jumps), *skimmed, Move("read", 1)]
