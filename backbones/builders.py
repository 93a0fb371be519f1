"""Networks that can be cut, and the names of their blocks: what the registry's names stand for."""

from collections.abc import Callable

import torchvision
from torch import nn
from torchvision.models.squeezenet import Fire

from .cifar_resnet import CifarResNet
from .dynamic import DynamicResNet
from .dynamic import Kind as Dynamic
from .experts import ExpertResNet
from .msdnet import MSDNet
from .ranet import RANet
from .slimmable import Kind, SlimmableResNet
from .stepped import SteppedNet
from .supernet import Supernet
from .tree import TreeResNet
from .words import Words


def cifar(num_classes: int, shape: tuple[int, int, int], *, depth: int, width: int) -> tuple[nn.Module, list[str]]:
    """Build a CIFAR ResNet of so many layers, with `width` channels in the first stage."""
    network = CifarResNet(depth, num_classes=num_classes, in_channels=shape[0], width=width)
    return network, _residual_blocks(network)


STEPPED: dict[str, Callable[..., SteppedNet]] = {"msdnet": MSDNet, "ranet": RANet}


def stepped(
    num_classes: int, shape: tuple[int, int, int], *, kind: Callable[..., SteppedNet], **options: int
) -> tuple[nn.Module, list[str]]:
    """Build a network of steps with exits of its own, of the given numbers of exits, scales and channels."""
    network = kind(num_classes=num_classes, input_shape=shape, **options)
    return network, network.step_names


def slimmable(
    num_classes: int, shape: tuple[int, int, int], *, kind: Kind, depth: int, width: int
) -> tuple[nn.Module, list[str]]:
    """Build a slimmable CIFAR ResNet of a kind."""
    network = SlimmableResNet(depth, kind, num_classes=num_classes, in_channels=shape[0], width=width)
    return network, _residual_blocks(network)


def experts(num_classes: int, shape: tuple[int, int, int], *, depth: int, width: int) -> tuple[nn.Module, list[str]]:
    """Build a CIFAR ResNet with experts in every block."""
    network = ExpertResNet(depth, num_classes=num_classes, in_channels=shape[0], width=width)
    return network, _residual_blocks(network)


def dynamic(
    num_classes: int, shape: tuple[int, int, int], *, kind: Dynamic, depth: int, width: int
) -> tuple[nn.Module, list[str]]:
    """Build a CIFAR ResNet with dynamic parameters of a kind."""
    network = DynamicResNet(depth, kind, num_classes=num_classes, in_channels=shape[0], width=width)
    return network, _residual_blocks(network)


def supernet(
    num_classes: int, shape: tuple[int, int, int], *, layers: int, scales: int, width: int
) -> tuple[nn.Module, list[str]]:
    """Build a supernet of so many layers and scales, with `width` channels."""
    network = Supernet(layers=layers, scales=scales, width=width, num_classes=num_classes, input_shape=shape)
    return network, [f"layers.{i}" for i in range(layers)]


def tree(
    num_classes: int, shape: tuple[int, int, int], *, depth: int, branches: int, width: int
) -> tuple[nn.Module, list[str]]:
    """Build a CIFAR ResNet that is a tree; its blocks are whole stages."""
    network = TreeResNet(depth, branches, num_classes=num_classes, in_channels=shape[0], width=width)
    return network, ["layer1", "layer2", "layer3"]


def words(num_classes: int, _: tuple[int, int, int], *, vocabulary: int, width: int) -> tuple[nn.Module, list[str]]:
    """Build word vectors of so many numbers for so many words."""
    return Words(num_classes, vocabulary, width), ["vector"]


def torchvision_resnet(num_classes: int, _: tuple[int, int, int], *, name: str) -> tuple[nn.Module, list[str]]:
    """Build a ResNet of torchvision's."""
    network = getattr(torchvision.models, name)(num_classes=num_classes)
    return network, _residual_blocks(network)


def _residual_blocks(network: nn.Module) -> list[str]:
    """Return the names of the residual blocks of a ResNet with stages `layer1`, `layer2`, …."""
    return [
        f"{stage}.{i}"
        for stage, module in network.named_children()
        if stage.startswith("layer") and isinstance(module, nn.Sequential)
        for i in range(len(module))
    ]


def squeezenet(num_classes: int, _: tuple[int, int, int], *, name: str) -> tuple[nn.Module, list[str]]:
    """Build a SqueezeNet whose blocks are the fire modules around which its authors put bypasses.

    Those keep the shape, so that the identity can take their place (Iandola et al. 2016, section 6); the others, which
    widen, always run.
    """
    network = getattr(torchvision.models, name)(num_classes=num_classes)
    fires = [(key, one) for key, one in network.named_modules() if isinstance(one, Fire)]
    return network, [key for key, one in fires if one.inplanes == _outputs(one)]


def _outputs(fire: Fire) -> int:
    return fire.expand1x1.out_channels + fire.expand3x3.out_channels


def vit(num_classes: int, shape: tuple[int, int, int], *, name: str) -> tuple[nn.Module, list[str]]:
    """Build a vision transformer of torchvision's, for square images."""
    network = getattr(torchvision.models, name)(num_classes=num_classes, image_size=_square(name, shape))
    return network, _encoder_blocks(network)


def _encoder_blocks(network: nn.Module) -> list[str]:
    return [f"encoder.layers.{name}" for name, _ in network.get_submodule("encoder.layers").named_children()]


def _square(name: str, shape: tuple[int, int, int]) -> int:
    if shape[1] != shape[2]:
        raise ValueError(f"{name}: expected square images, got {shape[1]} x {shape[2]}. Resize them.")
    return shape[1]


class TinyViT(torchvision.models.VisionTransformer):
    """A vision transformer for small images: 8 x 8 patches of the image, 6 layers of dimension 64."""

    def __init__(self, image_size: int, num_classes: int):
        patch = max(1, image_size // 8)
        super().__init__(
            image_size, patch, num_layers=6, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=num_classes
        )


def tiny_vit(num_classes: int, shape: tuple[int, int, int]) -> tuple[nn.Module, list[str]]:
    """Build a vision transformer for small images."""
    network = TinyViT(_square("vit_tiny", shape), num_classes)
    return network, _encoder_blocks(network)


def small_vit(
    num_classes: int, shape: tuple[int, int, int], *, layers: int, width: int, patch: int
) -> tuple[nn.Module, list[str]]:
    """Build a vision transformer of so many layers and numbers in a token, for patches of so many pixels."""
    name = f"vit{layers}-w{width}-p{patch}"
    side, heads = _square(name, shape), max(1, width // 16)
    if side % patch or width % heads or not layers:
        raise ValueError(
            f"{name}: expected one or more layers, images that fill its patches, and a width of whole heads of 16, got "
            f"images of {side} pixels. Choose other numbers, as in vit4-w32-p2."
        )
    network = torchvision.models.VisionTransformer(
        side, patch, num_layers=layers, num_heads=heads, hidden_dim=width, mlp_dim=2 * width, num_classes=num_classes
    )
    if shape[0] != 3:
        network.conv_proj = nn.Conv2d(shape[0], width, patch, patch)
        nn.init.trunc_normal_(network.conv_proj.weight, std=(shape[0] * patch**2) ** -0.5)
    return network, _encoder_blocks(network)
