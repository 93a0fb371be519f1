"""Backbones by name, and how their weights are read."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..names import unknown
from ..registry import Registry, first_line
from . import builders
from .backbone import Backbone
from .cifar_resnet import thinned
from .classes import knows_others, of_other_shape, restricted
from .exits import described_in, exit_files, exits_of_card
from .msdnet import MSDNet
from .ranet import RANet
from .reader import build_reader, reader_files
from .slimmable import Kind
from .words import Words

Builder = Callable[..., tuple[nn.Module, list[str]]]


@dataclass(frozen=True)
class Entry:
    """A registered backbone: `build(num_classes, input_shape)` gives the network and the names of its blocks."""

    build: Builder
    colour_only: bool = False  # takes three channels; grey images are repeated
    skippable: bool = True  # its blocks can be left out
    slimmable: bool = False  # it is trained at several widths
    branched: bool = False  # in training each image draws its way through it
    words: bool = False  # it takes words; `build` wants the number of known ones too


def _adopt(name: str, found: Any) -> tuple[Entry, str]:
    """Take a plug-in's builder; one with more to say registers itself."""
    build: Builder = found
    if not callable(build):
        raise TypeError(f"expected a function of the classes and the input shape, got {found!r}")
    return Entry(build), first_line(build)


REGISTRY: Registry[Entry] = Registry("backbone", group="skipgym.backbones", adopt=_adopt)


def register_backbone(
    name: str,
    description: str,
    *,
    colour_only: bool = False,
    skippable: bool = True,
    slimmable: bool = False,
    branched: bool = False,
    words: bool = False,
) -> Callable[[Builder], Builder]:
    """Register a builder under a name.

    Args:
        name: What it is called.
        description: One line.
        colour_only: Whether it takes three channels only; grey images are repeated.
        skippable: Whether its blocks can be left out.
        slimmable: Whether it is trained at several widths.
        branched: Whether in training each image draws its way through it.
        words: Whether it takes words.

    Raises:
        ValueError: If the name is taken.
    """

    def register(build: Builder) -> Builder:
        function = build.func if isinstance(build, partial) else build
        entry = Entry(build, colour_only, skippable, slimmable, branched, words)
        REGISTRY.add(name, entry, description, module=function.__module__)
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
    vocabulary: Sequence[str] = (),
) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: A registered name; `-wK` after a CIFAR ResNet's gives it K channels in the first stage (`resnet20-w8`);
            `msdnet4-s2-w4` has 4 exits, 2 scales and 4 channels at the finest, likewise `ranet4-s2-w4`.
            `slim-` or `us-` before it makes it slimmable (`us-resnet20-w8`), `experts-` gives its blocks experts,
            `se-` squeeze-and-excitation, `deform-` its last stage deformable convolutions.
            `supernet4-s3-w8` has 4 layers of 3 scales; `tree-resnet20-b3-w12` has 3 branches at each node.
        num_classes: Outputs.
        input_shape: (C, H, W) of the images.
        mean: Of each channel, for images in 0…1; ImageNet's where not given.
        std: Likewise.
        class_names: What the outputs mean.
        vocabulary: Known words, where the inputs are words.

    Raises:
        ValueError: If the name is unknown or the images do not suit the architecture.
    """
    channels, height, width = input_shape
    entry = _find(name)
    shape = (3 if entry.colour_only else channels, height, width)
    if entry.words != bool(vocabulary):
        expected, got = ("words", "none") if entry.words else ("images", f"a vocabulary of {len(vocabulary)} words")
        raise ValueError(
            f"backbone {name}: expected {expected}, got {got}. Take --backbone words for texts, which come with a "
            "vocabulary, and another for images."
        )
    build = partial(entry.build, vocabulary=len(vocabulary)) if entry.words else entry.build
    try:
        network, blocks = build(num_classes, shape)
        if isinstance(network, Words):
            mean, std = network.mean, network.std  # its input are numbers, not colours
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
    if vocabulary:
        backbone.vocabulary = tuple(vocabulary)
        backbone.config["vocabulary"] = list(vocabulary)
    return backbone


def load_backbone(
    name: str,
    weights: str | Path,
    *,
    thin: bool = False,
    class_indices: Sequence[int] = (),
    other_classes: bool = False,
    **options: Any,
) -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: As for `make_backbone`.
        weights: A `.safetensors` file or a checkpoint (`.pt`, `.pth`, `.th`). Next to weights that `skipgym pretrain`
            wrote lies a `.json` with the normalisation they were trained with, which is used; likewise
            their exits and their reader.
        thin: Take the weights of a deeper ResNet too, without some of its blocks: something to train on from.
        class_indices: Of weights that know more classes, which of their outputs to keep, in the order of the wanted
            classes. The last layer then has these rows only, and answers on them as before.
        other_classes: Take weights that know other classes too, for who answers from features alone: zeros stand where
            the network would answer.
        options: As for `make_backbone`.

    Raises:
        ValueError: If the file is not readable or belongs to another architecture, or the indices do not fit it.
    """
    path = Path(weights)
    state = read_weights(path)
    saved = _read_card(path.with_suffix(".json"))
    if saved:
        if saved["name"] != name and not thin:
            raise ValueError(f"weights {path}: expected those of {name}, got those of {saved['name']}. Pass that name.")
        options = {**options, **{key: value for key, value in saved.items() if key != "name"}}
    backbone = make_backbone(name, **options)
    if class_indices:
        state = restricted(state, backbone, class_indices)
    elif other_classes and knows_others(state, backbone):
        own = backbone.network.state_dict()
        state |= {key: own[key].zero_() for key in of_other_shape(state, backbone)}
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
        words = {"vocabulary": saved["vocabulary"]} if "vocabulary" in saved else {}
        return {key: saved[key] for key in ("name", "mean", "std")} | words
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
        begun_new = not card["pretrain"].get("init") or card.get("init_knew_other_classes", False)
        return card["data"]["fingerprint"] == data_fingerprint and begun_new
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
        return Entry(partial(builders.cifar, depth=depth, width=width))
    if match := re.fullmatch(r"(msdnet|ranet)(\d+)(?:-s(\d+))?(?:-w(\d+))?", name):
        given = zip(("exits", "scales", "width"), match.groups()[1:], strict=True)
        options = {key: int(value) for key, value in given if value}
        return Entry(partial(builders.stepped, kind=builders.STEPPED[match[1]], **options), skippable=False)
    if match := re.fullmatch(r"words-w(\d+)", name):
        return Entry(partial(builders.words, width=int(match[1])), words=True)
    if match := re.fullmatch(r"vit(\d+)-w(\d+)-p(\d+)", name):
        layers, width, patch = map(int, match.groups())
        return Entry(partial(builders.small_vit, layers=layers, width=width, patch=patch))
    if match := re.fullmatch(r"(slim|us)-resnet(\d+)(?:-w(\d+))?", name):
        kind: Any = match[1]
        build = partial(builders.slimmable, kind=kind, depth=int(match[2]), width=int(match[3] or 16))
        return Entry(build, slimmable=True)
    if match := re.fullmatch(r"experts-resnet(\d+)(?:-w(\d+))?", name):
        build = partial(builders.experts, depth=int(match[1]), width=int(match[2] or 16))
        return Entry(build, branched=True)
    if match := re.fullmatch(r"(se|deform)-resnet(\d+)(?:-w(\d+))?", name):
        put: Any = match[1]
        return Entry(partial(builders.dynamic, kind=put, depth=int(match[2]), width=int(match[3] or 16)))
    if match := re.fullmatch(r"supernet(\d+)(?:-s(\d+))?(?:-w(\d+))?", name):
        layers, scales, width = int(match[1]), int(match[2] or 3), int(match[3] or 16)
        return Entry(partial(builders.supernet, layers=layers, scales=scales, width=width), branched=True)
    if match := re.fullmatch(r"tree-resnet(\d+)(?:-b(\d+))?(?:-w(\d+))?", name):
        depth, branches, width = int(match[1]), int(match[2] or 2), int(match[3] or 16)
        return Entry(partial(builders.tree, depth=depth, branches=branches, width=width), branched=True)
    raise ValueError(unknown("backbone", name, REGISTRY.known(), "For a network of your own use skipgym.wrap."))


for _depth in range(8, 111, 6):
    _name = f"cifar-resnet{_depth}" if _depth == 50 else f"resnet{_depth}"
    register_backbone(_name, f"CIFAR ResNet of {_depth} layers, {(_depth - 2) // 2} blocks")(
        partial(builders.cifar, depth=_depth, width=16)
    )
for _depth in (20, 32, 56):
    _kinds: dict[Kind, str] = {"slim": "0.25, 0.5, 0.75, 1", "us": "0.25 … 1"}
    for _kind, _widths in _kinds.items():
        register_backbone(
            f"{_kind}-resnet{_depth}", f"slimmable CIFAR ResNet of {_depth} layers, widths {_widths}", slimmable=True
        )(partial(builders.slimmable, kind=_kind, depth=_depth, width=16))
for _depth in (8, 20, 32, 56):
    register_backbone(
        f"experts-resnet{_depth}", f"CIFAR ResNet of {_depth} layers, three experts in each block", branched=True
    )(partial(builders.experts, depth=_depth, width=16))
    register_backbone(f"se-resnet{_depth}", f"CIFAR ResNet of {_depth} layers with squeeze-and-excitation")(
        partial(builders.dynamic, kind="se", depth=_depth, width=16)
    )
    register_backbone(f"deform-resnet{_depth}", f"CIFAR ResNet of {_depth} layers, its last stage deformable")(
        partial(builders.dynamic, kind="deform", depth=_depth, width=16)
    )
register_backbone(
    "supernet6", "supernet of 6 layers with a cell at each of 3 scales, 16 channels (supernet4-s3-w8)", branched=True
)(partial(builders.supernet, layers=6, scales=3, width=16))
for _depth in (8, 20, 32, 56):
    register_backbone(
        f"tree-resnet{_depth}", f"CIFAR ResNet of {_depth} layers as a tree of 8 leaves (-b3: 27)", branched=True
    )(partial(builders.tree, depth=_depth, branches=2, width=16))
for _depth in (18, 34, 50, 101, 152):
    register_backbone(f"resnet{_depth}", f"torchvision ResNet-{_depth}", colour_only=True)(
        partial(builders.torchvision_resnet, name=f"resnet{_depth}")
    )
for _name in ("squeezenet1_0", "squeezenet1_1"):
    register_backbone(_name, f"torchvision SqueezeNet {_name[-3:].replace('_', '.')}", colour_only=True)(
        partial(builders.squeezenet, name=_name)
    )
for _name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"):
    register_backbone(_name, f"torchvision vision transformer {_name}", colour_only=True)(
        partial(builders.vit, name=_name)
    )
register_backbone("vit_tiny", "vision transformer of 6 blocks for small images", colour_only=True)(builders.tiny_vit)
register_backbone("msdnet", "MSDNet of 7 exits at 3 scales, trained with it (msdnet7-s3-w8)", skippable=False)(
    partial(builders.stepped, kind=MSDNet)
)
register_backbone("ranet", "RANet of 6 exits at 3 resolutions, trained with it (ranet6-s3-w8)", skippable=False)(
    partial(builders.stepped, kind=RANet)
)
register_backbone("words", "word vectors of 32 numbers, for texts (words-w64)", words=True)(
    partial(builders.words, width=32)
)
