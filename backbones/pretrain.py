"""Train backbones into a directory that can be resumed."""

import json
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from ..data import ImageData, load
from .backbone import Backbone
from .card import CARD, WEIGHTS, describe, read_result, write_result, write_whole
from .classes import knows_others
from .exit_training import exit_card, train_exits, write_exits
from .exits import exit_files
from .reader import reader_files
from .reader_training import train_reader, write_reader
from .recipe import PretrainConfig
from .recurrent_training import train_recurrent, write_recurrent
from .registry import _find, load_backbone, make_backbone, read_reader, read_weights
from .trainer import Metrics, Trainer, width_accuracy

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CONFIG, CHECKPOINT = "pretrain.json", "checkpoint.pt"


def pretrain(config: PretrainConfig, *, data: ImageData | None = None, quiet: bool = False) -> Backbone:
    """Train a backbone into a directory, or go on where an earlier call was stopped.

    The directory holds `backbone.safetensors`, `backbone.json`, a model card, the checkpoint and TensorBoard events.
    On the CPU a run that was stopped and resumed ends with the same weights as one that was not. Exits are trained when
    the network is finished, and lie beside its weights; with `init` the network itself stays as those weights are.

    Args:
        config: What to train, on what, how.
        data: Taken instead of what `config.data` names.
        quiet: Print nothing.

    Returns:
        The trained backbone, on the CPU, in evaluation mode, not frozen.

    Raises:
        ValueError: If names are unknown, data and backbone do not fit, the directory was begun with other settings, or
            training diverges.
        FileExistsError: If the directory holds something else.
    """
    _find(config.backbone)  # an unknown name is told before data is read
    device = find_device(config.device)
    check_directory(config.out)
    images = data if data is not None else load(config.data, image_size=config.image_size)
    check_held_out(images)
    settings = {**config.as_json(), "data_fingerprint": images.fingerprint}
    if (config.out / CONFIG).is_file():
        check_same(config.out, settings)
    if (config.out / CARD).is_file():
        return _with_parts(config, _finished(config, images, quiet), images, device, quiet)
    backbone = _untrained(config, images)
    if config.exits:
        backbone.check_exits(config.exits)
    elif config.exit_weights and not backbone.has_own_exits:
        raise ValueError(
            f"exit_weights: expected none for {config.backbone} without exits, got {config.exit_weights}. "
            "Say where they are to be with --exits."
        )
    if config.recurrent:  # what does not fit is told before training
        config.recurrent_recipe().check_data(images)
        config.recurrent_recipe().build(backbone, images.train.images.shape[1])
    elif config.has_reader:
        config.reader_recipe().check_data(images)
        config.reader_recipe().build(backbone)
    images = images.with_vocabulary(backbone.vocabulary)  # of weights that it starts from
    trainer = Trainer(backbone, images.frames(), config, device=device)
    config.out.mkdir(parents=True, exist_ok=True)
    write_whole(config.out / CONFIG, lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))
    if not config.heads_only:
        _train(trainer, config, quiet)
    trainer.finish()
    if config.reader_tunes:  # before the card is written: without one a killed run does this again
        _train_reader(config, trainer.backbone, images, device, quiet)
    card = describe(trainer.backbone, images, config.as_json(), final_accuracy(trainer))
    if config.heads_only and knows_others(read_weights(Path(str(config.init))), backbone):
        card["init_knew_other_classes"] = True  # so it has not seen these images with their labels
    write_result(config.out, trainer.backbone, _own_card(config) or card, command=config.command())
    _say(quiet, f"{config.out / WEIGHTS}: test accuracy {card['accuracy']['test']['full']:.2%}")
    return _with_parts(config, trainer.backbone, images, device, quiet)


def _own_card(config: PretrainConfig) -> dict[str, Any] | None:
    """Return the card of weights that stay as they are, where one of ours lies beside them: it still holds."""
    if not config.heads_only or config.init is None or config.reader_tunes:
        return None
    try:
        card = json.loads(config.init.with_suffix(".json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return card if {"fingerprint", "data", "accuracy", "versions"} <= card.keys() else None


def _with_exits(
    config: PretrainConfig, backbone: Backbone, data: ImageData, device: torch.device, quiet: bool
) -> Backbone:
    """Return a finished backbone with the exits that were asked for, trained now or before."""
    weights = config.out / WEIGHTS
    if not config.exits:
        return backbone
    if exit_files(weights)[1].is_file():
        return load_backbone(config.backbone, weights, **data.shape).eval()
    recipe = config.exit_recipe()
    backbone = train_exits(backbone, data, recipe, device=device, quiet=quiet)
    card = exit_card(backbone, data, asdict(recipe))
    write_exits(weights, backbone, card)
    told = zip(
        [f"after block {one.after}" for one in backbone.exits], card["accuracy"]["test"]["of each"], strict=False
    )
    _say(quiet, f"exits: test accuracy {', '.join(f'{where} {share:.2%}' for where, share in told)}")
    return backbone


def _with_parts(
    config: PretrainConfig, backbone: Backbone, data: ImageData, device: torch.device, quiet: bool
) -> Backbone:
    """Return a finished backbone with all that was asked for beside it."""
    data = data.with_vocabulary(backbone.vocabulary)
    backbone = _with_exits(config, backbone, data.frames(), device, quiet)
    if not config.has_reader:
        return backbone
    weights = config.out / WEIGHTS
    if reader_files(weights)[1].is_file():
        return read_reader(backbone, weights)
    if config.recurrent:
        return _with_recurrent(config, backbone, data, device, quiet)
    return _train_reader(config, backbone, data, device, quiet)


def _train_reader(
    config: PretrainConfig, backbone: Backbone, data: ImageData, device: torch.device, quiet: bool
) -> Backbone:
    """Return a backbone with a reader, trained now and written beside the weights."""
    recipe = config.reader_recipe()
    backbone = train_reader(backbone, data, recipe, device=device, quiet=quiet)
    shares = write_reader(config.out / WEIGHTS, backbone, data, recipe)["accuracy"]["test"]["after each"]
    _say(quiet, f"reader: test accuracy {', '.join(f'{share:.2%}' for share in shares)} with 0, 1, … random looks")
    return backbone


def _with_recurrent(
    config: PretrainConfig, backbone: Backbone, data: ImageData, device: torch.device, quiet: bool
) -> Backbone:
    """Return a finished backbone with a recurrent network, trained now."""
    recipe = config.recurrent_recipe()
    backbone = train_recurrent(backbone, data, recipe, device=device, quiet=quiet)
    test = write_recurrent(config.out / WEIGHTS, backbone, data, recipe)["accuracy"]["test"]
    _say(quiet, f"recurrent: test accuracy {test['full']:.2%} after all steps, {test['half']:.2%} after a random half")
    return backbone


def find_device(name: str) -> torch.device:
    """Return the named device; `auto` takes a GPU where there is one.

    Raises:
        ValueError: If there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: expected one that works, got {name!r} ({reason}). Use --device auto.") from error


def check_directory(out: Path) -> None:
    """Raise a FileExistsError if a directory, or a file of its name, holds what is not ours."""
    if out.is_dir():
        foreign = sorted(path.name for path in out.iterdir()) if not (out / CONFIG).is_file() else []
    else:
        foreign = ["a file of that name"] if out.exists() else []
    if foreign:
        raise FileExistsError(
            f"out {out}: expected a new directory, or one that skipgym pretrain began, got one with "
            f"{', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''}. Choose another --out."
        )


def check_same(out: Path, settings: dict[str, Any]) -> None:
    """Raise a ValueError naming the settings that differ from those a directory was begun with."""
    begun = json.loads((out / CONFIG).read_text())
    names = sorted({*begun, *settings} - {"out"})
    differing = [f"{name} {begun.get(name)!r}, got {settings.get(name)!r}" for name in names]
    differing = [text for name, text in zip(names, differing, strict=True) if begun.get(name) != settings.get(name)]
    if differing:
        raise ValueError(
            f"out {out}: begun with other settings: expected {'; '.join(differing)}. "
            "Nothing was overwritten. Choose another --out, or the same settings to resume."
        )


def check_held_out(data: ImageData) -> None:
    """Raise a ValueError if the policy's images would be trained on."""
    if data.seen:
        raise ValueError(
            f"data {data.name}: expected the policy's images apart from the backbone's, got both joined. "
            "Load it with policy_from='held-out'."
        )


def final_accuracy(trainer: Trainer) -> dict[str, Metrics]:
    """Measure on val and, the only time, on test."""
    parts = {"val": trainer.data.val, "test": trainer.data.test}
    return {
        name: {**trainer.measure(part), **width_accuracy(trainer.backbone, part), "n": len(part)}
        for name, part in parts.items()
    }


def _untrained(config: PretrainConfig, data: ImageData) -> Backbone:
    if config.init is None:
        return random_start(config.backbone, data, config.seed)
    if config.heads_only:
        features_only = config.has_reader and not config.exits
        return load_backbone(config.backbone, config.init, other_classes=features_only, **data.shape)
    return load_backbone(config.backbone, config.init, thin=True, **data.shape)


def random_start(name: str, data: ImageData, seed: int) -> Backbone:
    """Return a backbone for data with random weights that follow from the seed alone."""
    # a backbone that takes colour only sees a grey channel three times
    times = 3 // len(data.mean) if _find(name).colour_only else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_backbone(
            name,
            mean=data.mean * times,
            std=data.std * times,
            **data.shape,
        )


def _train(trainer: Trainer, config: PretrainConfig, quiet: bool) -> None:
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    if (config.out / CHECKPOINT).is_file():
        trainer.load_state_dict(_read_checkpoint(config.out / CHECKPOINT))
        _say(quiet, f"{config.out}: resuming after epoch {trainer.epochs_done}")
    began, first = time.perf_counter(), trainer.epochs_done
    with SummaryWriter(str(config.out), purge_step=first + 1) as events:
        while (epoch := trainer.epochs_done + 1) <= config.epochs:
            metrics = trainer.run_epoch(quiet=quiet)
            write_whole(config.out / CHECKPOINT, lambda path: torch.save(trainer.state_dict(), path))
            _log(events, metrics, epoch)
            rest = (config.epochs - epoch) * (time.perf_counter() - began) / (epoch - first)
            _say(quiet, _line(metrics, epoch, config.epochs, rest))


def _log(events: "SummaryWriter", metrics: Metrics, epoch: int) -> None:
    for name, value in metrics.items():
        events.add_scalar(f"pretrain/{name}", value, epoch)


def _line(metrics: Metrics, epoch: int, epochs: int, rest: float) -> str:
    more = f"  half {metrics['val_half']:.2%}" if "val_half" in metrics else ""
    exits = " ".join(f"{value:.2%}" for name, value in metrics.items() if name.startswith("val_exit"))
    more += f"  exits {exits}" if exits else ""
    more += "".join(f"  at {key[7:]} px {value:.2%}" for key, value in metrics.items() if key.startswith("val_at_"))
    return (
        f"epoch {epoch}/{epochs}  loss {metrics['loss']:.3f}  val {metrics['val_full']:.2%}{more}  "
        f"{metrics['images_per_s']:,.0f} images/s  {timedelta(seconds=round(rest))} left"
    )


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, flush=True)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"checkpoint {path}: expected a whole one, got {error}. Choose another --out.") from error


def _finished(config: PretrainConfig, data: ImageData, quiet: bool) -> Backbone:
    _say(quiet, f"{config.out}: finished before, not trained again")
    return read_result(config.out, config.backbone, data)
