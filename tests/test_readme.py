"""The README's example of a task works as it stands, with every interpreter that we have."""

import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import pytest
import torch

import skipgym
from skipgym.agents.evaluate import measure
from skipgym.agents.training import TrainConfig, prepare, train
from skipgym.envs import Hard, Masked, one_hot, rollout
from skipgym.referee.workers import REGISTRIES
from skipgym.testing import SkippedRuleWarning

README = Path(__file__).parent.parent / "README.md"


def blocks(containing, language="python"):
    return [block for block in re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.S) if containing in block]


@pytest.fixture(scope="module")
def trained(briefly):
    (example,) = blocks("class ")
    module = sys.modules["readme"] = ModuleType("readme")  # where pickle finds the class
    exec(compile(example, str(README), "exec"), vars(module))
    config = TrainConfig(task="first-or-all", images=2_000, num_envs=64)
    task, data = prepare(config)
    yield train(config, task, data, quiet=True), data
    del REGISTRIES["task"].registered["first-or-all"], gym.registry["skipgym/FirstOrAll-v0"]


def test_example_trains_and_is_measured(trained):
    result, data = trained
    measured = measure(result.controller, data.test.subset(50))
    assert 0 < measured.compute <= 1.01


def test_example_means_the_same_to_every_choice(trained):
    task, images = trained[0].controller.task, trained[1].test.images[:10]
    actions = torch.arange(10) % 2
    inputs = task.prepare(images)
    routed, masked = (rollout(task, inputs, lambda s, kind=kind: kind(actions[s.rows])) for kind in (Hard, Masked))
    soft = task.step(task.begin(inputs), one_hot(actions, (2,)))
    torch.testing.assert_close(routed.logits, masked.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(routed.logits, soft.answer, rtol=1e-4, atol=1e-4)
    assert routed.macs.tolist() == masked.macs.tolist() == soft.macs.tolist()


def test_example_keeps_every_promise(trained):
    (check,) = blocks("check_task")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SkippedRuleWarning)
        exec(check, {"skipgym": skipgym, **vars(sys.modules["readme"])})


def test_entry_points_are_as_told():
    groups = {registry.group for registry in REGISTRIES.values()}
    (points,) = blocks("entry-points", "toml")
    assert groups == {*re.findall(r"skipgym\.\w+", points)}
