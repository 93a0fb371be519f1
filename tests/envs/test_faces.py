"""The single, the vector and the SB3 environment are faces of one engine: same seeds and actions, same everything."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.vec_env import VecEnv

from skipgym.envs import SkipEnv, SkipVectorEnv
from skipgym.envs.sb3_env import SkipSB3Env

SLOTS, STEPS, SEED = 3, 12, 11
SETTING = {"price": (0.0, 1.0), "augment": True, "policy_macs": 50, "reward": "cross-entropy"}
TOLD = ("correct", "macs", "compute", "kept")


@pytest.fixture
def task(world):
    return world.task


def actions_for(task):
    """Return actions for every slot and step."""
    space = gym.vector.utils.batch_space(task.action_space, SLOTS)
    space.seed(0)
    return [space.sample() for _ in range(STEPS)]


def play_vector(env, actions):
    """Return per step: observations, rewards, dones, and of episodes that ended what was told."""
    seen = [env.reset(seed=SEED)[0]]
    for chosen in actions:
        observation, reward, done, _, info = env.step(chosen)
        final = info.get("final_info", {})
        told = [{key: final[key][i] for key in TOLD} if done[i] else None for i in range(SLOTS)]
        seen.append((observation, reward, done, told))
    return seen


def play_singles(envs, actions):
    seen = [np.stack([env.reset(seed=SEED + i)[0] for i, env in enumerate(envs)])]
    for chosen in actions:
        observations, rewards, dones, told = [], [], [], []
        for env, action in zip(envs, chosen, strict=True):
            observation, reward, done, truncated, info = env.step(action)
            assert not truncated
            assert done == ("macs" in info)
            rewards.append(reward)
            dones.append(done)
            told.append({key: info[key] for key in TOLD} if done else None)
            observations.append(env.reset()[0] if done else observation)
        seen.append((np.stack(observations), np.array(rewards), np.array(dones), told))
    return seen


def play_sb3(env, actions):
    env.seed(SEED)
    seen = [env.reset()]
    for chosen in actions:
        observation, reward, done, infos = env.step(chosen)
        told = [{key: infos[i][key] for key in TOLD} if done[i] else None for i in range(SLOTS)]
        seen.append((observation, reward, done, told))
    return seen


def assert_same(first, second):
    np.testing.assert_allclose(first[0], second[0], rtol=1e-3, atol=1e-4)
    for one, other in zip(first[1:], second[1:], strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one[1], other[1], rtol=1e-3, atol=1e-4)
        assert one[2].tolist() == other[2].tolist()
        assert one[3] == [told and pytest.approx(told) for told in other[3]]


@pytest.fixture
def played(task, make_engine):
    return play_vector(SkipVectorEnv(engine=make_engine(task, num_envs=SLOTS, **SETTING)), actions_for(task))


def test_vector_slot_equals_single_environment(task, make_engine, played):
    singles = [SkipEnv(engine=make_engine(task, **SETTING)) for _ in range(SLOTS)]
    assert_same(play_singles(singles, actions_for(task)), played)
    assert sum(done.sum() for _, _, done, _ in played[1:]) >= SLOTS * (STEPS // task.horizon)


def test_sb3_face_equals_vector_environment(task, make_engine, played):
    assert_same(play_sb3(SkipSB3Env(make_engine(task, num_envs=SLOTS, **SETTING)), actions_for(task)), played)


class TestVector:
    @pytest.fixture
    def env(self, task, make_engine):
        return SkipVectorEnv(engine=make_engine(task, num_envs=SLOTS, **SETTING))

    def test_spaces_are_batches_of_the_single_ones(self, env):
        observation, _ = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        assert env.observation_space.shape == (SLOTS, *env.single_observation_space.shape)
        assert env.action_space.contains(np.stack([env.single_action_space.sample() for _ in range(SLOTS)]))
        assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP

    def test_what_ended_is_told_with_masks(self, env, task):
        _, begun = env.reset(seed=0)
        ended = set()
        for actions in actions_for(task):
            observation, _, done, truncated, info = env.step(actions)
            assert observation.any(tuple(range(1, observation.ndim))).all()  # already the next episode's
            assert not truncated.any()
            assert ("final_info" in info) == done.any()
            if done.any():
                final = info["final_info"]
                assert info["_final_info"].tolist() == info["_final_obs"].tolist() == done.tolist()
                assert info["final_obs"].shape == observation.shape
                assert not info["final_obs"].any()
                assert set(final) == {*TOLD, "index", "price", *(f"_{key}" for key in (*TOLD, "index", "price"))}
                assert all(final[f"_{key}"].tolist() == done.tolist() for key in TOLD)
                assert final["index"][done].tolist() == begun["index"][done].tolist()
                assert final["price"][done].tolist() == begun["price"][done].tolist()
                ended |= set(done.nonzero()[0])
            begun = info
        assert ended == set(range(SLOTS))

    def test_episode_statistics_can_be_recorded(self, env, task):
        wrapped = RecordEpisodeStatistics(env)
        wrapped.reset(seed=SEED)
        total = np.zeros(SLOTS)
        for actions in actions_for(task):
            _, reward, done, _, info = wrapped.step(actions)
            total += reward
            if done.any():
                assert info["episode"]["r"][done] == pytest.approx(total[done], abs=1e-5)
            total[done] = 0
        assert wrapped.episode_count >= SLOTS

    def test_actions_outside_the_space_are_refused(self, env, task):
        env.reset(seed=0)
        good = np.zeros((SLOTS, *task.action_space.shape), task.action_space.dtype)
        bad = {
            "value": good + max(task.decisions),
            "negative": good - (2 if task.coordinates else 1),
            "shape": good[:-1],
            "dtype": good.astype(float) + (np.nan if task.coordinates else 0),
            "scalar": np.int64(0),
        }
        kind = r"numbers in -1 … 1" if task.coordinates else "integers"
        for wrong in bad.values():
            with pytest.raises(ValueError, match=rf"actions: expected {kind} of shape \(3.* Sample from action_space"):
                env.step(wrong)
        env.step(good)

    def test_step_before_reset_is_refused(self, env):
        with pytest.raises(gym.error.ResetNeeded, match=r"expected reset\(\)"):
            env.step(env.action_space.sample())


class TestSingle:
    @pytest.fixture
    def env(self, task, make_engine):
        return SkipEnv(engine=make_engine(task, **SETTING))

    def test_same_seed_repeats_and_others_differ(self, env):
        first, again, other = (env.reset(seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(first[0], again[0])
        assert first[1] == again[1]
        assert first[1] != other[1]

    def test_action_outside_the_space_is_refused(self, env, task):
        env.reset(seed=0)
        good = np.zeros(task.action_space.shape, task.action_space.dtype)
        bad = {
            "value": good + max(task.decisions),
            "negative": good - (2 if task.coordinates else 1),
            "shape": np.zeros((2, 2), good.dtype),
            "float": good + (1.5 if task.coordinates else 0.5),
            "none": None,
        }
        for wrong in bad.values():
            with pytest.raises(ValueError, match="action: expected an element of"):
                env.step(wrong)
        env.step(good if good.shape else int(good))

    def test_end_is_told_and_nothing_is_left_to_observe(self, env):
        _, info = env.reset(seed=0)
        assert set(info) == {"index", "price"}
        done = False
        while not done:
            observation, _, done, _, last = env.step(env.action_space.sample())
        assert not observation.any()
        assert set(last) == {"index", "price", *TOLD}
        assert (last["index"], last["price"]) == (info["index"], info["price"])
        with pytest.raises(gym.error.ResetNeeded):
            env.step(env.action_space.sample())

    def test_task_must_be_named(self):
        with pytest.raises(ValueError, match="task: expected a name or a task, got none"):
            SkipEnv()
        with pytest.raises(ValueError, match="task: expected a name or a task, got none"):
            SkipVectorEnv(num_envs=2)


class TestSB3:
    @pytest.fixture
    def env(self, task, make_engine):
        return SkipSB3Env(make_engine(task, num_envs=SLOTS, **SETTING))

    def test_episodes_are_told_as_by_a_monitor(self, env, task):
        assert isinstance(env, VecEnv)
        env.seed(SEED)
        env.reset()
        total, length = np.zeros(SLOTS), np.zeros(SLOTS, int)
        for actions in actions_for(task):
            _, rewards, dones, infos = env.step(actions)
            total, length = total + rewards, length + 1
            for i, info in enumerate(infos):
                assert ("episode" in info) == dones[i]
                if dones[i]:
                    assert info["episode"] == {"r": pytest.approx(total[i], abs=1e-5), "l": length[i]}
                    assert info["terminal_observation"].shape == env.observation_space.shape
            total[dones], length[dones] = 0, 0

    def test_reset_forgets_episodes_under_way(self, env, task):
        env.reset()
        env.step(actions_for(task)[0])
        env.reset()
        for step, actions in enumerate(actions_for(task)):
            _, _, dones, infos = env.step(actions)
            if dones.any():
                assert infos[int(dones.argmax())]["episode"]["l"] == step + 1
                return
        pytest.fail("no episode ended")

    def test_attributes_are_those_of_the_engine(self, env):
        assert env.get_attr("num_envs") == [SLOTS] * SLOTS
        assert env.get_attr("policy_macs", indices=[0, 2]) == [50, 50]
        assert env.get_attr("render_mode", indices=1) == [None]
        assert env.env_is_wrapped(gym.Wrapper) == [False] * SLOTS

    def test_slots_cannot_be_changed_apart(self, env):
        with pytest.raises(NotImplementedError, match="share one engine"):
            env.set_attr("policy_macs", 3)
        with pytest.raises(NotImplementedError, match="share one engine"):
            env.env_method("set_price", 0.5)
