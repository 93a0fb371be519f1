"""Training stops at the first limit that is reached, and is validated evenly on the way."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from skipgym.agents.monitor import Monitor
from skipgym.agents.policy import full_policy
from skipgym.agents.training import TrainConfig, train
from skipgym.envs import make_task
from skipgym.envs.tally import Tally


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


def test_what_drawn_options_spend_beyond_the_policy_is_told(monitor, task):
    """Half of the network while options are drawn, all of it by the policy: half a step from 0 towards -0.5."""
    watched, tally = monitor(), Tally(len(task.pieces))
    none, half = torch.zeros(4), torch.full((4,), 0.5)
    tally.finish(reward=none, correct=none, compute=half, backbone_macs=none)
    watched.record(tally)
    watched.validate(full_policy(task), force=True)
    assert watched.beyond == pytest.approx(-0.25)


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


def test_calls_of_each_way_at_a_fork_are_logged(random_backbone, dark_or_bright, tmp_path):
    task = make_task("routing", random_backbone("tree-resnet8-w4"))
    watched = Monitor(task, dark_or_bright.val, out=tmp_path, prices=(0.1,), target=None, images=10, quiet=True)
    watched.validate(full_policy(task), force=True)
    watched.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    logged = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"] if tag.startswith("called/")}
    assert len(logged) == 2 + 4 + 8
    assert logged["called/branch of layer1/0"] == 0
    assert logged["called/branch of layer3 at node 3/1"] == 1
