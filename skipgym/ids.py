"""The Gymnasium ids. Nothing here imports torch, so that importing skipgym stays fast."""

import re
import warnings

from gymnasium.envs.registration import register, registry

from .registry import PluginWarning, plugins

TASKS = {
    "layer-skip": "LayerSkip",
    "block-drop": "BlockDrop",
    "early-exit": "EarlyExit",
    "cascade": "Cascade",
    "channel-width": "ChannelWidth",
    "resolution": "Resolution",
    "patch-crop": "PatchCrop",
    "frame-select": "FrameSelect",
    "time-skip": "TimeSkip",
    "experts": "Experts",
    "routing": "Routing",
    "token-skip": "TokenSkip",
    "channel-gate": "ChannelGate",
    "pixel-mask": "PixelMask",
}
"""Our tasks: name on the command line, name in the id. The module is named as the command."""

PLUGINS = "skipgym.tasks"
"""Group of the entry points of installed tasks; the names are read, nothing is imported."""


def env_id(task: str) -> str:
    """Return the Gymnasium id of a task: `skipgym/FirstOrAll-v0` for `first-or-all`.

    Raises:
        ValueError: If the name is not made of words of a-z and 0-9 with hyphens between them.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", task):
        raise ValueError(
            f"task name: expected words of a-z and 0-9 with hyphens between them, got {task!r}. "
            "Rename it, as in 'first-or-all'."
        )
    return f"skipgym/{''.join(word.capitalize() for word in task.split('-'))}-v0"


def register_env(task: str) -> None:
    """Register the id of a task; it makes an environment on embedded data without further arguments.

    Raises:
        ValueError: If the name gives no id, or that of another task.
    """
    name = env_id(task)
    held = registry[name].kwargs["task"] if name in registry else task
    if held != task:
        raise ValueError(f"task name: expected one of its own id, got {task!r}, whose {name} is {held}'s. Rename it.")
    if name not in registry:
        register(
            name,
            entry_point="skipgym.envs:SkipEnv",
            vector_entry_point="skipgym.envs:SkipVectorEnv",
            kwargs={"task": task},
        )


def register_envs() -> None:
    """Register one id for each of our tasks and for each task of an installed plug-in."""
    for task in (*TASKS, *plugins(PLUGINS)):
        try:
            register_env(task)
        except ValueError as error:  # of a plug-in: it must not take the others with it
            warnings.warn(f"plug-in task: {error}", PluginWarning, stacklevel=2)
