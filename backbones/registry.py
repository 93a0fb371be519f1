"""Backbones by name, and how their weights are read."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from ..names import unknown
from ..registry import Registry, first_line
from .backbone import Backbone
from .cifar_resnet import CifarResNet, thinned
from .exits import described_in, exit_files, exits_of_card
from .reader import build_reader, reader_files

Builder = Callable[[int, tuple[int, int, int]], tuple[nn.Module, list[str]]]


@dataclass(frozen=True)
class Entry:
    """A registered backbone: `build(num_classes, input_shape)` gives the network and the names of its blocks."""

    build: Builder
    colour_only: bool = False  # takes three channels; grey images are repeated


def _adopt(name: str, found: Any) -> tuple[Entry, str]:
    """Take a plug-in's builder; one with more to say registers itself."""
    build: Builder = found
    if not callable(build):
        raise TypeError(f"expected a function of the classes and the input shape, got {found!r}")
    return Entry(build), first_line(build)


REGISTRY: Registry[Entry] = Registry("backbone", group="skipgym.backbones", adopt=_adopt)


def register_backbone(name: str, description: str, *, colour_only: bool = False) -> Callable[[Builder], Builder]:
    """Register a builder under a name.

    Raises:
        ValueError: If the name is taken.
    """

    def register(build: Builder) -> Builder:
        function = build.func if isinstance(build, partial) else build
        REGISTRY.add(name, Entry(build, colour_only), description, module=function.__module__)
        return build

    return register


def backbone_names() -> dict[str, str]:
    """Return the known names and their descriptions."""
    return REGISTRY.names()


def make_backbone(
    name: str,
    *,
    num_classes: int = 10,
    input_shape: Sequence[int] = (3, 32, 32),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: A registered name; `-wK` after a CIFAR ResNet's gives it K channels in the first stage (`resnet20-w8`).
        num_classes: Outputs.
        input_shape: (C, H, W) of the images.
        mean: Of each channel, for images in 0…1; ImageNet's where not given.
        std: Likewise.
        class_names: What the outputs mean.

    Raises:
        ValueError: If the name is unknown or the images do not suit the architecture.
    """
    channels, height, width = input_shape
    entry = _find(name)
    shape = (3 if entry.colour_only else channels, height, width)
    try:
        network, blocks = entry.build(num_classes, shape)
        backbone = Backbone(network, blocks, name=name, input_shape=shape, mean=mean, std=std, class_names=class_names)
    except (RuntimeError, AssertionError) as error:  # torchvision asserts that patches fill the image
        raise ValueError(
            f"{name} on {height} x {width} images: {str(error).rstrip('.!')}. Use larger images, for a vision "
            "transformer a multiple of its patch size (pretrain: --image-size), or another backbone."
        ) from error
    backbone.config = {
        "name": name,
        "num_classes": num_classes,
        "input_shape": list(shape),
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "class_names": list(backbone.class_names),
    }
    return backbone


def load_backbone(name: str, weights: str | Path, *, thin: bool = False, **options: Any) -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: As for `make_backbone`.
        weights: A `.safetensors` file or a checkpoint (`.pt`, `.pth`, `.th`). Next to weights that `skipgym pretrain`
            wrote lies a `.json` with the normalisation they were trained with, which is used; likewise
            their exits and their reader.
        thin: Take the weights of a deeper ResNet too, without some of its blocks: something to train on from.
        options: As for `make_backbone`.

    Raises:
        ValueError: If the file is not readable or belongs to another architecture.
    """
    path = Path(weights)
    state = read_weights(path)
    saved = _read_card(path.with_suffix(".json"))
    if saved:
        if saved["name"] != name and not thin:
            raise ValueError(f"weights {path}: expected those of {name}, got those of {saved['name']}. Pass that name.")
        options = {**options, "mean": saved["mean"], "std": saved["std"]}
    backbone = make_backbone(name, **options)
    load_state(backbone, thinned(state, backbone.network.state_dict()) if thin else state, str(path))
    if not thin and exit_files(path)[1].is_file():
        backbone = read_exits(backbone, path)
    if not thin and reader_files(path)[1].is_file():
        backbone = read_reader(backbone, path)
    return backbone


def read_exits(backbone: Backbone, weights: Path) -> Backbone:
    """Return a backbone with the exits that lie beside its weights.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If they are damaged, or were trained on another network.
    """
    tensors, page = exit_files(weights)
    state, shapes = read_weights(tensors), [block.out_shape for block in backbone.blocks]
    try:
        card = json.loads(page.read_text(encoding="utf-8"))
        trunk, classes = backbone.fingerprint(), backbone.num_classes
        return backbone.with_exits(exits_of_card(card, state, trunk=trunk, shapes=shapes, classes=classes))
    except ValueError as error:
        raise ValueError(
            f"exits {page}: {str(error).rstrip('.')}. Train them again (skipgym pretrain --init {weights} --exits …), "
            "or move them away from these weights."
        ) from error


def read_reader(backbone: Backbone, weights: Path) -> Backbone:
    """Return a backbone with the reader that lies beside its weights.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or was trained on another network.
    """
    tensors, page = reader_files(weights)
    state = read_weights(tensors)
    try:
        described = described_in(json.loads(page.read_text(encoding="utf-8")), "reader", state, backbone.fingerprint())
        return backbone.with_reader(build_reader(described, state))
    except ValueError as error:
        raise ValueError(
            f"reader {page}: {str(error).rstrip('.')}. Train it again (skipgym pretrain --init {weights} --patch …), "
            "or move it away from these weights."
        ) from error


def _read_card(path: Path) -> dict[str, Any] | None:
    """Return name and normalisation from the card next to weights, None if there is no such card."""
    try:
        saved = json.loads(path.read_text())["backbone"]
        return {key: saved[key] for key in ("name", "mean", "std")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the card that skipgym pretrain writes next to its weights, got something else "
            f"({error!r}). Move the weights away from it."
        ) from error


def held_out(weights: str | Path, data_fingerprint: str) -> bool:
    """Return whether weights are known, from the card beside them, not to have seen the policy's part of the data."""
    try:
        card = json.loads(Path(weights).with_suffix(".json").read_text())
        return card["data"]["fingerprint"] == data_fingerprint and not card["pretrain"].get("init")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no card, or not one of ours
        return False


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a file, without unpickling anything else.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything but tensors by name, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights: expected a file, got {path}, which does not exist. Check the path.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the readers raise almost anything
        raise ValueError(
            f"weights {path}: expected a safetensors file or a checkpoint of tensors only, "
            f"got a file that cannot be read as one ({error}). It is truncated or of another kind; get it again."
        ) from error
    if isinstance(state, dict):
        state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"weights {path}: expected tensors by name, got {type(state).__name__}. Save a state_dict.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_state(backbone: Backbone, state: dict[str, Tensor], source: str) -> None:
    """Load weights into a backbone's network; half precision becomes single.

    Raises:
        ValueError: If names or shapes differ, or a weight is not finite.
    """
    own = backbone.network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or extra or shapes:
        detail = "; ".join(
            f"{what}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''} ({len(keys)})"
            for what, keys in (("missing", missing), ("not in it", extra), ("of another shape", shapes))
            if keys
        )
        raise ValueError(
            f"weights {source}: expected those of {backbone.name} with {backbone.num_classes} classes, got {detail}. "
            "They belong to another architecture or number of classes."
        )
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"weights {source}: expected finite numbers, got NaN or infinity in {', '.join(broken[:3])}.")
    backbone.network.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, strict=False)


def _find(name: str) -> Entry:
    if entry := REGISTRY.find(name):
        return entry
    if match := re.fullmatch(r"(?:cifar-)?resnet(\d+)-w(\d+)", name):
        depth, width = map(int, match.groups())
        return Entry(partial(_cifar, depth=depth, width=width))
    raise ValueError(unknown("backbone", name, REGISTRY.known(), "For a network of your own use skipgym.wrap."))


def _cifar(num_classes: int, shape: tuple[int, int, int], *, depth: int, width: int) -> tuple[nn.Module, list[str]]:
    network = CifarResNet(depth, num_classes=num_classes, in_channels=shape[0], width=width)
    return network, _residual_blocks(network)


def _torchvision_resnet(num_classes: int, _: tuple[int, int, int], *, name: str) -> tuple[nn.Module, list[str]]:
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


def _vit(num_classes: int, shape: tuple[int, int, int], *, name: str) -> tuple[nn.Module, list[str]]:
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


def _tiny_vit(num_classes: int, shape: tuple[int, int, int]) -> tuple[nn.Module, list[str]]:
    network = TinyViT(_square("vit_tiny", shape), num_classes)
    return network, _encoder_blocks(network)


for _depth in range(8, 111, 6):
    _name = f"cifar-resnet{_depth}" if _depth == 50 else f"resnet{_depth}"
    register_backbone(_name, f"CIFAR ResNet of {_depth} layers, {(_depth - 2) // 2} blocks")(
        partial(_cifar, depth=_depth, width=16)
    )
for _depth in (18, 34, 50, 101, 152):
    register_backbone(f"resnet{_depth}", f"torchvision ResNet-{_depth}", colour_only=True)(
        partial(_torchvision_resnet, name=f"resnet{_depth}")
    )
for _name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"):
    register_backbone(_name, f"torchvision vision transformer {_name}", colour_only=True)(partial(_vit, name=_name))
register_backbone("vit_tiny", "vision transformer of 6 blocks for small images", colour_only=True)(_tiny_vit)
