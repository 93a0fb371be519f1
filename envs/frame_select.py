"""When to look: a preview of a clip in tiny frames, then frames of it in full, until enough was seen."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.glimpses import shrunk
from ..backbones.moments import check_clips, frame_code, frame_macs, prepare_frames, preview
from ..backbones.reader_training import pooled
from ..data.clips import at_moments, evenly, moment_numbers
from .choice import Choice
from .look_task import LookTask
from .state import State
from .task import Box, register_task

SIZES = ("", "-half", "-quarter")
"""What the rules of each size are called."""


@register_task("frame-select")
class FrameSelect(LookTask):
    """Which frame to look at next, and is it enough? (AdaFrame, Wu et al. 2019; FrameGlimpse, Yeung et al. 2016).

    Description:
        Of a clip a few frames are offered, evenly spread from its first to its last. A reader has seen all of them
        scaled down to a few pixels, and has answered from that preview. Before each look the agent chooses: give the
        answer there is, or look at one of the frames in full. The frozen network, which is one for images, encodes the
        frame, the reader remembers it beside what was seen before, and answers anew. Rows that have answered leave; the
        others go on as a smaller batch. With several `sizes` a frame is looked at as it is, or scaled down to half its
        width and height, or a quarter (AR-Net, Meng et al. 2020), where the network costs less.
    Action space:
        `Discrete(1 + moments * sizes)`: 0 answers now; 1 … moments looks at that frame, in the order of time; the next
        ones at the same frames scaled down to half, then to a quarter. Any may follow any, and one may be looked at
        again.
    Observation space:
        Of the present answer: largest probability, entropy (1: all classes alike), margin between the two largest
        probabilities, and the share of earlier answers that named the same class. Then the reader's memory; how often
        each frame was looked at, at each size; and the preview, `preview` x `preview` pixels without colour, frame by
        frame. The interpreter appends the position (one-hot) and, where it varies, the price.
    Episode end:
        With the first 0, or after `looks` frames.
    Cost:
        The reader's of the preview; for each look the network's stem and blocks on one frame of that size, and the
        reader's. Scaling down is element-wise work, as activations are, and counts nothing. `full_macs` is what all
        frames cost that are offered, read as they are in the order of time with the same preview and the same reader:
        what reading the whole clip comes to. The way there is longer than `looks` allows (`reaches_full` is false): it
        has a row of its own.

    Clips of a batch may differ in length: a short one repeats its last frame (`skipgym.data` pads so), and frames are
    offered over what comes before that. Whatever is chosen is a real frame; of a clip with fewer frames than moments
    some are offered at several.

    The backbone carries the reader, trained on it frozen with frames in random order: `skipgym pretrain --moments`
    leaves it beside its weights (`--frame-sizes` for several), and for embedded data it is trained on first use. Gates
    trained by gradient see a mixture of frames, at a mixture of sizes.

    Arguments:
        moments: Frames that are offered, at most 32: the reader's; where one is trained, by default 8.
        preview: Likewise, side of each in the preview, in pixels; by default 4.
        sizes: Likewise, of a frame, 1 … 3; by default 1.
        looks: Frames looked at, at most.
        memory: The reader's: `gru`, `mean` or `slots`.
        signs_only: Whether the policy sees of the answer and of where was looked alone: where images are few, it then
            cannot learn them by heart.
    Version history:
        v0: first.
    """

    kind = "frames"
    most_paths = 512
    takes_clips = True
    default_data = "digit-clips"

    def __init__(
        self,
        backbone: Backbone,
        *,
        moments: int | None = None,
        preview: int | None = None,
        sizes: int | None = None,
        looks: int = 3,
        memory: str | None = None,
        signs_only: bool = False,
    ):
        super().__init__(backbone)
        self.signs_only = signs_only
        asked = {"moments": moments, "preview": preview, "sizes": sizes, "memory": memory}
        reader = self.reader_of(self.backbone, asked)
        given = (("looks", looks, 32), ("moments", reader.moments, 32), ("sizes", reader.sizes, len(SIZES)))
        for name, value, most in given:
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name}: expected 1 … {most}, got {value!r}. Change it.")
        self.moments, self.sizes = reader.moments, reader.sizes
        self.set_looks(
            looks,
            options=self.moments * self.sizes,
            macs=(0, [frame_macs(self.backbone, size) for size in range(self.sizes)]),
            source=(self.moments, *self.backbone.input_shape),
            piece=(1, *self.backbone.input_shape),
            shown=self.moments * reader.preview**2,
        )

    @classmethod
    def usual_reader(cls, backbone: Backbone) -> dict[str, int]:
        return {"moments": 8, "preview": 4}

    @property
    def full_macs(self) -> int:
        return self.least_macs + self.moments * self.look_macs

    @property
    def onward(self) -> tuple[int, ...]:
        """Evenly spread frames, as many as looks, from the middle outwards: of three those at 1/2, 1/6 and 5/6."""
        even = spread(self.moments, self.horizon)  # as they are, not scaled down
        return tuple(sorted(even, key=lambda option: abs(option - (self.moments + 1) / 2)))

    @property
    def rules(self) -> dict[str, list[tuple[int, ...]]]:
        """Evenly spread frames in the order of time; the first, middle or last ones; first and last by turns.

        With several sizes evenly spread ones at each (`uniform-half`); the others as they are.
        """
        options, middle = range(1, self.moments + 1), (self.moments + 1) / 2
        inwards = [option for pair in zip(options, reversed(options), strict=True) for option in pair]
        even = [spread(self.moments, count) for count in range(1, min(self.horizon, self.moments) + 1)]
        evenly = {
            f"uniform{SIZES[size]}": [
                (*(option + size * self.moments for option in way), *(0,) * (self.horizon - len(way))) for way in even
            ]
            for size in range(self.sizes)
        }
        return {
            **evenly,
            "first": self.looking(options),
            "middle": self.looking(sorted(options, key=lambda option: abs(option - middle))),
            "last": self.looking(options[::-1]),
            "first-last": self.looking(list(dict.fromkeys(inwards))),
        }

    def offered(self, length: int) -> list[int]:
        """Return the numbers of the frames at the reader's moments: previewed, and chosen from."""
        return evenly(length, self.moments)

    def executed(
        self, image: Tensor, actions: Sequence[int], *, places: Tensor | None = None, frames: Sequence[int] = ()
    ) -> list[str]:
        """Return the numbers, from 1, of the frames that were looked at, in that order, and which were scaled down."""
        numbers = moment_numbers(image.unsqueeze(0), self.moments)[0].tolist()
        looks = [self._split(action - 1) for action in actions if action > 0]
        named = [(1 + (frames[numbers[moment]] if frames else numbers[moment]), size) for moment, size in looks]
        return [f"frame {number}" + (f" at 1/{2**size}" if size else "") for number, size in named]

    def region(self, piece: int, option: int) -> Box | None:
        """Return where a frame is in the strip that `pictures` gives."""
        _, height, width = self.backbone.input_shape
        return (0.0, float(self._split(option - 1)[0] * width), float(height), float(width)) if option else None

    def check_images(self, images: Tensor) -> None:
        """Raise a ValueError unless these are clips that the network can take frame by frame."""
        check_clips(self.backbone, images)

    def prepare(self, images: Tensor) -> Tensor:
        """Return the offered frames of clips, normalised. Shape (N, T, C, H, W) to (N, moments, C', H, W)."""
        return prepare_frames(self.backbone, images.to(self.device), self.moments)

    def blank(self) -> Tensor:
        return torch.zeros((1, self.moments, *self.backbone.input_shape))

    def untouched(self, images: Tensor) -> Tensor:
        """Return the logits after all frames that are offered, in the order of time. Shape (N, classes)."""
        frames = self.prepare(images)
        memory = self.reader.begin(preview(frames, self.reader.preview))
        for moment, frame in enumerate(frames.unbind(1)):
            memory = self.reader.read(memory, pooled(self.backbone, frame), self._when(moment, frames))
        return self.reader.answer(memory)

    def pictures(self, images: Tensor) -> Tensor:
        """Return the offered frames side by side, uint8. Shape (N, T, C, H, W) to (N, C, H, moments x W)."""
        return torch.cat(at_moments(images, self.moments).unbind(1), 3)

    def first(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Preview the clip."""
        tiny = preview(inputs, self.reader.preview)
        return self.reader.first_sight(tiny), tiny

    def cut(self, index: int, source: Tensor) -> tuple[Tensor, Tensor]:
        """Take a frame out of clips, as it is: it is scaled down where it is encoded."""
        moment, size = self._split(index)
        return self._when(moment, source, size), source[:, moment : moment + 1]

    def glimpse(self, state: State, choice: Choice, onward: Choice) -> Tensor:
        """Take the frames that rows chose, and run them through the network, those of a size together."""
        if self.sizes == 1:
            return super().glimpse(state, choice, onward)
        cut = choice.among(self.cutters, state.features)
        sized = choice.merged([0, *(1 + size for size in self.piece_sizes)])
        shape = (self.reader.sight_size,)
        sights = [sized.only(1 + size, partial(self._sized, size), cut, shape) for size in range(self.sizes)]
        weights = torch.stack([sized.weight(1 + size) for size in range(self.sizes)], 1)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)  # of those who go on
        sight = sum(weight.unsqueeze(1) * one for weight, one in zip(weights.unbind(1), sights, strict=True))
        assert isinstance(sight, Tensor)
        return self._recall(onward, sight, cut[:, sum(self.view_sizes[:-1]) :])

    def _sized(self, size: int, rows: Tensor) -> Tensor:
        """Return what there is to remember of frames at a size, of rows as `cutters` give them."""
        share, code, frame, _ = rows.split(self.view_sizes, 1)
        share = share.clamp(min=1e-6)
        code = torch.cat([code[:, :1] / share, torch.full_like(share, size)], 1)
        return self.sight_at(size, code, frame / share)

    def sight_at(self, size: int, code: Tensor, piece: Tensor) -> Tensor:
        frames = shrunk(piece.view(-1, *self.backbone.input_shape), 2**size)
        return self.reader.sight(pooled(self.backbone, frames), code)

    def _split(self, index: int) -> tuple[int, int]:
        """Return the moment and the size of an option, all from 0."""
        size, moment = divmod(index, self.moments)
        return moment, size

    def _when(self, moment: int, frames: Tensor, size: int = 0) -> Tensor:
        return frame_code(torch.full((len(frames),), moment, device=frames.device), size, self.reader)


def spread(moments: int, looks: int) -> list[int]:
    """Return numbers from 1 of evenly spread moments, each in the middle of its share of the time."""
    return [1 + int((2 * look + 1) * moments / (2 * looks)) for look in range(looks)]
