"""The command line: one module for each command, imported only when it is called."""

import os
import sys
from importlib import import_module

from ..runtime.extra import MissingExtra

COMMANDS = {
    "demo": "the main job on embedded data: pretrain, train, compare, save, reload, evaluate",
    "pretrain": "train a (skip-robust) backbone",
    "train": "train a policy on a task and save its controller",
    "evaluate": "accuracy and compute of a controller, or of a method without training",
    "compare": "methods on equal terms: RL, Gumbel gates, baselines, bounds; figures with intervals, report",
    "export": "write a controller as one ONNX file that skips, for skipgym.runtime or any ONNX Runtime",
    "run": "answers for image files, with what was executed",
    "bench": "speed, as ratios in one run: of environments and learners, and of exported controllers",
    "list": "tasks, agents, backbones, data sets, rewards",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status. Errors that a user can cause are told in one line."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        from .. import __version__

        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        from ..names import unknown

        print(unknown("command", words[0], COMMANDS), file=sys.stderr)
        return 2
    from ..memory import keep_memory

    keep_memory()
    module = import_module(f".{words[0]}", __package__)
    try:
        return module.main(words[1:])
    except (ValueError, FileNotFoundError, FileExistsError, MissingExtra) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as in `skipgym list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def usage() -> str:
    """Return what `skipgym --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: skipgym COMMAND …      (skipgym COMMAND --help tells its options)", "", *lines])
