"""Train a policy and leave a run directory: configuration, logs, controller, figures."""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from ..data import ImageData, Part
from ..envs.begun import Prefix
from ..envs.build import AugmentLevel, check_fit, check_kind, choose_augment, find_backbone, find_data, find_task
from ..envs.engine import Price
from ..envs.rewards import Reward, RewardName, make_reward
from ..envs.table import keep
from ..envs.task import Task, task_class
from .baselines import check_budget, full_accuracy
from .budget import Lagrange, lowest, lowest_price
from .controller import Controller
from .evaluate import Measured, measure, result_row, write_results
from .joint import check_joint, finetune
from .learner import Setting, make_learner
from .monitor import Monitor
from .policy import GatePolicy


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is trained on: a task, its backbone, data."""

    task: str = "layer-skip"
    """Registered name; see `skipgym list`."""
    backbone: str = ""
    """Registered name; the task's own where none is given, resnet20 for most."""
    data: str = ""
    """A name, an ImageFolder directory, or an .npz in MedMNIST layout; the task's own where none is given, digits for
    most."""
    weights: Path | None = None
    """The backbone's checkpoint; the embedded data's backbone is trained on first use."""
    class_indices: tuple[int, ...] = ()
    """Which of the weights' outputs the data's classes are, in their order, where the weights know more classes."""
    task_options: dict[str, int | float | str] = field(default_factory=dict)
    """Options of the task."""
    augment: AugmentLevel = "auto"
    """Of the policy's images; auto is strong where the backbone has seen them, else light."""
    augment_val: bool = False
    """Vary each validation image once, as the policy's are: for weights that have seen them. A network is surer of what
    it has seen than of new images, and budgets that are met on such images are overspent on new ones."""
    table: int = 0
    """0: everything runs live. Above: every way through is computed once, of so many versions of each of the policy's
    images and of the validation and test images; kept in the cache, training and comparing look it up. For tasks with
    few ways through."""
    prefix: int = 0
    """0: everything runs live. Above: what every image goes through before the first decision, such as a stem, is
    computed once, of so many versions of each of the policy's images and of the validation and test images; kept in the
    cache, training and comparing begin from it. For networks of which that is a large part."""

    def __post_init__(self) -> None:
        """Check what all commands ask alike, and take the task's own backbone and data where none is named."""
        kind = task_class(self.task)
        for name, own in (("backbone", kind.default_backbone), ("data", kind.default_data)):
            if not getattr(self, name):
                object.__setattr__(self, name, own)  # frozen, but not made yet
        for name in ("table", "prefix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0, or how many versions of each image, got {getattr(self, name)}.")
        if self.table and self.prefix:
            raise ValueError("prefix: expected no table, which holds all that is computed, got both. Use --prefix 0.")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Subject):
    """One training run."""

    agent: str = "ppo"
    """The learner."""
    price: float | tuple[float, float] = 0.3
    """Of compute, in units of accuracy. Two numbers are a range: drawn for each image and shown to the policy."""
    target_compute: float | None = None
    """Share of the full network's MACs to reach; the price then adapts itself, starting from `price`."""
    reward: RewardName = "accuracy"
    """What is paid; see `skipgym.envs.rewards`."""
    images: int = 100_000
    """Episodes to train for; one episode is one image."""
    minutes: float | None = None
    """Stop after this time if it comes sooner."""
    train_macs: float | None = None
    """Stop when the backbone has spent so many MACs in training, if that comes sooner; a backward pass through it
    counts like a forward pass. What methods are given alike when they are compared."""
    num_envs: int = 256
    """Images at a time."""
    hidden: int = 64
    """Width of the gate."""
    seed: int = 0
    """Of everything random."""
    agent_options: dict[str, int | float | str] = field(default_factory=dict)
    """Options of the learner that differ from its defaults."""
    joint: int = 0
    """Images on which gate and network, with exits or a reader that it carries, are then finetuned together. 0: the
    network stays frozen."""

    def __post_init__(self) -> None:
        """Check what needs neither data nor weights."""
        make_learner(self.agent)
        make_reward(self.reward)
        super().__post_init__()
        for name in ("images", "num_envs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if self.joint < 0:
            raise ValueError(f"joint: expected 0 or a number of images, got {self.joint}.")
        for name in ("minutes", "train_macs"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: expected more than 0, got {value}.")
        if self.target_compute is not None and isinstance(self.price, Sequence):
            raise ValueError("target_compute: expected a single price to start from, got a range. Choose one of both.")


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes:
        controller: The best policy by validation, with its task.
        val: Its figures on validation data.
        backbone_macs: Spent by the backbone in training, validation aside; where it was trained too, a step of that
            counts like three forward passes.
        seconds: Wall-clock of training.
        history: Validation figures in the course of training.
    """

    controller: Controller
    val: Measured
    backbone_macs: float
    seconds: float
    history: list[dict[str, float]]


def prepare(subject: Subject, *, quiet: bool = False) -> tuple[Task, ImageData]:
    """Load data and backbone of a configuration, and build its task; from what is kept of it where that is asked for.

    Raises:
        ValueError: If they do not fit each other.
    """
    data = find_data(subject.data, subject.weights)
    kind = task_class(subject.task)
    check_kind(kind, data)
    name, recipe = kind.architecture(subject.backbone), kind.recipe(data, **subject.task_options)
    backbone = find_backbone(name, data, subject.weights, classes=subject.class_indices, recipe=recipe)
    task = find_task(subject.task, backbone, data, **subject.task_options)
    data = data.with_vocabulary(backbone.vocabulary)
    check_fit(task, data)
    augment = choose_augment(subject.augment, data)
    if subject.augment_val:
        data = data.with_varied_val(augment)
    if not (versions := subject.table or subject.prefix):
        return task, data
    record = Prefix(task) if subject.prefix else task.record()
    return keep(record, data, versions=versions, augment=augment, quiet=quiet)


def train(config: TrainConfig, task: Task, data: ImageData, *, out: Path | None = None, quiet: bool = False) -> Trained:
    """Train a policy.

    Args:
        config: What to train, and how.
        task: From `prepare`.
        data: From `prepare`.
        out: Run directory; None keeps everything in memory.
        quiet: Whether to draw no progress bar.

    Raises:
        ValueError: If the configuration does not fit the task.
        FileExistsError: If the directory holds anything.
    """
    if config.target_compute is not None:
        check_budget(task, config.target_compute)
    learner = make_learner(config.agent)
    learner.check(task, config.agent_options)
    if config.joint:
        check_joint(learner, config.agent, task, data.policy)
    if out is not None:
        claim(out)
    reward = make_reward(config.reward)
    setting = _setting(config, task, data, reward, out, quiet)
    torch.manual_seed(config.seed)
    if out is not None:
        (out / "config.json").write_text(json.dumps(asdict(config), indent=2, default=str) + "\n")
    monitor = setting.monitor
    last = learner.train(setting)
    seconds = monitor.seconds
    monitor.validate(last, force=True)
    monitor.close()
    assert monitor.best is not None
    policy, spent = monitor.best, monitor.backbone_macs
    if config.joint:
        stage = _joint_setting(config, setting, out, quiet)
        task, policy = finetune(policy, learner, stage)
        stage.monitor.close()
        seconds += stage.monitor.seconds
        spent += 1.5 * stage.monitor.backbone_macs  # gradients of weights cost as much as those of features
    saved = json.loads(json.dumps(asdict(config), default=str))
    info = {"data": data.name, "data_fingerprint": data.fingerprint, "config": saved}
    controller = Controller(task, policy, price=_middle(config.price), info=info)
    if config.target_compute is not None:
        meet(controller, data.val, config.target_compute)
    trained = Trained(controller, measure(controller, data.val), spent, seconds, monitor.history)
    if out is not None:
        _write(trained, config, data, out)
    return trained


def meet(controller: Controller, part: Part, compute: float) -> None:
    """Tune a controller to a share of the full MACs: its price where it is told one, else its gate's threshold.

    A threshold stays as it was trained where that spends no more and is at least as often right.
    """
    policy = controller.policy
    if policy.priced:
        controller.price = price_for(controller, part, compute)
    elif isinstance(policy, GatePolicy):
        trained = measure(controller, part)
        policy.shift = shift_for(controller, part, compute)
        if trained.compute <= compute and trained.accuracy >= measure(controller, part).accuracy:
            policy.shift = 0.0


def price_for(controller: Controller, part: Part, compute: float, *, images: int = 5000) -> float:
    """Return the lowest price at which a policy that is told it spends no more than a share of the full MACs."""
    part = part.subset(images)

    def spent(price: float) -> float:
        return measure(controller, part, price=price).compute

    if spent(0.0) <= compute:
        return 0.0
    return lowest_price(spent, compute)


def shift_for(controller: Controller, part: Part, compute: float, *, images: int = 5000, most: float = 16.0) -> float:
    """Return the largest shift of a gate, within ±`most`, at which it spends no more than a share of the full MACs."""
    part, policy = part.subset(images), copy.copy(controller.policy)
    assert isinstance(policy, GatePolicy)
    shifted = Controller(controller.task, policy, price=controller.price)

    def spent(down: float) -> float:
        policy.shift = -down
        return measure(shifted, part).compute

    return most if spent(-most) <= compute else -lowest(spent, compute, -most, most)


def claim(out: Path) -> None:
    """Make a directory of our own.

    Raises:
        FileExistsError: If it holds anything.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"--out {out}: expected a new or empty directory, got one in use. Choose another.")
    out.mkdir(parents=True, exist_ok=True)


def _setting(
    config: TrainConfig, task: Task, data: ImageData, reward: Reward, out: Path | None, quiet: bool
) -> Setting:
    price: Price = config.price
    prices = (price[0], _middle(price), price[1]) if isinstance(price, Sequence) else (price,)
    monitor = Monitor(
        task,
        data.val,
        out=out,
        prices=prices,
        target=config.target_compute,
        images=config.images,
        minutes=config.minutes,
        macs=config.train_macs,
        quiet=quiet,
    )
    start = prices[0] if config.target_compute is not None else 0.0
    return Setting(
        task=task,
        data=data,
        reward=reward,
        price=price,
        augment=choose_augment(config.augment, data),
        monitor=monitor,
        lagrange=None if config.target_compute is None else Lagrange(config.target_compute, start),
        images=config.images,
        num_envs=min(config.num_envs, config.images),
        hidden=config.hidden,
        seed=config.seed,
        out=out,
        agent_options=config.agent_options,
    )


def _joint_setting(config: TrainConfig, setting: Setting, out: Path | None, quiet: bool) -> Setting:
    """Return the setting of the stage that trains the network too: it goes on at the price that was reached."""
    before, lagrange = setting.monitor, setting.lagrange
    monitor = Monitor(
        setting.task,
        setting.data.val,
        out=out and out / "joint",
        prices=before.prices,
        target=before.target,
        images=config.joint,
        validations=5,
        quiet=quiet,
    )
    if lagrange is not None:
        lagrange = Lagrange(lagrange.target, lagrange.integral, anneal=0)
    return replace(setting, monitor=monitor, lagrange=lagrange, images=config.joint)


def _middle(price: Price) -> float:
    return (price[0] + price[1]) / 2 if isinstance(price, Sequence) else price


def _write(trained: Trained, config: TrainConfig, data: ImageData, out: Path) -> None:
    """Leave controller and figures."""
    trained.controller.save(out / "controller")
    row = result_row(
        trained.controller.task,
        trained.val,
        method=config.agent,
        data=data.name,
        split="val",
        full_accuracy=full_accuracy(trained.controller.task, data.val),
        price=trained.controller.price,
        seed=config.seed,
        train_backbone_macs=trained.backbone_macs,
        train_seconds=trained.seconds,
    )
    write_results(out / "results.json", [row | {"joint": bool(config.joint)}], history=trained.history)
