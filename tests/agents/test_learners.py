"""Every learner solves a tiny task whose optimum is known, and none touches the backbone."""

from unittest.mock import Mock

import pytest
import torch

from skipgym.agents.budget import Lagrange
from skipgym.agents.evaluate import measure
from skipgym.agents.learner import Setting, agent_names
from skipgym.agents.training import TrainConfig, train
from skipgym.envs import make_task

# Whose updates take long: they make fewer, at a higher rate.
FEWER = {
    "dqn": {"images": 6_000},
    "recurrent-ppo": {
        "images": 8_000,
        "agent_options": {"learning_rate": 1e-2, "n_steps": 8, "batch_size": 128, "n_epochs": 4},
    },
}


@pytest.mark.parametrize("agent", sorted(agent_names()))
def test_learner_finds_the_known_optimum(agent, tell, dark_or_bright):
    """DS-Net's sandwich asks for everything or nothing, neither of which answers right here."""
    options = {"target": "cheapest"} if agent == "ds-gate" else {}
    how = {"images": 12_000, "agent_options": options} | FEWER.get(agent, {})
    config = TrainConfig(agent=agent, price=0.1, num_envs=64, hidden=16, **how)
    trained = train(config, tell, dark_or_bright, quiet=True)
    test = measure(trained.controller, dark_or_bright.test)
    assert test.accuracy == 1.0
    policy = trained.controller.policy
    gates = (policy.macs_at(0) + policy.macs_at(1)) / tell.full_macs
    assert test.compute == pytest.approx(0.1 + gates)  # one of the two decisions executes
    assert test.execution == pytest.approx([float(x) for x in _shares(dark_or_bright.test)])


@pytest.mark.parametrize("agent", sorted(agent_names()))
def test_learner_leaves_at_an_exit_where_it_is_enough(agent, enough, dark_or_bright):
    """ConvNet-AIG is asked for the rate at which the images need the second stage."""
    options = {"rate": 0.5, "weight": 0.1} if agent == "convnet-aig" else {}
    how = {"images": 12_000, "agent_options": options} | FEWER.get(agent, {})
    config = TrainConfig(agent=agent, price=1.0, num_envs=64, hidden=16, **how)
    test = measure(train(config, enough, dark_or_bright, quiet=True).controller, dark_or_bright.test)
    assert test.accuracy == 1.0
    assert test.execution == [float((dark_or_bright.test.labels == 0).float().mean())]


@pytest.mark.parametrize("agent", ["ppo", "a2c", "reinforce", "path-table"])
def test_learner_solves_decisions_of_several_parts(agent, tell_at_once, dark_or_bright):
    config = TrainConfig(agent=agent, price=0.1, images=12_000, num_envs=64, hidden=16)
    trained = train(config, tell_at_once, dark_or_bright, quiet=True)
    assert measure(trained.controller, dark_or_bright.test).accuracy == 1.0


@pytest.mark.parametrize("agent", sorted(agent_names()))
def test_training_leaves_the_backbone_bit_identical(agent, small_backbone, dark_or_bright):
    task = make_task("layer-skip", small_backbone)
    before = {key: value.clone() for key, value in task.backbone.state_dict().items()}
    fingerprint = task.backbone.fingerprint()
    train(TrainConfig(agent=agent, images=1_000, num_envs=32, hidden=8), task, dark_or_bright, quiet=True)
    after = task.backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert fingerprint == task.backbone.fingerprint() == small_backbone.fingerprint()


@pytest.mark.parametrize(("agent", "prices", "most"), [("ppo", (1.0, 30.0), 0.1), ("reinforce", (0.1, 12.0), 0.9)])
def test_price_conditioned_policy_answers_to_its_price(agent, prices, most, tell, dark_or_bright):
    """From a price of 10 on an execution, a tenth of the network, costs more than a right answer earns; before it pays.

    Executing always where it helps comes to 1. Of REINFORCE's episodes one in 26 is beyond 10: it may be unsure there.
    """
    config = TrainConfig(agent=agent, price=prices, images=20_000, num_envs=64, hidden=16)
    controller = train(config, tell, dark_or_bright, quiet=True).controller
    cheap, dear = (measure(controller, dark_or_bright.test, price=price) for price in prices)
    assert cheap.accuracy == 1.0
    assert sum(dear.execution) < most < sum(cheap.execution)


def test_same_seed_gives_the_same_policy(tell, dark_or_bright):
    config = TrainConfig(agent="reinforce", images=1_000, num_envs=32, hidden=8, seed=5)
    policies = [train(config, tell, dark_or_bright, quiet=True).controller.policy for _ in range(2)]
    first, second = (policy.state_dict() for policy in policies)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_dqn_refuses_decisions_of_several_parts_and_leaves_nothing(tell_at_once, dark_or_bright, tmp_path):
    with pytest.raises(ValueError, match="one part"):
        train(TrainConfig(agent="dqn"), tell_at_once, dark_or_bright, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_unknown_option_of_reinforce_is_told(tell, dark_or_bright):
    with pytest.raises(ValueError, match="momentum"):
        train(TrainConfig(agent="reinforce", agent_options={"momentum": 1}), tell, dark_or_bright, quiet=True)


def test_price_follows_what_the_policy_spends_not_what_is_drawn():
    """Drawn options spend the target; the likelier ones 0.4 more, for which the price rises by as much."""
    lagrange = Lagrange(0.5, rate=0.0, proportional=1.0, anneal=0.0)
    setting = Mock(lagrange=lagrange, monitor=Mock(beyond=-0.4, done_share=0.5))
    engine = Mock()
    Setting.reprice(setting, engine, 0.5)
    engine.set_price.assert_called_once_with(pytest.approx(0.4))


def test_lagrange_moves_the_price_towards_the_target():
    lagrange = Lagrange(0.5, start=1.0, rate=2.0, proportional=0.5, anneal=0.0)
    # 0.4 too much over a tenth of training: 1 + 2 · 0.4 · 0.1, and 0.5 · 0.4 on top
    assert lagrange.update(0.9, 0.1) == pytest.approx(1.08 + 0.2)
    assert lagrange.update(0.1, 0.2) == pytest.approx(1.00 - 0.2)
    assert Lagrange(0.5, start=0.01, anneal=0.0).update(0.0, 0.5) == 0.0  # a price is never negative


def test_target_comes_down_from_one():
    lagrange = Lagrange(0.4, anneal=0.5)
    assert [lagrange.current_target(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.7, 0.4, 0.4])


def _shares(part):
    bright = part.labels.float().mean()
    return bright, 1 - bright
