"""The pages that follow from the code: tasks, names, commands, reference, tutorial."""

import contextlib
import inspect
import io
import os
import pkgutil
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import skipgym
from skipgym.agents.learner import agent_names
from skipgym.backbones import backbone_names, make_backbone
from skipgym.data import data_names
from skipgym.envs import REWARDS, Layout, make_task, task_names
from skipgym.envs.task import Task, task_class
from skipgym.ids import env_id
from skipgym.registry import first_line
from skipgym.scripts.cli import COMMANDS, main, usage

INSTALLED = next(Path(entry).resolve() for entry in sys.path if (Path(entry) / "skipgym" / "envs").is_dir())
"""Where the packages lie as they import; in a checkout `skipgym/` is only one of them."""
PACKAGES = ("envs", "agents", "backbones", "data", "referee", "runtime", "bench", "testing")
EXAMPLE = ("resnet20", (1, 8, 8))
"""Backbone and images for which task pages give figures."""


def task_pages() -> dict[str, str]:
    """Return an index of the registered tasks, and a page for each from its docstring."""
    names = task_names()
    rows = [f"| [{name}]({name}.md) | `{env_id(name)}` | {what} |" for name, what in names.items()]
    index = "\n".join(["# Tasks", "", "| task | id | |", "|---|---|---|", *rows, ""])
    return {"tasks/index.md": index} | {f"tasks/{name}.md": _task_page(name, task_class(name)) for name in names}


def _task_page(name: str, task: type[Task]) -> str:
    parts = [f"# {name}", f"`{env_id(name)}`", _sections(inspect.getdoc(task) or ""), _options(task), _facts(name)]
    use = (
        "Reward, price and info are those of [every environment][skipgym.envs.gym_env.SkipEnv].\n\n"
        "## Use\n\n```python\nimport gymnasium as gym\nimport skipgym\n\n"
        f'env = gym.make("{env_id(name)}", price=0.3)\nobservation, info = env.reset(seed=0)\n'
        "print(env.observation_space.contains(observation), env.action_space)\n```\n\n"
        f"```sh\nskipgym train --task {name} --backbone {task.default_backbone} --data {task.default_data} \\\n"
        "    --images 500 --num-envs 64 --hidden 8 --out RUN\n```"
    )
    return "\n\n".join(filter(None, [*parts, use])) + "\n"


def _sections(doc: str) -> str:
    """Return a docstring with its sections as headings; its first line stands alone."""
    return re.sub(
        r"^(\w[\w ]*):\n((?:    .*\n?|\n)+)",
        lambda found: f"## {found[1]}\n\n{inspect.cleandoc('    ' + found[2].strip())}\n\n",
        doc + "\n",
        flags=re.M,
    ).strip()


def _options(task: type[Task]) -> str:
    parameters = [p for n, p in inspect.signature(task.__init__).parameters.items() if n not in ("self", "backbone")]
    told = [f"`{p.name}`" + ("" if p.default is p.empty else f" = `{p.default!r}`") for p in parameters]
    return f"Options, for `--task-options` and `task_options`: {', '.join(told)}." if told else ""


def _facts(name: str) -> str:
    """Return what the task comes to on one backbone; nothing where it needs another kind."""
    backbone, shape = EXAMPLE
    try:
        task = make_task(name, make_backbone(backbone, input_shape=shape))
    except ValueError:
        return ""
    rows = {
        "decisions in an episode, at most": task.horizon,
        "action space": f"`{task.action_space}`",
        "observation, price not shown": f"`{Layout.of(task, priced=False).space.shape}`",
        "full network": f"{task.full_macs:,} MACs",
        "cheapest way through": f"{task.least_macs:,} MACs ({task.least_macs / task.full_macs:.1%})",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"## On {backbone} and {shape[0]} x {shape[1]} x {shape[2]} images\n\n| | |\n|---|---|\n{table}"


def reference_pages() -> dict[str, str]:
    """Return pages for names, commands, and each package's modules."""
    pages = {"reference/names.md": _names(), "reference/commands.md": _commands()}
    pages["reference/skipgym.md"] = "# skipgym\n\n" + "\n\n".join(
        f"- [`skipgym.{name}`][{_home(getattr(skipgym, name))}]" for name in skipgym.__all__
    )
    return pages | {f"reference/{name}.md": _package_page(name) for name in PACKAGES}


def _home(thing: type | Callable) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _package_page(name: str) -> str:
    package = import_module(f"skipgym.{name}")
    modules = [found.name for found in pkgutil.iter_modules(package.__path__)]
    doc = inspect.getdoc(package) or ""
    return f"# skipgym.{name}\n\n{doc}\n\n" + "\n\n".join(f"::: skipgym.{name}.{module}" for module in modules) + "\n"


def _names() -> str:
    kinds = {
        "Tasks": task_names(),
        "Agents": agent_names(),
        "Backbones": backbone_names(),
        "Data": data_names(),
        "Rewards": {name: first_line(kind) for name, kind in REWARDS.items()},
    }
    tables = [
        f"## {kind}\n\n| name | |\n|---|---|\n" + "\n".join(f"| `{name}` | {what} |" for name, what in names.items())
        for kind, names in kinds.items()
    ]
    return "# Names\n\nWhat `skipgym list` prints, installed plug-ins included.\n\n" + "\n\n".join(tables) + "\n"


def _commands() -> str:
    told = {"": usage().strip()} | {f"{name} ": _help(name) for name in COMMANDS}
    parts = [
        f"## skipgym {name}\n\n```sh\nskipgym {name}--help\n```\n\n<!-- output -->\n```text\n{text}\n```"
        for name, text in told.items()
    ]
    return "# Commands\n\n" + "\n\n".join(parts) + "\n"


def _help(command: str) -> str:
    """Return what a command prints about its options."""
    text, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):  # tyro leaves after its help
            main([command, "--help"])
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    return "\n".join(line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue()).strip().splitlines())


def tutorial(script: Path) -> str:
    """Return a script in cells as a page: text cells as text, the others as code."""
    _, *cells = re.split(r"^# %%", script.read_text(), flags=re.M)
    parts = [f"*Each block is a cell of [examples/{script.name}](examples/{script.name}), which runs as it stands.*"]
    for cell in cells:
        head, _, body = cell.partition("\n")
        text = body.strip()
        parts.append(re.sub(r"^# ?", "", text, flags=re.M) if "[markdown]" in head else f"```python\n{text}\n```")
    parts[0], parts[1] = parts[1], parts[0]  # the title comes first
    return "\n\n".join(parts) + "\n"
