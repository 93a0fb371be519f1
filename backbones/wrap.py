"""Networks of one's own as backbones."""

from collections.abc import Mapping, Sequence

from torch import nn

from .backbone import Backbone


def wrap(
    network: nn.Module,
    blocks: Sequence[str],
    *,
    input_shape: tuple[int, int, int],
    name: str = "wrapped",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bypass: Mapping[str, nn.Module] | None = None,
    class_names: Sequence[str] | None = None,
) -> Backbone:
    """Make a backbone of any network that torch.fx can trace outside its blocks.

    Whatever lies between two blocks goes with the earlier one and is always executed, after a bypass too.

    Args:
        network: Takes one batch of images, gives logits. It is not copied; tasks freeze a copy.
        blocks: Qualified names of the modules that may be left out (`features.3`), in the order of execution. Each is
            called once, with one tensor.
        input_shape: (C, H, W) of one image.
        name: What it is called in results.
        mean: Of each channel, for images scaled to 0…1; ImageNet's where not given.
        std: Likewise.
        bypass: By block, what takes its place when it is left out. A block without one that has a `shortcut` or a
            `downsample` module is replaced by that and a ReLU, as in a ResNet; any other by the identity.
        class_names: What the outputs mean.

    Raises:
        ValueError: If the network cannot be cut at these blocks, or a block changes the shape and has no bypass.
    """
    return Backbone(
        network,
        blocks,
        name=name,
        input_shape=input_shape,
        mean=mean,
        std=std,
        bypass=bypass,
        class_names=class_names,
    )
