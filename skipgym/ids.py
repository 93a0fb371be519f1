"""The Gymnasium ids. Nothing here imports torch, so that importing skipgym stays fast."""

from gymnasium.envs.registration import register, registry

TASKS = {"layer-skip": "LayerSkip", "block-drop": "BlockDrop"}
"""Our tasks: name on the command line, name in the id. The module is named as the command."""


def register_envs() -> None:
    """Register one id for each task; each makes an environment on embedded data without further arguments."""
    for task, name in TASKS.items():
        if f"skipgym/{name}-v0" not in registry:
            register(
                f"skipgym/{name}-v0",
                entry_point="skipgym.envs:SkipEnv",
                vector_entry_point="skipgym.envs:SkipVectorEnv",
                kwargs={"task": task},
            )
