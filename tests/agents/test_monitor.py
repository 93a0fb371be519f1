"""Training stops at the first limit that is reached, and is validated evenly on the way."""

import pytest

from skipgym.agents.monitor import Monitor
from skipgym.agents.policy import full_policy
from skipgym.agents.training import TrainConfig, train
from skipgym.envs import make_task


@pytest.fixture
def task(small_backbone):
    return make_task("layer-skip", small_backbone)


@pytest.fixture
def monitor(task, dark_or_bright):
    def build(**limits):
        limits = {"images": 1_000, **limits}
        return Monitor(task, dark_or_bright.val, out=None, prices=(0.1,), target=None, quiet=True, **limits)

    return build


def test_done_is_the_limit_that_is_furthest(monitor):
    watched = monitor(macs=400.0)
    watched.advance(100)
    assert watched.done_share == pytest.approx(0.1)
    watched.backbone_macs = 300.0
    assert watched.done_share == pytest.approx(0.75)
    watched.advance(800)
    assert watched.done_share == pytest.approx(0.9)


def test_without_a_limit_macs_do_not_count(monitor):
    watched = monitor()
    watched.backbone_macs = 1e15
    assert watched.done_share == 0


def test_validations_are_even_over_the_episodes(monitor, task):
    watched = monitor(validations=4)
    for _ in range(100):
        watched.advance(10)
        watched.validate(full_policy(task))
    assert [entry["images"] for entry in watched.history] == [250, 500, 750, 1_000]


def test_validations_are_even_over_the_macs_where_these_end_training(monitor, task):
    watched = monitor(macs=1_000.0, validations=4)
    for _ in range(100):
        watched.advance(1)
        watched.backbone_macs += 10
        watched.validate(full_policy(task))
    assert [entry["images"] for entry in watched.history] == [25, 50, 75, 100]


@pytest.mark.parametrize(
    ("agent", "played"),
    [
        ("ppo", 21 * 32),  # a rollout: 63 decisions in each slot, 3 an image
        ("reinforce", 2 * 32),  # a batch, played twice
    ],
)
def test_training_stops_at_the_budget_of_backbone_macs(agent, played, task, dark_or_bright):
    budget = 3_000 * task.full_macs
    config = TrainConfig(agent=agent, images=10**9, num_envs=32, hidden=8, train_macs=budget)
    trained = train(config, task, dark_or_bright, quiet=True)
    assert budget <= trained.backbone_macs <= budget + played * task.full_macs
    assert len(trained.history) > 1
