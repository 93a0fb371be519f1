"""skipgym: learn what not to compute.

The packages lie at the top of the repository (`envs/`, `agents/`, …) and import as `skipgym.envs`, `skipgym.agents`, ….
Importing `skipgym` registers the Gymnasium ids; torch is imported only when something needs it.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ids import register_envs

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").exists():  # a checkout: the sibling folders are our subpackages, installed or not
    __path__.append(str(_ROOT))

try:
    __version__ = version("skipgym")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

if TYPE_CHECKING:
    from .agents.controller import Controller
    from .backbones import Backbone, load_backbone, make_backbone, wrap
    from .data import load as load_data
    from .envs import Task, make_task, register_task

_LAZY = {
    "Backbone": "backbones",
    "Controller": "agents.controller",
    "Task": "envs",
    "load_backbone": "backbones",
    "load_data": "data",
    "make_backbone": "backbones",
    "make_task": "envs",
    "register_task": "envs",
    "wrap": "backbones",
}
__all__ = [
    "Backbone",
    "Controller",
    "Task",
    "load_backbone",
    "load_data",
    "make_backbone",
    "make_task",
    "register_task",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'skipgym' has no attribute {name!r}")
    module = import_module(f".{_LAZY[name]}", __name__)
    return getattr(module, "load" if name == "load_data" else name)


register_envs()
