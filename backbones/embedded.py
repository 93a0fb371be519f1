"""Backbones, exits and readers of embedded data: trained on first use, kept in the cache."""

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data import ImageData
from ..data.cache import cache_dir
from .backbone import Backbone
from .card import WEIGHTS, describe, read_result, write_result
from .exit_training import ExitRecipe, exit_card, train_exits, write_exits
from .pretrain import check_held_out, final_accuracy, random_start
from .reader_training import ReaderRecipe, train_reader, write_reader
from .recipe import Recipe
from .recurrent_training import RecurrentRecipe, train_recurrent, write_recurrent
from .registry import _find, read_exits, read_reader
from .threads import threads
from .trainer import Trainer

EMBEDDED = {
    "digits": Recipe(epochs=60, batch_size=64, stochastic_depth=0.05),
    "noisy-digits": Recipe(epochs=10, batch_size=64, stochastic_depth=0.25),
    "cluttered-digits": Recipe(epochs=4, batch_size=64, stochastic_depth=0.5, depth_schedule="inner", spare_hard=3),
    "cluttered-canvas": Recipe(epochs=4, batch_size=64),
    "digit-clips": Recipe(epochs=3),
    "key-phrases": Recipe(epochs=1, batch_size=256),
}
"""Data that comes with skipgym, and how its backbones are trained on first use, in about a minute.

Stochastic depth sets how interesting skipping is. On digits at 0.15 the best fixed 4 of resnet20's 9 blocks come within
a point of the full network, and little is left to decide; without any, skipping half of them ruins most answers.
"""

EXIT_EPOCHS = {"digits": 40, "noisy-digits": 8, "cluttered-digits": 3, "cluttered-canvas": 2}
"""Passes in which exits of the embedded data's backbones are trained on first use."""

WIDTH_EPOCHS = {"digits": 10, "noisy-digits": 3, "cluttered-digits": 2}
"""Passes in which slimmable backbones of the embedded data are trained on first use."""
BRANCH_EPOCHS = {"digits": 20, "noisy-digits": 4, "cluttered-digits": 3}
"""Likewise, backbones through which images draw their way in training."""
READER_EPOCHS = {"digits": 30, "noisy-digits": 4, "cluttered-digits": 2, "cluttered-canvas": 3, "digit-clips": 4}
"""Likewise, readers of crops or frames."""
STEP_EPOCHS = {"key-phrases": 8, "digit-clips": 4}
"""Likewise, recurrent networks."""

_ROOM = "Set SKIPGYM_CACHE to a directory with room and write permission."


def pretrained(name: str, data: ImageData, **changes: Any) -> Backbone:
    """Return a trained backbone for embedded data: from the cache, or trained now and kept there.

    Processes that start at the same time each train it, to the same weights; one of them puts it in the cache.

    Args:
        name: As for `make_backbone`.
        data: Embedded, with the policy's part held out.
        changes: Fields of the data's recipe that are to differ, such as `scales`.

    Raises:
        ValueError: If the name is unknown, or the data is not embedded.
    """
    _find(name)
    if data.name not in EMBEDDED:
        raise ValueError(
            f"backbone {name} for {data.name}: expected a file with its weights, got none. Pass --weights FILE, or "
            f"train them first: skipgym pretrain --backbone {name} --data {data.name} --out RUN, then "
            f"--weights RUN/{WEIGHTS}. (Trained on first use without: {', '.join(sorted(EMBEDDED))}.)"
        )
    check_held_out(data)
    recipe = replace(embedded_recipe(name, data), **changes)
    directory = cache_dir() / "backbones" / f"{name}-{data.fingerprint}-{recipe.digest()}"
    kept = _intact(directory, name, data)
    return kept or _train_embedded(name, data, recipe, directory)


def embedded_recipe(name: str, data: ImageData) -> Recipe:
    """Return how a backbone is trained on first use: as others of this data, at full depth where that is needed."""
    recipe, entry = EMBEDDED[data.name], _find(name)
    if not entry.skippable:
        return replace(recipe, stochastic_depth=0.0, spare_hard=0.0)
    if entry.slimmable:
        return Recipe(epochs=WIDTH_EPOCHS.get(data.name, 2), batch_size=recipe.batch_size)
    if entry.branched:
        return Recipe(epochs=BRANCH_EPOCHS.get(data.name, 3), batch_size=recipe.batch_size)
    return recipe


def pretrained_exits(backbone: Backbone, data: ImageData, places: Sequence[int] = ()) -> Backbone:
    """Return a backbone for embedded data with exits: from the cache, or trained now and kept there.

    Args:
        backbone: Any, trained.
        data: Embedded, with the policy's part held out.
        places: After how many blocks each exit is; three that part the blocks' cost evenly where none are given.

    Raises:
        ValueError: If the places are out of order, or the data is not embedded.
    """
    if data.name not in EXIT_EPOCHS:
        raise ValueError(
            f"exits of {backbone.name}: expected them beside its weights, got none. Train them on {data.name}: skipgym "
            f"pretrain --backbone {backbone.name} --init WEIGHTS --data {data.name} --exits … --out DIR, then "
            f"--weights DIR/{WEIGHTS}. (Trained on first use without: {', '.join(sorted(EXIT_EPOCHS))}.)"
        )
    check_held_out(data)
    recipe = ExitRecipe(places=tuple(places), epochs=EXIT_EPOCHS[data.name])
    return _once(
        "exits",
        "exits",
        (backbone, data, recipe),
        read=lambda weights: read_exits(backbone, weights),
        train=lambda: train_exits(backbone, data, recipe, quiet=False),
        write=lambda weights, trained: write_exits(weights, trained, exit_card(trained, data, asdict(recipe))),
    )


def pretrained_reader(backbone: Backbone, data: ImageData, **shape: Any) -> Backbone:
    """Return a backbone for embedded data with a reader: from the cache, or trained now and kept there.

    Args:
        backbone: Any, trained.
        data: Embedded, with the policy's part held out.
        shape: Fields of `ReaderRecipe`: `glance` and `patch`, or `moments` and `preview`, and others where they are not
            the defaults.

    Raises:
        ValueError: If the sizes do not fit, or the data is not embedded.
    """
    if data.name not in READER_EPOCHS:
        raise ValueError(
            f"reader of {backbone.name}: expected one beside its weights, got none. Train it on {data.name}: skipgym "
            f"pretrain --backbone {backbone.name} --init WEIGHTS --data {data.name} "
            f"{'--moments … --preview …' if data.is_clips else '--glance … --patch …'} --out DIR, then --weights "
            f"DIR/{WEIGHTS}. (Trained on first use without: {', '.join(sorted(READER_EPOCHS))}.)"
        )
    check_held_out(data)
    recipe = ReaderRecipe(**shape, epochs=READER_EPOCHS[data.name])
    recipe.check_data(data)
    recipe.build(backbone)  # what does not fit is told first
    return _once(
        "readers",
        "reader",
        (backbone, data, recipe),
        read=lambda weights: read_reader(backbone, weights),
        train=lambda: train_reader(backbone, data, recipe, quiet=False),
        write=lambda weights, trained: write_reader(weights, trained, data, recipe),
    )


def pretrained_recurrent(backbone: Backbone, data: ImageData, **shape: Any) -> Backbone:
    """Return a backbone for embedded data with a recurrent network: from the cache, or trained now and kept there.

    Args:
        backbone: Any, trained.
        data: Embedded clips or texts, with the policy's part held out.
        shape: Fields of `RecurrentRecipe` where they are not the defaults.

    Raises:
        ValueError: If it does not fit, or the data is not embedded.
    """
    if data.name not in STEP_EPOCHS:
        raise ValueError(
            f"recurrent network: expected one beside the weights of {backbone.name}, got none. Train it: "
            f"skipgym pretrain --backbone {backbone.name} --data {data.name} --recurrent gru --out DIR, then --weights "
            f"DIR/{WEIGHTS}. (Trained on first use without: {', '.join(sorted(STEP_EPOCHS))}.)"
        )
    check_held_out(data)
    recipe = RecurrentRecipe(**shape, epochs=STEP_EPOCHS[data.name])
    recipe.check_data(data)
    recipe.build(backbone, data.train.images.shape[1])  # what does not fit is told first
    return _once(
        "recurrent",
        "recurrent network",
        (backbone, data, recipe),
        read=lambda weights: read_reader(backbone, weights),
        train=lambda: train_recurrent(backbone, data, recipe, quiet=False),
        write=lambda weights, trained: write_recurrent(weights, trained, data, recipe),
    )


def _once(
    directory: str,
    what: str,
    of: tuple[Backbone, ImageData, ExitRecipe | ReaderRecipe | RecurrentRecipe],
    *,
    read: Callable[[Path], Backbone],
    train: Callable[[], Backbone],
    write: Callable[[Path, Backbone], object],
) -> Backbone:
    """Return a backbone with what it carries: kept in the cache, or trained now and kept there.

    Args:
        directory: Of the cache, for this kind.
        what: It is called in a warning.
        of: Network, data and recipe, from which its weights follow.
        read: Returns what was kept at a path.
        train: Returns it anew.
        write: Keeps it at a path.
    """
    backbone, data, recipe = of
    name = f"{backbone.fingerprint()}-{data.fingerprint}-{recipe.digest()}.safetensors"
    weights = cache_dir() / directory / name
    try:
        return read(weights)
    except (ValueError, OSError):  # absent, or damaged: to be trained
        with threads(1):
            trained = train()
    try:
        weights.parent.mkdir(parents=True, exist_ok=True)
        write(weights, trained)
    except OSError as error:
        warnings.warn(f"The trained {what} cannot be kept in {weights} ({error}). {_ROOM}", stacklevel=3)
    return trained


def _intact(directory: Path, name: str, data: ImageData) -> Backbone | None:
    try:
        return read_result(directory, name, data)
    except (ValueError, OSError):  # absent, or damaged: to be trained
        return None


def _train_embedded(name: str, data: ImageData, recipe: Recipe, directory: Path) -> Backbone:
    trainer = Trainer(random_start(name, data, recipe.seed), data.frames(), recipe)
    with threads(1):  # faster for tiny images, and the weights do not depend on how many cores there are
        for _ in tqdm(range(recipe.epochs), f"training {name} on {data.name}, once", leave=False, disable=None):
            trainer.run_epoch()
    card = describe(trainer.finish(), data, asdict(recipe), final_accuracy(trainer))
    try:
        _publish(directory, trainer.backbone, card, data)
    except OSError as error:
        warnings.warn(
            f"The trained backbone is not kept: cannot write {directory} ({error}). {_ROOM}",
            stacklevel=3,
        )
    return trainer.backbone


def _publish(directory: Path, backbone: Backbone, card: dict[str, Any], data: ImageData) -> None:
    """Put a result in its place in one step; what another process put there meanwhile stays if it is whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".new-") as scratch:
        whole, damaged = Path(scratch) / "whole", Path(scratch) / "damaged"
        whole.mkdir()
        write_result(whole, backbone, card, command=f"skipgym.backbones.embedded.pretrained({backbone.name!r}, data)")
        if directory.exists() and _intact(directory, backbone.name, data) is None:
            os.replace(directory, damaged)
        try:
            os.replace(whole, directory)
        except OSError:
            if _intact(directory, backbone.name, data) is None:
                raise
