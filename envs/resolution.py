"""Resolution: at which size does the network look at an image?"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.scaling import Scales, default_scales, read_scales, scale_macs, scaled, scaled_size
from ..data import ImageData
from .choice import Choice
from .state import State
from .task import Task, register_task


@register_task("resolution")
class Resolution(Task):
    """See a thumbnail, and decide at which size the whole network sees the image (adaptive scaling).

    Description:
        Nothing has run. The agent sees the image as a thumbnail and chooses a size; the image is scaled to it
        (bilinear, antialiased), and the untouched network answers once. The rows of one size are one smaller batch.
    Action space:
        `Discrete(len(scales))`: 0 the smallest size, the last the image as it is.
    Observation space:
        The normalised image, scaled down to at most `thumbnail` pixels on a side. Shape (C, h, w). The interpreter
        appends the price as one more channel where it varies.
    Episode end:
        After the one decision.
    Cost:
        The network's pieces, counted on an image of the chosen size. `full_macs` is the image's own size alone.
        Scaling is not counted, as pooling is not: it takes a few additions for each pixel and channel.

    The network should bear small images: `skipgym pretrain --scales 16 24 32` trains it at several sizes. Where the
    task is made by its name on embedded data, that is done on first use.

    Arguments:
        scales: Sizes in pixels of the longer side, rising; on the command line "64 96 128". The last is the image's
            own. By default half, three quarters and all of it.
        thumbnail: Longest side of what the policy sees, in pixels.
    Version history:
        v0: first.
    """

    def __init__(self, backbone: Backbone, *, scales: Scales | None = None, thumbnail: int = 32):
        super().__init__(backbone)
        if thumbnail < 4:
            raise ValueError(f"thumbnail: expected at least 4 pixels, got {thumbnail}. Use 16 or 32.")
        shape = self.backbone.input_shape
        self.scales = read_scales(default_scales(shape) if scales is None else scales)
        self.scale_macs = scale_macs(self.backbone, self.scales)
        self.thumbnail = min(thumbnail, max(shape[1:]))
        self.horizon, self.decisions, self.least_macs = 1, (len(self.scales),), self.scale_macs[0]
        self.observation_shape = (shape[0], *scaled_size(shape, self.thumbnail))

    @classmethod
    def recipe(cls, data: ImageData, **options: Any) -> Mapping[str, Any]:
        """Train at all of the sizes, and not to bear skipping, which nobody does here."""
        asked = options.get("scales")
        scales = default_scales(data.image_shape) if asked is None else read_scales(asked)
        return {"scales": scales, "stochastic_depth": 0.0, "distill": 0.0, "spare_hard": 0.0}

    @property
    def pieces(self) -> list[str]:
        return ["size"]

    def begin(self, inputs: Tensor) -> State:
        """Keep the image, and its thumbnail for the policy."""
        return State.start(inputs, thumbnail=scaled(inputs, self.thumbnail))

    def observe(self, state: State) -> Tensor:
        """Return the thumbnail."""
        return state.memory["thumbnail"]

    def step(self, state: State, choice: Choice) -> State:
        """Answer at the chosen size."""
        logits = choice.among([partial(self.answer, scale) for scale in self.scales], state.features)
        return state.advance(state.features, macs=choice.cost(self.scale_macs)).finish(logits)

    def answer(self, scale: int, images: Tensor) -> Tensor:
        """Run the network on images scaled to a size. Shape (N, classes)."""
        return self.backbone(scaled(images, scale))
