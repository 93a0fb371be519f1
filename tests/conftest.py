import ast
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from hypothesis import settings
from torch import nn

from skipgym.backbones import Backbone, embedded, make_backbone
from skipgym.backbones.dynamic import Deformable
from skipgym.backbones.exits import Exit
from skipgym.backbones.reader import Reader
from skipgym.backbones.recurrent import Recurrent
from skipgym.data import Augment, ImageData, Part
from skipgym.data.images import PART_NAMES
from skipgym.referee.workers import REGISTRIES
from skipgym.registry import plugins

torch.set_num_threads(1)  # the networks are tiny: threads would wait for each other

settings.register_profile("skipgym", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("skipgym")

CLASSES = 4


@pytest.fixture(scope="session", autouse=True)
def run_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what tests cache away from the user's cache; all workers of a run share what one of them has trained."""
    own = tmp_path_factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIPGYM_CACHE", str(path))
        yield path


@pytest.fixture(scope="module")
def briefly() -> Iterator[None]:
    """Make few images, and train on first use in one pass over some: for tests that want a network, not a good one.

    The cache tells such networks from others by their data, and by the one epoch of their recipes.
    """

    def on_few(train: Callable) -> Callable:
        def call(backbone: Backbone, data: ImageData, *rest, **options):
            few = replace(data, train=data.train.subset(256), val=data.val.subset(64))
            return train(backbone, few, *rest, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        once = dict.fromkeys(PART_NAMES, 1)  # of each digit
        patch.setattr(importlib.import_module("skipgym.data.cluttered"), "COPIES", once)
        patch.setattr(importlib.import_module("skipgym.data.digit_clips"), "COPIES", once)
        patch.setattr(importlib.import_module("skipgym.data.phrases"), "COUNTS", dict.fromkeys(PART_NAMES, 300))
        brief = {name: replace(recipe, epochs=1) for name, recipe in embedded.EMBEDDED.items()}
        patch.setattr(embedded, "EMBEDDED", brief)
        for epochs in ("EXIT_EPOCHS", "WIDTH_EPOCHS", "BRANCH_EPOCHS", "READER_EPOCHS", "STEP_EPOCHS"):
            patch.setattr(embedded, epochs, dict.fromkeys(getattr(embedded, epochs), 1))
        for train in ("Trainer", "train_exits", "train_reader", "train_recurrent"):
            patch.setattr(embedded, train, on_few(getattr(embedded, train)))
        yield


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    """Return a function that gives a network what a used one has, so that folding and offsets matter."""

    def fill(network: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                with torch.no_grad():
                    module.running_mean.normal_(0, 0.5, generator=generator)
                    module.running_var.uniform_(0.5, 2.0, generator=generator)
                    if module.affine:  # a universally slimmable network shares scale and shift
                        module.weight.uniform_(0.5, 1.5, generator=generator)
                        module.bias.normal_(0, 0.3, generator=generator)
            elif isinstance(module, Deformable):
                nn.init.normal_(module.offset.weight, std=0.2, generator=generator)
        return network.eval()

    return fill


VOCABULARY = tuple("abcdefgh")
READERS: dict = {
    "crops": {"glance": 4, "patch": 4, "zooms": 2, "scales": 2},
    "frames": {"moments": 4, "preview": 2},
    "slots": {"moments": 4, "preview": 2, "memory": "slots"},
    "steps": {"steps": 6, "skim": 3},
}


def equip(backbone: Backbone, randomise: Callable[..., nn.Module], seed: int = 0, reader: str = "crops") -> Backbone:
    """Let a backbone carry random exits, two smaller networks and a reader, so that a task can take it."""
    classes, shape = backbone.num_classes, backbone.input_shape
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if backbone.vocabulary:
            width = backbone.blocks[-1].out_shape[0]
            return backbone.with_reader(randomise(Recurrent(width, classes, **READERS["steps"], hidden=8), seed))
        exits = [Exit(n, backbone.blocks[n - 1].out_shape, classes) for n in (1, 2)]
        smaller = [
            make_backbone(f"resnet8-w{width}", num_classes=classes, input_shape=shape, mean=[mean] * shape[0])
            for width, mean in ((2, 0.4), (3, 0.5))
        ]
        maps = backbone.blocks[-1].out_shape
        carried = (Recurrent if reader == "steps" else Reader)(maps[0], classes, **READERS[reader], hidden=8)
    for module in (*exits, *(one.network for one in smaller), carried):
        randomise(module, seed)
    equipped = backbone.with_exits(exits).with_smaller(smaller)
    return equipped.with_reader(carried) if len(maps) == 3 else equipped


@pytest.fixture(scope="session")
def random_backbone(randomise: Callable[..., nn.Module]) -> Callable[..., Backbone]:
    """Return a function that builds a backbone with random weights and BatchNorm statistics, of 4 classes."""

    def build(
        name: str = "resnet8-w4",
        *,
        input_shape: tuple[int, int, int] = (1, 8, 8),
        seed: int = 0,
        reader: str = "crops",
    ) -> Backbone:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            of_words = {"input_shape": (1, 1, 2), "vocabulary": VOCABULARY}
            shape = of_words if name.startswith("words") else {"input_shape": input_shape}
            backbone = make_backbone(name, num_classes=CLASSES, **shape)
        if name.startswith("vit"):  # torchvision's head begins with zeros: every answer would be the same
            nn.init.normal_(
                backbone.network.get_submodule("heads.head").weight, generator=torch.Generator().manual_seed(seed)
            )
        randomise(backbone.network, seed)
        return equip(backbone, randomise, seed, reader)

    return build


@pytest.fixture(scope="session")
def tiny_backbone(random_backbone: Callable[..., Backbone]) -> Backbone:
    """Return a random network of 3 blocks for grey 8x8 images. Not to be changed."""
    return random_backbone()


@pytest.fixture(scope="session")
def make_noise() -> Callable[..., ImageData]:
    """Return a function that makes noise of 4 classes: so many inputs for each part, by default grey 8x8 images."""

    def make(*, shape: tuple[int, ...] = (1, 8, 8), **counts: int) -> ImageData:
        def part(count: int, seed: int) -> Part:
            generator = torch.Generator().manual_seed(seed)
            images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
            return Part(images, torch.randint(CLASSES, (count,), generator=generator))

        counts = {"train": 8, "policy": 40, "val": 8, "test": 8} | counts
        return ImageData(
            name="noise",
            **{name: part(count, seed) for seed, (name, count) in enumerate(counts.items())},
            class_names=("a", "b", "c", "d"),
            mean=(0.5,),
            std=(0.25,),
            augment=Augment(pad=1),
            fingerprint="0" * 16,
            note="made for tests",
        )

    return make


@pytest.fixture(scope="session")
def tiny_images(make_noise: Callable[..., ImageData]) -> ImageData:
    """Return a little noise."""
    return make_noise()


@pytest.fixture(scope="session")
def code_lines() -> Callable[[str], int]:
    """Return a function that counts lines of code: no docstrings, comments and blank lines."""

    def count(source: str) -> int:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module) and ast.get_docstring(node):
                node.body = node.body[1:]
        return len(ast.unparse(tree).replace("\n\n", "\n").strip().splitlines())

    return count


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Return a function that lays out an installed package with entry points, without building one."""
    monkeypatch.syspath_prepend(tmp_path)
    modules, ids = set(sys.modules), set(gym.registry)
    for registry in REGISTRIES.values():
        registry.names()  # ours are imported once, and register themselves once
        for attribute, kind in (("registered", dict), ("_broken", dict)):
            monkeypatch.setattr(registry, attribute, kind(getattr(registry, attribute)))

    def lay_out(package: str, source: str, **points: str) -> Path:
        """Write the module `package`, and points such as tasks="name = package:Class"."""
        (tmp_path / f"{package}.py").write_text(source)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "".join(f"[skipgym.{group}]\n{lines}\n" for group, lines in points.items())
        )
        plugins.cache_clear()
        importlib.invalidate_caches()
        return tmp_path

    yield lay_out
    for name in set(gym.registry) - ids:
        del gym.registry[name]
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    monkeypatch.undo()
    plugins.cache_clear()
