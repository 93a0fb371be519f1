"""When to look: a preview of a clip in tiny frames, then frames of it in full, until enough was seen."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.moments import check_clips, frame_macs, prepare_frames, preview, time_code
from ..backbones.reader_training import pooled
from ..data.clips import at_moments, evenly, moment_numbers
from .look_task import LookTask
from .task import Box, register_task


@register_task("frame-select")
class FrameSelect(LookTask):
    """Which frame to look at next, and is it enough? (AdaFrame, Wu et al. 2019; FrameGlimpse, Yeung et al. 2016).

    Description:
        Of a clip a few frames are offered, evenly spread from its first to its last. A reader has seen all of them
        scaled down to a few pixels, and has answered from that preview. Before each look the agent chooses: give the
        answer there is, or look at one of the frames in full. The frozen network, which is one for images, encodes the
        frame, the reader remembers it beside what was seen before, and answers anew. Rows that have answered leave; the
        others go on as a smaller batch.
    Action space:
        `Discrete(1 + moments)`: 0 answers now; 1 … moments looks at that frame, in the order of time. Any may follow
        any, and one may be looked at again.
    Observation space:
        Of the present answer: largest probability, entropy (1: all classes alike), margin between the two largest
        probabilities, and the share of earlier answers that named the same class. Then the reader's memory; how often
        each frame was looked at; and the preview, `preview` x `preview` pixels without colour, frame by frame. The
        interpreter appends the position (one-hot) and, where it varies, the price.
    Episode end:
        With the first 0, or after `looks` frames.
    Cost:
        The reader's of the preview; for each look the network's stem and blocks on one frame, and the reader's. Scaling
        down is element-wise work, as activations are, and counts nothing. `full_macs` is what all frames cost that are
        offered, read in the order of time with the same preview and the same reader: what reading the whole clip comes
        to. The way there is longer than `looks` allows (`reaches_full` is false): it has a row of its own.

    Clips of a batch may differ in length: a short one repeats its last frame (`skipgym.data` pads so), and frames are
    offered over what comes before that. Whatever is chosen is a real frame; of a clip with fewer frames than moments
    some are offered at several.

    The backbone carries the reader, trained on it frozen with frames in random order: `skipgym pretrain --moments`
    leaves it beside its weights, and for embedded data it is trained on first use. Gates trained by gradient see a
    mixture of frames.

    Arguments:
        moments: Frames that are offered, at most 32: the reader's; where one is trained, by default 8.
        preview: Likewise, side of each in the preview, in pixels; by default 4.
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
        looks: int = 3,
        memory: str | None = None,
        signs_only: bool = False,
    ):
        super().__init__(backbone)
        self.signs_only = signs_only
        reader = self.reader_of(self.backbone, {"moments": moments, "preview": preview, "memory": memory})
        for name, value in (("looks", looks), ("moments", reader.moments)):
            if not isinstance(value, int) or not 1 <= value <= 32:
                raise ValueError(f"{name}: expected 1 … 32, got {value!r}. Change it.")
        self.moments = reader.moments
        self.set_looks(
            looks,
            options=self.moments,
            macs=(0, frame_macs(self.backbone)),
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
        even = spread(self.moments, self.horizon)
        return tuple(sorted(even, key=lambda option: abs(option - (self.moments + 1) / 2)))

    @property
    def rules(self) -> dict[str, list[tuple[int, ...]]]:
        """Evenly spread frames in the order of time; the first, middle or last ones; first and last by turns."""
        options, middle = range(1, self.moments + 1), (self.moments + 1) / 2
        inwards = [option for pair in zip(options, reversed(options), strict=True) for option in pair]
        even = [spread(self.moments, count) for count in range(1, min(self.horizon, self.moments) + 1)]
        return {
            "uniform": [(*way, *(0,) * (self.horizon - len(way))) for way in even],
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
        """Return the numbers, from 1, of the frames that were looked at, in that order."""
        numbers = moment_numbers(image.unsqueeze(0), self.moments)[0].tolist()
        shown = [numbers[action - 1] for action in actions if action > 0]
        return [f"frame {1 + (frames[number] if frames else number)}" for number in shown]

    def region(self, piece: int, option: int) -> Box | None:
        """Return where a frame is in the strip that `pictures` gives."""
        _, height, width = self.backbone.input_shape
        return (0.0, float((option - 1) * width), float(height), float(width)) if option else None

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
        """Take a frame out of clips."""
        return self._when(index, source), source[:, index : index + 1]

    def _when(self, moment: int, frames: Tensor) -> Tensor:
        return time_code(torch.full((len(frames),), moment, device=frames.device), self.moments)


def spread(moments: int, looks: int) -> list[int]:
    """Return numbers from 1 of evenly spread moments, each in the middle of its share of the time."""
    return [1 + int((2 * look + 1) * moments / (2 * looks)) for look in range(looks)]
