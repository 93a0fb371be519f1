"""What holds for every registered task. Registering one tests it; `CASES` in conftest.py names its backbone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.envs import Hard, Masked, Soft, Task, make_task, one_hot, register_task, rollout, task_names
from skipgym.envs.task import REGISTRY
from skipgym.ids import TASKS

from .conftest import follow

seeds = st.integers(0, 10**6)


def close(got, expected):
    return torch.allclose(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@given(seed=seeds)
def test_hard_equals_masked_equals_soft_at_one_hot(world, seed):
    actions = world.actions(seed)
    hard, masked, soft = (
        world.follow(actions, kind) for kind in (Hard, Masked, lambda a: one_hot(a, world.task.decisions))
    )
    assert close(masked.logits, hard.logits)
    assert close(soft.logits, hard.logits)
    assert torch.equal(masked.macs, hard.macs)
    assert torch.equal(soft.macs, hard.macs)


@given(seed=seeds)
def test_observations_agree_between_hard_masked_and_soft(world, seed):
    actions, seen = world.actions(seed), []
    for kind in (Hard, Masked, lambda a: one_hot(a, world.task.decisions)):
        observed = torch.zeros(len(world.inputs), world.task.horizon, *world.task.observation_shape)

        def decide(state, kind=kind, observed=observed):
            observed[state.rows, state.position] = world.task.observe(state)
            return kind(world.at(state, actions))

        with torch.no_grad():
            follow(world.task, world.inputs, decide)
        seen.append(observed)
    assert seen[0].abs().sum() > 0
    assert close(seen[1], seen[0])
    assert close(seen[2], seen[0])


@given(seed=seeds)
def test_rows_do_not_depend_on_their_neighbours(world, seed):
    actions = world.actions(seed)
    together = world.follow(actions)
    for i in range(len(world.inputs)):
        alone = world.follow(actions[i : i + 1], inputs=world.inputs[i : i + 1])
        assert close(alone.logits[0], together.logits[i])
        assert alone.macs[0] == together.macs[i]


@given(seed=seeds)
def test_order_of_rows_is_kept(world, seed):
    actions = world.actions(seed)
    order = torch.randperm(len(world.inputs), generator=torch.Generator().manual_seed(seed))
    straight, shuffled = world.follow(actions), world.follow(actions[order], inputs=world.inputs[order])
    assert close(shuffled.logits, straight.logits[order])
    assert torch.equal(shuffled.macs, straight.macs[order])


def test_answers_differ_between_images_and_between_decisions(world):
    """Otherwise the identities above would say nothing."""
    first, second = world.follow(world.actions(1)), world.follow(world.actions(2))
    assert first.logits.std(0).max() > 1e-3
    assert not close(first.logits, second.logits)


@given(seed=seeds)
def test_no_way_through_is_cheaper_than_declared(world, seed):
    assert world.follow(world.actions(seed)).macs.min() >= world.task.least_macs
    assert world.task.least_macs < world.task.full_macs == world.task.backbone.full_macs


def test_first_options_are_the_cheapest_way_through(world):
    macs = world.follow(torch.zeros_like(world.actions(0))).macs
    assert macs.tolist() == [world.task.least_macs] * 7


def test_soft_gradients_reach_every_weight(world):
    torch.manual_seed(0)
    options = max(world.task.decisions)
    logits = torch.randn(len(world.inputs), world.task.horizon, len(world.task.decisions), options, requires_grad=True)

    def decide(state):
        rows = logits[state.rows, state.position]  # (N, parts, options)
        return Soft([rows[:, i, :count].softmax(1) for i, count in enumerate(world.task.decisions)])

    run = follow(world.task, world.inputs, decide)
    for loss in (run.logits.square().sum(), run.macs.sum()):
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert torch.isfinite(gradient).all()
        assert (gradient.abs().amax((0, 3)) > 0).all()  # each part of each decision matters


def test_no_gradient_reaches_the_backbone(world):
    before = world.task.backbone.fingerprint()
    world.follow(world.actions(0))
    assert not any(parameter.requires_grad for parameter in world.task.backbone.parameters())
    assert not any(module.training for module in world.task.train().backbone.modules())
    assert world.task.backbone.fingerprint() == before


def test_inputs_and_first_state_are_left_as_they_are(world):
    inputs = world.inputs.clone()
    start = world.task.begin(world.inputs)
    features = start.features.clone()
    with torch.no_grad():
        follow(world.task, world.inputs, lambda state: Hard(world.at(state, world.actions(3))))
        world.task.step(start, Masked(world.at(start, world.actions(4))))
    assert torch.equal(world.inputs, inputs)
    assert torch.equal(start.features, features)


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


def test_facts_fit_each_other(world):
    task = world.task
    assert len(task.pieces) == task.horizon * len(task.decisions)
    assert len(set(task.pieces)) == len(task.pieces)
    assert task.observe(task.begin(world.inputs)).shape == (7, *task.observation_shape)
    assert task.action_space.contains(task.action_space.sample())
    assert make_task(task.name, task.backbone).action_space == task.action_space


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
