"""`skipgym evaluate`: accuracy and compute of a controller, or of a method without training."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ..agents.baselines import RULE, best_static, full_accuracy, random_policy, rule_policy
from ..agents.controller import Controller
from ..agents.evaluate import chosen_lines, measure, measure_full, result_row, write_results
from ..agents.export import TOLERANCE
from ..agents.policy import full_policy
from ..agents.served import check_served, compare_with_torch, served_row
from ..agents.threshold import METHODS as THRESHOLDS
from ..agents.threshold import check_exits, threshold_policy
from ..agents.training import TrainConfig, claim, prepare
from ..data import ImageData, PartName
from ..data import load as load_data
from ..envs.build import check_fit
from ..envs.task import task_class
from ..runtime import Runtime

UNTRAINED = ("full", "random", "static", *THRESHOLDS)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure a controller, or a method without training: full, random, static, threshold.

    Fixed rules are a task's own, as fixed-uniform, fixed-first or fixed-middle of frame-select. Thresholds are for
    tasks with exits: threshold by the largest probability, threshold-entropy, threshold-patience.
    """

    what: Annotated[str, tyro.conf.Positional]
    """Directory of a controller, or a method without training; with `--runtime onnx` an exported file."""
    data: str | None = None
    """A name, an ImageFolder directory, or an .npz in MedMNIST layout; a controller's, or the task's own by default."""
    split: PartName = "test"
    """Which part of the data."""
    price: float | None = None
    """Told to a controller that knows several budgets."""
    compute: float = 0.5
    """For random, static, fixed rules and thresholds: share of the full network's MACs; thresholds are calibrated on
    validation data."""
    seed: int = 0
    """Of random."""
    task: str = "layer-skip"
    """For methods without training. Likewise the next three."""
    backbone: str = ""
    """Registered name; the task's own where none is given."""
    weights: Path | None = None
    """The backbone's checkpoint."""
    class_indices: tuple[int, ...] = ()
    """Which of the weights' outputs the data's classes are, in their order, where the weights know more classes."""
    task_options: dict[str, int | float | str] = field(default_factory=dict)
    """Options of the task."""
    augment_val: bool = False
    """For thresholds and weights that have seen the validation images: calibrate on varied ones (see `train`)."""
    batch_size: int = 512
    """Images at a time."""
    runtime: Literal["torch", "onnx"] = "torch"
    """What executes; onnx for files that `skipgym export` wrote."""
    against: Path | None = None
    """With `--runtime onnx`: directory of the controller that was exported. It answers the same images in torch, and
    must decide the same."""
    out: Path | None = None
    """Directory for results.json, of a threshold method its controller too; new or empty."""


def main(arguments: list[str]) -> int:
    """Run the command."""
    config = tyro.cli(Config, args=arguments, prog="skipgym evaluate")
    if config.out:
        claim(config.out)
    return _evaluate_file(config, arguments) if config.runtime == "onnx" else _evaluate(config, arguments)


def _evaluate(config: Config, arguments: list[str]) -> int:
    """Measure in torch."""
    if config.against:
        raise ValueError("--against: expected --runtime onnx and an exported file, got torch. Add --runtime onnx.")
    controller, data, method = _untrained(config) if _is_untrained(config.what) else _saved(config)
    part = data.part(config.split)
    full = full_accuracy(controller.task, part, batch_size=config.batch_size)
    if method == "full":
        measured = measure_full(controller.task, part, batch_size=config.batch_size)
    else:
        measured = measure(controller, part, price=config.price, batch_size=config.batch_size)
    price = (controller.price if config.price is None else config.price) if not _is_untrained(method) else None
    row = result_row(
        controller.task,
        measured,
        method=method,
        data=data.name,
        split=config.split,
        full_accuracy=full,
        price=price,
        seed=config.seed,
    )
    show([row])
    if config.out:
        write_results(config.out / "results.json", [row], command=["skipgym", "evaluate", *arguments])
        if method in THRESHOLDS:
            controller.save(config.out / "controller")
    return 0


def _is_untrained(name: str) -> bool:
    return name in UNTRAINED or name.startswith(RULE)


def _evaluate_file(config: Config, arguments: list[str]) -> int:
    """Measure an exported file, and hold it against torch where that is wished."""
    if _is_untrained(config.what) or Path(config.what).is_dir():
        raise ValueError(
            f"{config.what}: expected an exported file for --runtime onnx. "
            "Write one: skipgym export CONTROLLER --out FILE."
        )
    runtime = Runtime.load(config.what)
    data = load_data(config.data or runtime.card.content["info"].get("config", {}).get("data", "digits"))
    check_served(runtime, data)
    part, likeness = data.part(config.split), None
    decision = runtime(part.images.numpy(), price=config.price, batch_size=config.batch_size)
    row = served_row(runtime, decision, part, data=data.name, split=config.split, price=config.price)
    if config.against:
        against = Controller.load(config.against)
        check_fit(against.task, data)
        likeness = compare_with_torch(against, decision, part, price=config.price, batch_size=config.batch_size)
        row |= {"full_accuracy": likeness.full_accuracy, "against_torch": asdict(likeness)}
    show([row])
    print(f"one image: {row['latency']['p50_ms']:.2f} ms (95th percentile {row['latency']['p95_ms']:.2f})")
    if config.out:
        write_results(config.out / "results.json", [row], command=["skipgym", "evaluate", *arguments])
    if likeness is None:
        return 0
    print(
        f"against torch: {likeness.decisions:,} of {likeness.images:,} images decided otherwise; else logits "
        f"differ by at most {likeness.logits:.2g}, {TOLERANCE * likeness.scale:.2g} allowed"
    )
    return 0 if likeness.agrees else 1


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows of results as a table."""
    table = Table()
    columns = ("method", "split", "images", "accuracy", "full network", "compute", "policy", "MACs", "paths")
    for column in columns:
        table.add_column(column, justify="left" if column in ("method", "split") else "right")
    for row in rows:
        table.add_row(
            row["method"],
            row["split"],
            f"{row['count']:,}",
            f"{row['accuracy']:.2%}",
            "" if row["full_accuracy"] is None else f"{row['full_accuracy']:.2%}",
            f"{row['compute']:.1%}",
            f"{row['policy_macs'] / row['full_macs']:.2%}",
            f"{row['macs'] / 1e6:.2f} M",
            f"{row['unique_paths']:,}",
        )
    console = Console()
    console.width = max(console.width, 100)  # a narrower terminal, or a file, would fold the figures
    console.print(table)
    for line in (line for row in rows for line in chosen_lines(row)):
        console.print(line, highlight=False)


def _saved(config: Config) -> tuple[Controller, ImageData, str]:
    path = Path(config.what)
    if not path.exists():
        raise FileNotFoundError(
            f"{config.what}: expected a controller's directory, or {', '.join(UNTRAINED)}; it does not exist."
        )
    controller = Controller.load(path)
    trained = controller.info.get("config", {})
    spec = config.data or trained.get("data", "digits")
    data = load_data(spec)
    data = data.with_vocabulary(controller.task.backbone.vocabulary)
    check_fit(controller.task, data)
    return controller, data, trained.get("agent", "controller")


def _untrained(config: Config) -> tuple[Controller, ImageData, str]:
    if config.what in THRESHOLDS:
        check_exits(task_class(config.task), config.what)  # told before data and weights are read
    train_config = TrainConfig(
        task=config.task,
        backbone=config.backbone,
        data=config.data or "",
        weights=config.weights,
        class_indices=config.class_indices,
        task_options=config.task_options,
        augment_val=config.augment_val,
    )
    task, data = prepare(train_config)
    info: dict[str, Any] = {}
    if config.what in THRESHOLDS:
        policy = threshold_policy(task, data.val, config.compute, score=THRESHOLDS[config.what])
        info = {"data": data.name, "config": {"agent": config.what, "data": train_config.data}}
    elif config.what == "random":
        policy = random_policy(task, config.compute, seed=config.seed)
    elif config.what.startswith(RULE):
        policy = rule_policy(task, config.what, config.compute)
    elif config.what == "static":
        policy = best_static(task, data.policy, config.compute)
    else:
        policy = full_policy(task)
    return Controller(task, policy, info=info), data, config.what
