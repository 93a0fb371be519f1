"""What a comparison is made of: its configuration, and the cells that can be computed apart from each other."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..agents.baselines import RULE
from ..agents.training import Subject, TrainConfig
from ..envs.rewards import RewardName
from .methods import ALL, THRESHOLDS, UNTRAINED, is_learned, method

REVISION = 3
"""Of what a cell computes; raise it when results may change."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Subject):
    """Methods on one task, backbone, observation, gate architecture and budget of backbone MACs in training."""

    agents: tuple[str, ...] = (ALL,)
    """Methods to train; all: those of ours that can take the task, and why others cannot is said. full, random, static
    and oracle are always compared, on tasks with exits thresholds too."""
    targets: tuple[float, ...] = (0.4, 0.5, 0.65)
    """Shares of the full network's MACs to stay within, policy included. All learners find their price themselves."""
    prices: tuple[float, ...] = ()
    """Prices of compute to train for, instead of targets; of these, those that the task can spend then only set what is
    compared without training."""
    reward: RewardName = "accuracy"
    """What learners of RL are paid; see `skipgym.envs.rewards`. Others minimise a loss of their own."""
    seeds: int = 3
    """Trainings of each method and budget."""
    images: int = 20_000
    """Budget of a training: the backbone's MACs of so many images with everything executed."""
    num_envs: int = 256
    """Images at a time."""
    hidden: int = 64
    """Width of the gates."""
    joint_images: int = 20_000
    """Images on which methods named NAME+joint then finetune gate and network together, beyond the budget."""
    oracle_images: int = 1000
    """Test images for the oracle's bounds; 0 leaves it out."""
    oracle_paths: int = 1024
    """Paths that the oracle looks at, at most: exact where there are no more."""
    workers: int = 2
    """Processes side by side, with one thread each."""

    def __post_init__(self) -> None:
        """Check what needs neither data nor weights."""
        super().__post_init__()
        for name in ("seeds", "images", "num_envs", "hidden", "workers", "oracle_paths", "joint_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}. Change --{_flag(name)}.")
        if self.oracle_images < 0:
            raise ValueError(f"oracle_images: expected 0 or more, got {self.oracle_images}.")
        if not self.targets and not self.prices:
            raise ValueError("targets: expected one or more, or --prices, got none of both.")
        for name in ("targets", "prices"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: expected each once, got {values}.")
        for price in self.prices:
            if not 0 <= price < math.inf:
                raise ValueError(f"prices: expected finite numbers of 0 or more, got {price}.")
        for name in self.agents:
            if name not in (ALL, *UNTRAINED):  # `check_methods` says why not, when the task is known
                method(name)

    @property
    def budgets(self) -> tuple["Budget", ...]:
        """What is asked of the methods."""
        if self.prices:
            return tuple(Budget(price=price) for price in self.prices)
        return tuple(Budget(target=target) for target in sorted(self.targets))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A compute target, or a price."""

    target: float | None = None
    price: float | None = None

    def __str__(self) -> str:
        return f"price{self.price:g}" if self.target is None else f"compute{self.target:g}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training, measured at one budget, or at several where one training serves them.

    Attributes:
        method: Name of the method.
        seed: Of the training.
        budgets: At which it is measured.
    """

    method: str
    seed: int
    budgets: tuple[Budget, ...]

    def train_config(self, config: CompareConfig, full_macs: int) -> TrainConfig:
        """Return how it is trained."""
        how, first = method(self.method), self.budgets[0]
        return TrainConfig(
            task=config.task,
            backbone=config.backbone,
            data=config.data,
            weights=config.weights,
            class_indices=config.class_indices,
            agent=how.agent,
            price=how.priced or (0.0 if first.price is None else first.price),
            target_compute=None if how.priced else first.target,
            reward=config.reward,
            images=10 * config.images,  # the MACs end it first
            train_macs=float(config.images * full_macs),
            num_envs=config.num_envs,
            hidden=config.hidden,
            seed=self.seed,
            task_options=config.task_options,
            augment=config.augment,
            augment_val=config.augment_val,
            table=config.table,
            prefix=config.prefix,
            agent_options=dict(how.options),
            joint=config.joint_images if how.joint else 0,
        )

    def key(self, config: CompareConfig, identity: dict[str, str]) -> str:
        """Return the name of its directory: legible, and different wherever its result could be."""
        settings = self._settings(config)
        content = json.dumps(
            [REVISION, settings, [str(b) for b in self.budgets], identity], default=str, sort_keys=True
        )
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        budget = str(self.budgets[0]) if len(self.budgets) == 1 else "all"
        return f"{self.method}-{budget}-seed{self.seed}-{digest}"

    def _settings(self, config: CompareConfig) -> dict[str, Any]:
        """Return whatever the result depends on."""
        if not is_learned(self.method):
            return {
                "task": config.task,
                "options": config.task_options,
                "table": [config.table, config.augment],
                "oracle": [config.oracle_images, config.oracle_paths],
                **({"prefix": config.prefix} if config.prefix else {}),
            }
        settings = asdict(self.train_config(config, 1))
        return {key: one for key, one in settings.items() if one or key not in ("joint", "prefix")}  # as before these


def cells(
    config: CompareConfig, *, exits: bool = False, rules: Iterable[str] = (), countable: bool = True
) -> list[Cell]:
    """Return all cells: first what needs no training, then seed by seed, so that an unfinished table is balanced.

    Args:
        config: What is compared.
        exits: Whether the task has exits, for the threshold methods.
        rules: The task's fixed rules.
        countable: Whether its ways through can be counted, for the oracle.
    """
    targets = tuple(Budget(target=target) for target in sorted(config.targets))
    untrained = [
        Cell(method="full", seed=0, budgets=(Budget(target=1.0),)),
        Cell(method="static", seed=0, budgets=config.budgets),
    ]
    if targets:
        untrained += [Cell(method="random", seed=seed, budgets=targets) for seed in range(config.seeds)]
        untrained += [Cell(method=f"{RULE}{name}", seed=0, budgets=targets) for name in rules]
    if exits:
        untrained += [Cell(method=name, seed=0, budgets=config.budgets) for name in THRESHOLDS]
    if targets and config.oracle_images and countable:
        untrained.append(Cell(method="oracle", seed=0, budgets=targets))
    return untrained + [
        Cell(method=name, seed=seed, budgets=budgets)
        for seed in range(config.seeds)
        for name in config.agents
        for budgets in _grouped(config, name)
    ]


def _grouped(config: CompareConfig, name: str) -> list[tuple[Budget, ...]]:
    if method(name).every_budget:
        return [config.budgets]
    return [(budget,) for budget in config.budgets]


def as_json(config: CompareConfig) -> dict[str, Any]:
    """Return the fields as JSON can hold them."""
    return json.loads(json.dumps(asdict(config), default=str))


def _flag(name: str) -> str:
    return name.replace("_", "-")
