"""Rules of keeping: backbone, inputs and configuration are what they were, and an environment can be made."""

import copy
import hashlib
import io
import json
import pickle
from collections.abc import Iterator
from contextlib import redirect_stdout
from warnings import catch_warnings, simplefilter

import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from ..data import Part
from ..envs.choice import Hard, Masked
from ..envs.engine import Engine
from ..envs.gym_env import SkipEnv
from ..envs.rewards import make_reward
from ..envs.state import State
from ..envs.task import Task
from .report import Failure
from .trial import Trial, difference


def frozen(trial: Trial) -> Iterator[Failure]:
    """Running, in training mode too, changes no parameter and no buffer, and none asks for a gradient."""
    task, rule = trial.task, "frozen"
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            what = "expected no parameter of a task to be trained, got one that asks for a gradient"
            yield Failure(rule, what, name, "Call requires_grad_(False) on modules of your own: only policies learn.")
            return
    before, training = _digests(task), task.training
    for mode in (True, False):
        task.train(mode)
        trial.follow(trial.mixed)
    task.train(training)
    if changed := [name for name, digest in _digests(task).items() if before.get(name) != digest]:
        what = f"expected parameters and buffers as they were, got {len(changed)} others"
        remedy = "Write to no module in begin, observe and step; keep BatchNorm of your own in evaluation."
        yield Failure(rule, what, changed[0], remedy)


def _digests(task: Task) -> dict[str, str]:
    """Return a hash of each parameter and buffer."""
    return {
        name: hashlib.sha256(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in task.state_dict().items()
    }


def inputs_kept(trial: Trial) -> Iterator[Failure]:
    """The inputs, and a state that has been observed and stepped from, are left as they were."""
    inputs, start = trial.inputs.clone(), trial.task.begin(trial.inputs)
    kept, rule = copy.deepcopy(start), "left as they are"
    with torch.no_grad():
        for kind in (Hard, Masked):
            trial.task.observe(start)
            trial.task.step(start, trial.choice(start, trial.mixed, kind))
    if not torch.equal(trial.inputs, inputs):
        yield Failure(rule, "expected the inputs as they were, got others", "begin", "Write into a clone of them.")
        return
    for name, old, new in _tensors(kept, start):
        if not torch.equal(old, new):
            what = f"expected the {name} of a state to stay as they were, got others"
            remedy = "Write into no state (x += …, x[…] = …, inplace=True): other branches and runs share it."
            yield Failure(rule, what, "observe or step at position 0", remedy)
            return


def _tensors(old: State, new: State) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name in ("features", "macs", "alive"):
        yield name, getattr(old, name), getattr(new, name)
    for name, value in old.memory.items():
        yield f"{name} (memory)", value, new.memory[name]


def configuration(trial: Trial) -> Iterator[Failure]:
    """A task's options are JSON, and build it again: a saved controller does so."""
    task, rule = trial.task, "configuration"
    try:
        options = json.loads(json.dumps(task.options))
    except (TypeError, ValueError) as error:
        remedy = "Take numbers, strings and lists as options, and build modules from them in __init__."
        yield Failure(rule, f"expected options that JSON can hold, got {error}", "options", remedy)
        return
    call = ", ".join(["backbone", *(f"{key}={value!r}" for key, value in options.items())])
    expected = f"expected {type(task).__name__}({call})"
    try:
        again = type(task)(task.backbone, **options)
    except Exception as error:  # whatever somebody's constructor raises
        what = f"{expected} to build the task again, got {type(error).__name__}: {error}"
        yield Failure(rule, what, "__init__", "Give every argument but the backbone a keyword, and pass it by that.")
        return
    if found := _other(trial, again):
        remedy = "Pass options by keyword, draw nothing at random in __init__, and change nothing afterwards."
        yield Failure(rule, f"{expected} to be the same task, got one of another {found}", "options", remedy)


def pickling(trial: Trial) -> Iterator[Failure]:
    """A pickled task is the same task: environments in processes of their own need it."""
    rule, where = "pickling", type(trial.task).__name__
    try:
        again = pickle.loads(pickle.dumps(trial.task))
    except Exception as error:  # pickle raises whatever the parts raise
        what = f"expected a task that can be pickled, got {type(error).__name__}: {error}"
        yield Failure(rule, what, where, "Keep no lambda, local function, generator or open file in the task.")
        return
    if found := _other(trial, again):
        what = f"expected the same task after pickling, got one of another {found}"
        yield Failure(rule, what, where, "Keep all that it needs in attributes that pickle keeps.")


def _other(trial: Trial, again: Task) -> str | None:
    """Return in what another task differs."""
    for name in ("horizon", "decisions", "observation_shape", "least_macs"):
        if getattr(again, name) != getattr(trial.task, name):
            return name
    found = difference(trial.on(again).follow(trial.mixed), trial.follow(trial.mixed))
    return found[0] if found else None


def environment(trial: Trial) -> Iterator[Failure]:
    """The environment made of it passes Gymnasium's own check."""
    labels = torch.arange(len(trial.images)) % trial.task.backbone.num_classes
    images = trial.images if trial.images.dtype == torch.uint8 else (255 * trial.images).round().to(torch.uint8)
    data, reward = Part(images, labels), make_reward("accuracy")
    try:
        with catch_warnings(), redirect_stdout(io.StringIO()):
            simplefilter("ignore")  # advice about bounds; observations have none
            check_env(SkipEnv(engine=Engine(trial.task, data, reward=reward, price=0.3, num_envs=1)))
    except Exception as error:  # gymnasium raises assertions, and passes on what the task raises
        what = f"expected an environment that passes gymnasium's check_env, got {type(error).__name__}: {error}"
        yield Failure("environment", what, "SkipEnv", "Mend what the message names.")
