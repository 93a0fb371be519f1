"""What a pretraining leaves behind: weights, the numbers that describe them, and a page for people."""

import json
import os
import platform
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save
from torch import Tensor

from .. import __version__
from ..data import ImageData
from .backbone import Backbone
from .exits import digest
from .registry import load_backbone

WEIGHTS, CARD, PAGE = "backbone.safetensors", "backbone.json", "README.md"

Accuracy = Mapping[str, Mapping[str, float]]


def describe(backbone: Backbone, data: ImageData, settings: Mapping[str, Any], accuracy: Accuracy) -> dict[str, Any]:
    """Return the card as JSON holds it.

    Args:
        backbone: As trained.
        data: What it was trained on.
        settings: Of the training.
        accuracy: For `val` and `test`: `full`, 0…1, `n`; after stochastic depth `half`, of a random half of blocks;
            `exit1`, `exit2`, … of exits that are part of the network; of slimmable backbones `width 0.5` and so on;
            after scales `at_16`, of the full network at 16 pixels.
    """
    own = {"exits": {"macs": backbone.answer_macs}} if backbone.has_own_exits else {}
    return {
        "backbone": backbone.config,
        "fingerprint": backbone.fingerprint(),
        "data": {"name": data.name, "fingerprint": data.fingerprint, "train": len(data.train), "note": data.note},
        "pretrain": dict(settings),
        **own,
        "accuracy": {part: dict(values) for part, values in accuracy.items()},
        "versions": {
            "skipgym": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        "date": date.today().isoformat(),
    }


def write_result(directory: Path, backbone: Backbone, card: Mapping[str, Any], *, command: str) -> None:
    """Write weights, page and card; the card comes last, so that where it lies all is there.

    Args:
        directory: Exists already.
        backbone: As trained, on any device.
        card: From `describe`.
        command: What made it.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in backbone.network.state_dict().items()}
    # not save_file: that leaves a file which only its owner may read
    write_whole(directory / WEIGHTS, lambda path: path.write_bytes(save(state)))
    page = model_card(backbone, card, command=command)
    write_whole(directory / PAGE, lambda path: path.write_text(page, encoding="utf-8"))
    write_whole(directory / CARD, lambda path: path.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8"))


def read_result(directory: Path, name: str, data: ImageData) -> Backbone:
    """Load what `write_result` wrote.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is damaged, or is not the backbone that the card describes.
    """
    path = directory / CARD
    if not path.is_file():
        raise FileNotFoundError(f"backbone: expected its card at {path}, got nothing. Train it first.")
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
        backbone = load_backbone(name, directory / WEIGHTS, **data.shape)
    except (KeyError, TypeError) as error:
        raise ValueError(f"card {path}: expected what skipgym pretrain writes, got no {error}. Train again.") from error
    if backbone.fingerprint() != expected:
        raise ValueError(
            f"weights {directory / WEIGHTS}: expected fingerprint {expected} as their card says, "
            f"got {backbone.fingerprint()}. They were changed; train again."
        )
    return backbone.eval()


def write_part(
    files: tuple[Path, Path],
    part: str,
    described: Any,
    *,
    state: Mapping[str, Tensor],
    trunk: str,
    card: Mapping[str, Any],
) -> None:
    """Write what a network carries beside its weights; the card comes last, so that where it lies all is there.

    Args:
        files: Of the tensors, and of the card.
        part: What it is: `exits`, `reader`.
        described: How to build it again (JSON).
        state: Its weights.
        trunk: Fingerprint of the network.
        card: Whatever else is told of it.
    """
    tensors, page = files
    content = {part: described, "trunk": trunk, "fingerprint": digest(state), **card}
    write_whole(tensors, lambda path: path.write_bytes(save(dict(state))))
    write_whole(page, lambda path: path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name and rename it, so that a crash leaves the old one or the new one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    write(scratch)
    os.replace(scratch, path)


def model_card(backbone: Backbone, card: Mapping[str, Any], *, command: str) -> str:
    """Return the page for people, in Markdown."""
    data, versions = card["data"], ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    return f"""# {backbone.name} on {data["name"]}

Trained by skipgym on {card["date"]}:

```
{command}
```

## Accuracy

{_accuracy_table(card["accuracy"])}

The test part was read once, after training.{_chosen(card["pretrain"])} One seed ({card["pretrain"]["seed"]}); ± is the
standard error that the number of images leaves.

## Compute

{_compute(backbone)} {_parameters(backbone):,} parameters.

{_exits(backbone, card) if backbone.has_own_exits else _skipping(card["pretrain"])}

## Data

{data["name"]}, fingerprint {data["fingerprint"]}: {data["note"] or "all parts as published"}. Trained on the
{data["train"]} images of the train part; the policy's part was kept away.{_start(card["pretrain"])}
{backbone.num_classes} classes. Input: pixels scaled to 0…1, then normalised with mean {_numbers(backbone.mean)} and
standard deviation {_numbers(backbone.std)}.

## Weights

`{WEIGHTS}` holds the network's state_dict, fingerprint {card["fingerprint"]}; `{CARD}` says how to build it. Use them
with `--backbone {backbone.name} --weights {WEIGHTS}`. Made with {versions}.
"""


def _accuracy_table(accuracy: Accuracy) -> str:
    names = {"full": "full network", "half": "random half of the blocks for each image"}
    names |= {
        key: f"{key} of the full one" for values in accuracy.values() for key in values if key.startswith("width")
    }
    scales = [key for key in next(iter(accuracy.values())) if key.startswith("at_")]
    names |= {key: f"full network on images of {key[3:]} px" for key in scales}
    rows = [
        f"| {part} | {names[path]} | {_percent(values[path], values['n'])} | {values['n']} |"
        for part, values in accuracy.items()
        for path in names
        if path in values
    ]
    return "\n".join(["| part | executed | accuracy | images |", "|---|---|---|---|", *rows])


def _percent(share: float, n: float) -> str:
    return f"{100 * share:.2f} ± {100 * (share * (1 - share) / n) ** 0.5:.2f} %"


def _chosen(settings: Mapping[str, Any]) -> str:
    chosen = settings["keep"] == "best"
    return " The epoch was chosen on val, so val flatters." if chosen else " The last epoch's weights were kept."


def _skipping(settings: Mapping[str, Any]) -> str:
    depth = settings["stochastic_depth"]
    if not depth:
        return "## Skipping\n\nNot skip-robust: trained with all blocks only (`--stochastic-depth 0`)."
    how = f"the last with probability {depth:g}, earlier ones less (linear)"
    if settings["depth_schedule"] != "linear":
        which = "each" if settings["depth_schedule"] == "uniform" else "each that keeps the shape"
        how = f"{which} with probability {depth:g}"
    if settings["distill"]:
        how += f"; the skipped path learned from the full one's soft labels (weight {settings['distill']:g})"
    return f"## Skipping\n\nSkip-robust: blocks were left out in training image by image, {how}."


def _compute(backbone: Backbone) -> str:
    size = f"{len(backbone.blocks)} blocks; {backbone.full_macs:,} MACs for an image of {_times(backbone.input_shape)}"
    if backbone.has_own_exits:
        return f"{size}, answered at the end alone."
    if any(block.shortcut is None for block in backbone.blocks):
        return f"{size}; none can be skipped."
    return f"{size}, at least\n{backbone.least_macs:,} when every block is skipped."


def _exits(backbone: Backbone, card: Mapping[str, Any]) -> str:
    """Return what an answer costs at each exit, those before it included, and how often it is right."""
    parts = card["accuracy"]
    names = [*(f"exit{index}" for index in range(1, len(backbone.exits) + 1)), "full"]
    places = [*(one.after for one in backbone.exits), len(backbone.blocks)]
    rows = [
        f"| {after} | {macs:,} | {' | '.join(_percent(values[name], values['n']) for values in parts.values())} |"
        for name, after, macs in zip(names, places, card["exits"]["macs"], strict=True)
    ]
    head = f"| after block | MACs, earlier exits included | {' | '.join(parts)} |"
    return "\n".join(["## Exits", "", _joint(card["pretrain"]), "", head, "|" + "---|" * (2 + len(parts)), *rows])


def _joint(settings: Mapping[str, Any]) -> str:
    weights = settings.get("exit_weights")
    how = f", weighted {' '.join(f'{one:g}' for one in weights)}" if weights else ""
    return f"They are part of the network; their cross entropies were minimised in sum{how}."


def _start(settings: Mapping[str, Any]) -> str:
    init = settings.get("init")
    return f" It started from the weights {init}, which may have seen any of these images." if init else ""


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"


def _parameters(backbone: Backbone) -> int:
    return sum(parameter.numel() for parameter in backbone.network.parameters())
