"""`skipgym list`: what can be named."""

from ..agents.learner import agent_names
from ..backbones import backbone_names
from ..backbones.names import unknown
from ..data import data_names
from ..envs import REWARDS, task_names


def main(arguments: list[str]) -> int:
    """Run the command; arguments name the kinds to list, all by default."""
    kinds = {
        "tasks": task_names,
        "agents": agent_names,
        "backbones": backbone_names,
        "data": data_names,
        "rewards": lambda: {name: (kind.__doc__ or "").strip().split("\n")[0] for name, kind in REWARDS.items()},
    }
    if arguments in (["-h"], ["--help"]):
        print(f"usage: skipgym list [{' | '.join(kinds)}] …")
        return 0

    for word in arguments:
        if word not in kinds:
            raise ValueError(unknown("kind", word, kinds))
    for kind in arguments or kinds:
        print(f"{kind}:")
        names = kinds[kind]()
        width = max(map(len, names))
        for name, description in names.items():
            print(f"  {name:{width}}  {description}")
    return 0
