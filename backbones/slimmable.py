"""Slimmable ResNets: one set of convolutions, of which a narrower network takes the first channels.

Slimmable networks (Yu et al., ICLR 2019) have a private BatchNorm for each of a few widths. Universally slimmable ones
(US-Net, Yu and Huang, ICCV 2019) share scale and shift too; only the statistics belong to a width, and are computed
after training. The full width is an ordinary CIFAR ResNet, with the names of its parameters.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone
from .cifar_resnet import CifarBlock, CifarResNet, OptionA

Kind = Literal["slim", "us"]
QUARTERS = (0.25, 0.5, 0.75, 1.0)
STEPS = 16  # of a universally slimmable network's widths, from nothing to full
SCALES = (1, 2, 4)  # channels of each stage, for one of the first


class SlimmableResNet(CifarResNet):
    """A CIFAR ResNet that can be executed at several widths.

    A width is told by its channels in the first stage; the later ones have 2 and 4 times as many. Where channels are
    added, shortcuts keep the old ones first, so that a channel means the same at every width.

    Args:
        depth: As for `CifarResNet`.
        kind: slim: 0.25, 0.5, 0.75 and 1 of the width, each with BatchNorm of its own. us: every sixteenth from a
            quarter on (of fewer than 16 channels every channel), with statistics of its own.
        num_classes: As for `CifarResNet`. Likewise `in_channels`.
        width: Full number of channels in the first stage.

    Attributes:
        widths: Channels of the first stage, from the narrowest to the full.
        norms: Of each narrower width, BatchNorms in the order of execution.

    Raises:
        ValueError: If the widths would not have whole numbers of channels.
    """

    def __init__(self, depth: int, kind: Kind, *, num_classes: int = 10, in_channels: int = 3, width: int = 16):
        unit = 4 if kind == "slim" or width < STEPS else STEPS
        if width < 4 or width % unit:
            raise ValueError(
                f"width of a slimmable ResNet: expected channels divisible by {unit}, so that its widths have whole "
                f"numbers of them, got {width}. Choose such a number, as in {kind}-resnet{depth}-w{unit}."
            )
        super().__init__(depth, num_classes=num_classes, in_channels=in_channels, width=width)
        _keep_order(self)
        step = width // 4 if kind == "slim" else max(1, width // STEPS)
        self.depth, self.kind, self.width = depth, kind, width
        self.widths = tuple(range(width // 4, width + 1, step))
        full = list(_batch_norms(self))
        self.norms = nn.ModuleDict(
            {
                str(narrow): nn.ModuleList(self._own_norm(norm.num_features * narrow // width) for _, norm in full)
                for narrow in self.widths[:-1]
            }
        )
        self.recalibrating = False

    def _own_norm(self, channels: int) -> nn.BatchNorm2d:
        # momentum None: the mean over all batches, which is what recalibration wants
        return (
            nn.BatchNorm2d(channels) if self.kind == "slim" else nn.BatchNorm2d(channels, momentum=None, affine=False)
        )

    def channels_of(self, width: float) -> int:
        """Return the channels of the first stage at a share of the full width.

        Raises:
            ValueError: If the network was not made for this width.
        """
        lowest, channels = self.widths[0] / self.width, round(width * self.width)
        if not lowest <= width <= 1:
            raise ValueError(
                f"width: expected one within the trained range, {lowest:g} … 1, got {width:g}. Choose one of "
                f"{self._shares()}."
            )
        if abs(width * self.width - channels) > 1e-6 or channels not in self.widths:
            raise ValueError(
                f"width: expected one that was trained, got {width:g}, which is {width * self.width:g} of "
                f"{self.width} channels. Choose one of {self._shares()}."
            )
        return channels

    def _shares(self) -> str:
        return ", ".join(f"{channels / self.width:g}" for channels in self.widths)

    def forward_at(self, x: Tensor, widths: Sequence[int]) -> Tensor:
        """Classify with the first channels only, for training; execution takes `narrowed`.

        Args:
            x: Normalised images. Shape (N, C, H, W).
            widths: Of each of the three stages, told in channels of the first. A stage that follows one of another
                width takes its first channels, zeros where there are fewer.

        Returns:
            Logits. Shape (N, classes).
        """
        norms = enumerate(norm for _, norm in _batch_norms(self))
        x = F.relu(self._normalise(norms, widths[0], _convolve(self.conv1, x, widths[0])))
        before = 1
        for width, scale, stage in zip(widths, SCALES, (self.layer1, self.layer2, self.layer3), strict=True):
            x = fit_channels(x, width * before)
            for block in stage:
                assert isinstance(block, CifarBlock)
                x = self._run(block, norms, width, width * scale, x)
            before = scale
        return F.linear(x.mean((2, 3)), self.linear.weight[:, : x.shape[1]], self.linear.bias)

    def _run(
        self, block: CifarBlock, norms: "enumerate[nn.BatchNorm2d]", width: int, channels: int, x: Tensor
    ) -> Tensor:
        out = F.relu(self._normalise(norms, width, _convolve(block.conv1, x, channels)))
        out = self._normalise(norms, width, _convolve(block.conv2, out, channels))
        step = block.conv1.stride[0]
        return F.relu(out + fit_channels(x[:, :, ::step, ::step], channels))

    def _normalise(self, norms: "enumerate[nn.BatchNorm2d]", width: int, x: Tensor) -> Tensor:
        index, full = next(norms)
        if width == self.width:
            return full(x)
        own = self._norms_at(width)[index]
        if self.kind == "slim":
            return own(x)
        scale, shift = full.weight[: x.shape[1]], full.bias[: x.shape[1]]
        if self.training and not self.recalibrating:  # statistics are for later, see `recalibrate`
            return F.batch_norm(x, None, None, scale, shift, training=True)
        return own(x) * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    def _norms_at(self, width: int) -> nn.ModuleList:
        norms = self.norms[str(width)]
        assert isinstance(norms, nn.ModuleList)
        return norms

    @torch.no_grad()
    def narrowed(self, width: int) -> CifarResNet:
        """Return the network of a width by itself: an ordinary one, its weights copied.

        Args:
            width: Channels of the first stage, one of `widths`.
        """
        with torch.device("meta"):  # draws no random weights
            sliced = CifarResNet(
                self.depth,
                num_classes=self.linear.out_features,
                in_channels=self.conv1.in_channels,
                width=width,
            )
        _keep_order(sliced)
        state = self.state_dict()
        if width != self.width:
            for (name, _), own in zip(_batch_norms(self), self._norms_at(width), strict=True):
                state |= {f"{name}.{key}": value for key, value in own.state_dict().items()}
        sliced.load_state_dict({k: _first(state[k], v.shape) for k, v in sliced.state_dict().items()}, assign=True)
        return sliced.train(self.training)


def fit_channels(x: Tensor, channels: int) -> Tensor:
    """Return the first channels of feature maps, with zeros for those that are missing. Shape (N, channels, H, W)."""
    missing = channels - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing > 0 else x[:, :channels]


def slices(backbone: Backbone, widths: Sequence[float]) -> list[Backbone]:
    """Return a frozen backbone of its own for each width: smaller convolutions, BatchNorm folded once.

    Args:
        backbone: A slimmable one. At full width it is itself what is returned, frozen.
        widths: Shares of the full width.

    Raises:
        ValueError: If it is not slimmable, or was not made for a width.
    """
    network, (colours, height, side) = slimmable(backbone), backbone.input_shape
    found = []
    for width in widths:
        channels = network.channels_of(width)
        if channels == network.width:
            found.append(backbone.frozen())
            continue
        one = Backbone(
            network.narrowed(channels),
            [block.name for block in backbone.blocks],
            name=f"{backbone.name} at {width:g}",
            input_shape=(colours, height, side),
            mean=backbone.mean,
            std=backbone.std,
            class_names=backbone.class_names,
        )
        found.append(one.frozen())
    return found


def slimmable(backbone: Backbone) -> SlimmableResNet:
    """Return a backbone's network, which must be slimmable.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(backbone.network, SlimmableResNet):
        return backbone.network
    raise ValueError(
        f"width: expected a slimmable backbone, got {backbone.name}, which has one width. Use slim-resnet20, "
        "us-resnet20 or another depth, trained by skipgym pretrain."
    )


@torch.no_grad()
def recalibrate(backbone: Backbone, batches: Sequence[Tensor]) -> None:
    """Compute a universally slimmable network's statistics for each width (US-Net, section 3.2), in place.

    Args:
        backbone: The full width keeps the statistics of its training; a backbone of another kind is left as it is.
        batches: Prepared images, about a thousand in all. Each (N, C, H, W).
    """
    network = backbone.network
    if not isinstance(network, SlimmableResNet) or network.kind != "us":
        return
    was_training = network.training
    network.train()
    network.recalibrating = True
    for width in network.widths[:-1]:
        for norm in network._norms_at(width):
            assert isinstance(norm, nn.BatchNorm2d)
            norm.reset_running_stats()
        for x in batches:
            network.forward_at(x, (width,) * 3)
    network.recalibrating = False
    network.train(was_training)


def _keep_order(network: CifarResNet) -> None:
    """Let shortcuts put new channels after the old ones, not on both sides as He et al. do."""
    for module in network.modules():
        if isinstance(module, OptionA):
            module.pad, module.rest = 0, module.pad + module.rest


def _batch_norms(network: CifarResNet) -> Iterator[tuple[str, nn.BatchNorm2d]]:
    """Yield the full width's BatchNorms in the order of execution, with their names."""
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("norms."):
            yield name, module


def _convolve(conv: nn.Conv2d, x: Tensor, channels: int) -> Tensor:
    """Convolve with the first input and output channels' weights."""
    return F.conv2d(x, conv.weight[:channels, : x.shape[1]], None, conv.stride, conv.padding)


def _first(value: Tensor, shape: torch.Size) -> Tensor:
    """Return a copy of a tensor's first entries along each dimension."""
    return value[tuple(slice(size) for size in shape)].clone()
