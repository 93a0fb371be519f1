"""What holds for every registered task. Registering one tests it; `CASES` in conftest.py names its backbone."""

import warnings

import pytest
import torch

from skipgym.envs import Hard, Task, make_task, one_hot, register_task, rollout, task_names
from skipgym.envs.task import REGISTRY
from skipgym.ids import TASKS
from skipgym.testing import RULES, SkippedRuleWarning, check_task


@pytest.mark.parametrize("seed", [0, 1])
def test_task_keeps_every_promise(world, seed):
    """See `skipgym.testing`; `tests/testing` shows that each rule can fail."""
    task = world.task
    beyond = {} if task.reaches_full else {"full network": "no way through is the untouched network"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRuleWarning)
        report = check_task(task, seed=seed, count=7, tables=8, skip=beyond)
    assert report.passed == [rule for rule in RULES if rule not in beyond]


def test_rollout_tells_the_actions_and_agrees(world):
    actions = world.actions(5)
    with torch.no_grad():
        run = rollout(world.task, world.inputs, lambda state: Hard(world.at(state, actions)))
    assert torch.equal(run.logits, world.follow(actions).logits)
    flat = actions.flatten(1)
    decided = run.actions >= 0
    assert torch.equal(run.actions[decided], flat[decided])
    assert decided[:, 0].all()
    assert torch.equal(run.decided(world.task.horizon), decided[:, :: len(world.task.decisions)].sum(1))


def test_rollout_refuses_soft_choices(world):
    with pytest.raises(TypeError, match="expected Hard choices, got Soft"):
        rollout(world.task, world.inputs, lambda s: one_hot(world.at(s, world.actions(0)), world.task.decisions))


def test_name_and_options_make_the_same_task(world):
    task = world.task
    assert make_task(task.name, task.backbone, **task.options).action_space == task.action_space


class TestRegistry:
    def test_ours_have_ids_and_descriptions(self):
        assert set(TASKS) <= set(task_names())
        assert all(task_names().values())

    def test_unknown_task_is_told_with_close_matches(self, tiny_backbone):
        with pytest.raises(ValueError, match=r"unknown task: .*got 'layerskip'\. Did you mean layer-skip"):
            make_task("layerskip", tiny_backbone)

    def test_unknown_option_is_told(self, tiny_backbone):
        with pytest.raises(ValueError, match=r"options of task layer-skip: .*'gird'.*help\(skipgym\.envs\.LayerSkip\)"):
            make_task("layer-skip", tiny_backbone, gird=2)

    def test_options_are_kept(self, tiny_backbone):
        assert make_task("layer-skip", tiny_backbone, grid=2).options == {"grid": 2}

    def test_name_can_be_registered_once(self, monkeypatch):
        monkeypatch.setattr(REGISTRY, "registered", dict(REGISTRY.registered))

        class Mine(Task):
            """Mine."""

        register_task("mine")(Mine)
        assert Mine.name == "mine"
        assert task_names()["mine"] == "Mine."
        with pytest.raises(ValueError, match="expected a new one, got 'mine', which is taken"):
            register_task("mine")(Mine)
