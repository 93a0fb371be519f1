"""`skipgym list`: what can be named."""

import sys
import warnings

from ..agents.learner import agent_names
from ..backbones import backbone_names
from ..data import data_names
from ..envs import REWARDS, task_names
from ..names import unknown
from ..registry import PluginWarning, first_line


def main(arguments: list[str]) -> int:
    """Run the command; arguments name the kinds to list, all by default."""
    kinds = {
        "tasks": task_names,
        "agents": agent_names,
        "backbones": backbone_names,
        "data": data_names,
        "rewards": lambda: {name: first_line(kind) for name, kind in REWARDS.items()},
    }
    if arguments in (["-h"], ["--help"]):
        print(f"usage: skipgym list [{' | '.join(kinds)}] …")
        return 0

    for word in arguments:
        if word not in kinds:
            raise ValueError(unknown("kind", word, kinds))
    for kind in arguments or kinds:
        with warnings.catch_warnings(record=True) as broken:
            warnings.simplefilter("always", PluginWarning)
            names = kinds[kind]()
        for warning in broken:
            print(f"warning: {warning.message}", file=sys.stderr)
        print(f"{kind}:")
        width = max(map(len, names))
        for name, description in names.items():
            print(f"  {name:{width}}  {description}")
    return 0
