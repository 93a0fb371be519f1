"""Every id makes an environment without further arguments, around a backbone that is trained on first use."""

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import skipgym
from skipgym import ids
from skipgym.data import load
from skipgym.envs.task import task_class
from skipgym.ids import TASKS

IDS = [f"skipgym/{name}-v0" for name in TASKS.values()]

pytestmark = pytest.mark.usefixtures("briefly")


@pytest.fixture(params=IDS)
def env_id(request):
    return request.param


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Box.*")  # our observations are not bounded
        yield


def test_names_are_those_of_the_tasks():
    assert {"layer-skip": "LayerSkip", "block-drop": "BlockDrop"}.items() <= TASKS.items()
    assert set(IDS) <= gym.registry.keys()  # tests of registration add theirs
    assert [ids.env_id(task) for task in TASKS] == IDS
    skipgym.register_envs()  # a second time, as importing and the entry point do


def test_environment_passes_gymnasiums_check(env_id):
    env = gym.make(env_id)
    check_env(env.unwrapped)
    assert env.spec.id == env_id


@pytest.mark.filterwarnings("ignore::UserWarning")  # advice about images and bounds
def test_environment_passes_sb3s_check(env_id):
    check_env_sb3(gym.make(env_id).unwrapped)


def test_vector_environment_runs(env_id):
    envs = gym.make_vec(env_id, num_envs=4)
    observation, _ = envs.reset(seed=0)
    assert observation.shape == (4, *envs.single_observation_space.shape)
    done = np.zeros(4, bool)
    while not done.all():
        observation, reward, done, _, info = envs.step(envs.action_space.sample())
        assert envs.observation_space.contains(observation)
        assert reward.shape == (4,)
    assert (info["final_info"]["macs"] > 0).all()
    envs.close()


def play(env, steps=20):
    env.action_space.seed(0)
    observation, info = env.reset(seed=5)
    seen = [observation.tolist(), info]
    for _ in range(steps):
        observation, reward, done, _, info = env.step(env.action_space.sample())
        seen += [observation.tolist(), reward, done, info]
        if done:
            env.reset()
    return seen


def test_spec_makes_the_same_environment_again(env_id):
    env = gym.make(env_id, price=(0.1, 0.7), part="val")
    expected = play(env)
    for spec in (env.spec, pickle.loads(pickle.dumps(env.spec)), EnvSpec.from_json(env.spec.to_json())):
        assert play(gym.make(spec)) == expected


def test_environment_can_be_pickled_in_the_middle_of_an_episode(env_id):
    env = gym.make(env_id)
    env.reset(seed=3)
    copy = pickle.loads(pickle.dumps(env.unwrapped))
    action = env.action_space.sample()
    for got, expected in zip(copy.step(action), env.unwrapped.step(action), strict=True):
        np.testing.assert_equal(got, expected)
    assert play(copy) == play(env.unwrapped)


def test_options_reach_the_environment(env_id):
    named = task_class(gym.spec(env_id).kwargs["task"]).default_backbone
    env = gym.make(env_id, backbone=named, reward="block-drop", price=0, part="test", policy_macs=9).unwrapped
    engine = env.engine
    assert engine.reward.config() == {"name": "block-drop", "gamma": 5.0}
    test = load(type(engine.task).default_data).test
    assert (engine.low, engine.high, engine.policy_macs, len(engine.images)) == (0, 0, 9, len(test))
    assert engine.task.backbone.name == type(engine.task).architecture(named)
