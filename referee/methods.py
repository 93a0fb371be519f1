"""The methods that can be compared: a learner, and how it is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..agents.baselines import RULE
from ..agents.learner import REGISTRY, make_learner
from ..agents.threshold import METHODS as THRESHOLDS
from ..agents.threshold import check_exits
from ..envs.task import Task
from ..names import unknown

Kind = Literal["RL", "Gumbel", "hybrid", "supervised", "own", "joint"]

JOINT = "+joint"
"""After a method's name: the network is finetuned with the gate afterwards."""

ALL = "all"
"""Instead of a method's name: all of ours that can take the task."""

UNTRAINED = ("full", "random", "static", "oracle", *THRESHOLDS)
"""Always in the table where the task allows them."""


def is_learned(name: str) -> bool:
    """Return whether rows of this name are of a trained policy."""
    return name not in (*UNTRAINED, "oracle-agree") and not name.startswith(RULE)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A learner with its options.

    Attributes:
        agent: Name of the learner.
        kind: By what it learns.
        priced: Trained once over a range of prices, then told one for each budget.
        options: Of the learner.
        joint: Whether gate and network are then finetuned together.
    """

    agent: str
    kind: Kind
    priced: tuple[float, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = False

    @property
    def every_budget(self) -> bool:
        """Whether one training serves every budget."""
        return self.priced is not None or self.agent == "path-table"


METHODS: dict[str, Method] = {
    "gumbel": Method(agent="gumbel", kind="Gumbel"),
    "convnet-aig": Method(agent="convnet-aig", kind="Gumbel"),
    "ds-gate": Method(agent="ds-gate", kind="Gumbel"),
    "ds-gate-cheapest": Method(agent="ds-gate", kind="Gumbel", options={"target": "cheapest"}),
    "skipnet": Method(agent="skipnet", kind="hybrid"),
    "skipnet-recurrent": Method(agent="skipnet", kind="hybrid", options={"recurrent": 1}),
    "ppo": Method(agent="ppo", kind="RL"),
    "ppo-priced": Method(agent="ppo", kind="RL", priced=(0.005, 1.0)),
    "recurrent-ppo": Method(agent="recurrent-ppo", kind="RL"),
    "a2c": Method(agent="a2c", kind="RL"),
    "dqn": Method(agent="dqn", kind="RL"),
    "reinforce": Method(agent="reinforce", kind="RL"),
    "imitate": Method(agent="imitate", kind="supervised"),
    "path-table": Method(agent="path-table", kind="supervised"),
}


def method(name: str) -> Method:
    """Return a method by its name, or by that of any registered learner; `NAME+joint` finetunes the network too.

    Raises:
        ValueError: If there is none.
    """
    if name.endswith(JOINT):
        return replace(method(name.removesuffix(JOINT)), kind="joint", joint=True)
    if name in METHODS:
        return METHODS[name]
    if REGISTRY.find(name) is None:
        raise ValueError(unknown("agent", name, {*METHODS, *REGISTRY.known()}))
    return Method(agent=name, kind="own")


def written_out(names: Sequence[str], task: Task) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the methods' names with `all` written out, and why any of ours cannot take the task.

    Raises:
        ValueError: As `check_methods`, of those that are named themselves.
    """
    named = [name for name in names if name != ALL]
    check_methods(named, task)
    if ALL not in names:
        return tuple(named), {}
    refused = {}
    for name in METHODS:
        try:
            check_methods([name], task)
        except ValueError as error:
            refused[name] = str(error)
    return tuple(dict.fromkeys([*(name for name in METHODS if name not in refused), *named])), refused


def check_methods(names: Sequence[str], task: Task) -> None:
    """Raise a ValueError if a method is unknown, named twice, or cannot take the task."""
    for name in names:
        if name in THRESHOLDS:
            check_exits(task, name)
        if name in UNTRAINED:
            raise ValueError(f"agents: expected learners, got {name}, which is always compared. Leave it out.")
        if names.count(name) > 1:
            raise ValueError(f"agents: expected each once, got {name} twice.")
        asked = method(name)
        make_learner(asked.agent).check(task, asked.options)
