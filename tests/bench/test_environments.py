import pytest
import torch
from torch import nn

from skipgym.bench.environments import calls_of, compare_environments, episode, replay
from skipgym.bench.ground import Ground, networks
from skipgym.bench.learners import AGENTS, KINDS, spend
from skipgym.bench.tables import TableSize, pace_of_prefix, pace_of_table, table_of
from skipgym.envs import Engine, Masked
from skipgym.envs.begun import Prefix
from skipgym.envs.sb3_env import SkipSB3Env

SMALL = {"backbone": "resnet8-w4", "shape": (1, 8, 8), "num_envs": 6, "rounds": 1}


@pytest.fixture(scope="module", params=["layer-skip", "block-drop", "resolution"])
def ground(request):
    return Ground(task=request.param, **SMALL)


def made(ground):
    data = ground.data(64)
    return ground.made(data), data


def test_four_ways_are_compared_on_any_task(ground):
    found = compare_environments(ground, *made(ground), single_envs=2)
    assert set(found.rates) == {"ours", "limit", "masked", "single"}
    assert all(rate > 0 for rates in found.rates.values() for rate in rates)


def test_limit_makes_the_calls_that_our_environment_makes():
    """By hand: of 6 rows, block i runs on those that chose it, its shortcut on the others; stem and head on all.

    The first block's shortcut is the identity, which runs nothing.
    """
    ground = Ground(**SMALL)
    task, data = made(ground)
    actions = ground.actions(task)
    calls = calls_of(task, episode(SkipSB3Env(ground.engine(task, data)), actions))
    net = task.backbone
    expected = []
    for block, chosen in zip(net.blocks, actions, strict=True):
        rows = int(chosen.sum())
        expected += [(block.bypass, 6 - rows)] * isinstance(block.bypass, nn.Module) + [(block.body, rows)]
    expected = [*((piece, rows) for piece, rows in expected if rows), (net.head, 6), (net.stem, 6)]
    assert [(piece, shape[0]) for piece, shape in calls] == expected
    again = calls_of(task, replay(calls, decisions=18))
    assert again == calls


def test_masked_runs_every_block_on_all_rows_to_the_same_end():
    ground = Ground(**SMALL)
    task, data = made(ground)
    actions = [torch.as_tensor(one) for one in ground.actions(task)]
    engines = [ground.engine(task, data), ground.engine(task, data, choose=Masked)]
    rows = []
    for engine in engines:
        engine.reset()
        rows.append(calls_of(task, lambda engine=engine: [engine.step(one) for one in actions]))
    assert [shape[0] for _, shape in rows[1]] == [6] * 7  # three blocks, two shortcuts that run something, head, stem
    for one in actions:
        found, expected = (engine.step(one) for engine in engines)
        assert torch.allclose(found.observation, expected.observation, atol=1e-5)
        assert torch.allclose(found.reward, expected.reward)


def test_noise_and_actions_follow_the_seed():
    one, same, other = (Ground(seed=seed, **SMALL) for seed in (0, 0, 1))
    tasks = [made(ground) for ground in (one, same, other)]
    images = [data.policy.images for _, data in tasks]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    assert tasks[0][0].backbone.fingerprint() == tasks[1][0].backbone.fingerprint()
    drawn = [ground.actions(task)[0].tolist() for ground, (task, _) in zip((one, same), tasks, strict=False)]
    assert drawn[0] == drawn[1]


def test_random_policy_keeps_to_its_rate():
    ground = Ground(rate=0.25, **SMALL)
    task, _ = made(ground)
    actions = ground.actions(task, 4000)
    assert sum(one.mean() for one in actions) / 3 == pytest.approx(0.25, abs=0.02)


def test_networks_of_a_task_are_told_once():
    task, _ = made(Ground(**SMALL))
    assert len(networks(task)) == 2 + 3 + 2  # stem and head, blocks, shortcuts where the shape changes
    assert all(isinstance(piece, nn.Module) for piece in networks(task))


def test_task_that_runs_nothing_has_no_limit():
    task, _ = made(Ground(**SMALL))
    with pytest.raises(ValueError, match="expected layer-skip to run its network's pieces, got none"):
        calls_of(task, lambda: None)


@pytest.mark.parametrize("agent", AGENTS)
def test_learners_time_is_told_by_kind_and_nothing_stays_watched(agent):
    step = Engine.step
    ground = Ground(**{**SMALL, "num_envs": 256})
    seconds = spend(ground, *made(ground), agent=agent, images=600)  # PPO first learns after 512
    assert list(seconds) == list(KINDS)
    assert all(seconds[kind] > 0 for kind in ("backbone", "environment", "policy", "update", "other"))
    assert (seconds["copying"] > 0) == (agent == "ppo")
    assert Engine.step is step


def test_table_stands_in_memory_with_its_rows_repeated():
    ground = Ground(**SMALL)
    task, data = made(ground)
    table, data = table_of(task.record(), data, TableSize(images=4, copies=3))
    assert len(data.policy) == 12
    rows = table.prepare(data.policy.images)
    assert torch.equal(table.observe(table.begin(rows[:4])), table.observe(table.begin(rows[8:])))


def test_table_is_timed_for_every_number_of_slots():
    ground = Ground(**SMALL)
    task, data = made(ground)
    found = pace_of_table(ground, task.record(), data, TableSize(images=4, copies=2, envs=(3, 5)))
    assert (found["rows"], found["kept"]) == (8, "8 ways through")
    assert [name for name in found["per_second"] if "engine" in name] == ["engine, 3 slots", "engine, 5 slots"]
    assert all(spread["median"] > 0 for spread in found["per_second"].values())


def test_encoded_frames_are_timed_where_ways_through_are_too_many():
    ground = Ground(**{**SMALL, "task": "frame-select", "task_options": {"looks": 6, "preview": 2}})
    task, data = made(ground)
    found = pace_of_table(ground, task.record(), data, TableSize(images=4, copies=2, envs=(3,)))
    assert (found["rows"], found["kept"]) == (8, "8 encoded pieces")
    assert all(spread["median"] > 0 for spread in found["per_second"].values())


def test_images_and_stored_features_are_timed_in_turn():
    ground = Ground(**{**SMALL, "task": "block-drop"})
    task, data = made(ground)
    found = pace_of_prefix(ground, Prefix(task), data, TableSize(images=4, copies=2))
    assert found["rows"] == 8
    assert found["bytes"] == 4 * 8 * (4 * 8 * 8 + 8 * 8 + 10)  # features, what the policy sees of the image, logits
    assert set(found["per_second"]) == {"live", "stored"}
    assert found["ratio"]["live"]["median"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_envs": 0}, "num_envs: expected at least 1, got 0"),
        ({"rounds": 0}, "rounds: expected at least 1, got 0"),
        ({"rate": 1.5}, "rate: expected 0 … 1, got 1.5"),
        ({"shape": (2, 8, 8)}, "shape: expected 1 or 3 channels"),
        ({"task": "layer-skp"}, "Did you mean layer-skip"),
    ],
)
def test_impossible_grounds_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Ground(**{**SMALL, **change})


def test_task_of_texts_is_refused():
    with pytest.raises(ValueError, match="expected one of images or clips, got time-skip"):
        made(Ground(task="time-skip", **SMALL))
