"""Rows that finish at different positions, on a toy early exit (`Leave` in conftest.py)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.envs import Hard, Masked, SkipEnv, SkipVectorEnv, Soft, one_hot, rollout

from .conftest import EXIT_MACS, Leave, World, follow

INPUTS = torch.randn((6, 1, 8, 8), generator=torch.Generator().manual_seed(0))
plans = st.lists(st.integers(0, 3), min_size=1, max_size=6)  # where each row leaves; at 3 it has run to the end


def actions_of(plan):
    """Return (N, horizon, 1): go on until the plan says leave."""
    return torch.tensor([[[int(position == where)] for position in range(3)] for where in plan])


def by_hand(task, row, where):
    """Return logits and MACs of one input that leaves after `where` blocks."""
    net = task.backbone
    with torch.no_grad():
        x, macs = net.stem(row[None]), net.stem_macs
        for block in net.blocks[:where]:
            x, macs = block.run(x), macs + block.macs
        answer = net.head(x) if where == 3 else task.exit(x)
    return answer[0], macs + (net.head_macs if where == 3 else EXIT_MACS)


@pytest.fixture(scope="module")
def toy(tiny_backbone):
    return World(Leave(tiny_backbone), INPUTS)


@given(plan=plans)
def test_rollout_equals_each_row_alone_by_hand(toy, plan):
    actions = actions_of(plan)
    with torch.no_grad():
        run = rollout(toy.task, INPUTS[: len(plan)], lambda state: Hard(toy.at(state, actions)))
    for i, where in enumerate(plan):
        logits, macs = by_hand(toy.task, INPUTS[i], where)
        assert torch.allclose(run.logits[i], logits, rtol=1e-4, atol=1e-4)
        assert run.macs[i] == macs
        assert run.actions[i].tolist() == [0, 0, 0][:where] + [1, -1, -1, -1][: 3 - where]
    assert run.decided(3).tolist() == [min(where + 1, 3) for where in plan]
    assert run.kept.tolist() == [int(where < 3) for where in plan]


@given(plan=plans)
def test_hard_equals_masked_equals_soft_at_one_hot(toy, plan):
    actions, inputs = actions_of(plan), INPUTS[: len(plan)]
    hard, masked, soft = (toy.follow(actions, kind, inputs) for kind in (Hard, Masked, lambda a: one_hot(a, (2,))))
    for other in (masked, soft):
        assert torch.allclose(other.logits, hard.logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(other.macs, hard.macs)


@given(plan=plans)
def test_rows_that_left_enter_no_further_block(toy, plan):
    toy.task.entered = [0, 0, 0]
    toy.follow(actions_of(plan), inputs=INPUTS[: len(plan)])
    assert toy.task.entered == [sum(where > block for where in plan) for block in range(3)]


def test_soft_cost_is_the_expected_cost(toy):
    leave = torch.tensor([0.25, 0.5, 0.0])
    with torch.no_grad():
        run = follow(
            toy.task, INPUTS[:1], lambda s: Soft(torch.stack([1 - leave[s.position], leave[s.position]])[None])
        )
    shares = {0: 0.25, 1: 0.75 * 0.5, 3: 0.75 * 0.5}
    assert run.macs.item() == sum(share * by_hand(toy.task, INPUTS[0], where)[1] for where, share in shares.items())


def test_vector_slots_equal_single_environments_over_many_episodes(leave, make_engine):
    setting = {"price": (0.0, 1.0), "augment": True, "policy_macs": 11}
    slots = SkipVectorEnv(engine=make_engine(leave, num_envs=4, **setting))
    singles = [SkipEnv(engine=make_engine(leave, **setting)) for _ in range(4)]
    observations, info = slots.reset(seed=50)
    begun = [single.reset(seed=50 + i) for i, single in enumerate(singles)]
    assert info["index"].tolist() == [i["index"] for _, i in begun]
    np.testing.assert_allclose(observations, [o for o, _ in begun], rtol=1e-4, atol=1e-5)
    rng, lengths = np.random.default_rng(0), []
    length = np.zeros(4, int)
    for _ in range(60):
        actions = rng.random(4) < 0.35
        observations, rewards, dones, truncated, info = slots.step(actions.astype(np.int64))
        length += 1
        assert not truncated.any()
        for i, single in enumerate(singles):
            observation, reward, done, _, told = single.step(int(actions[i]))
            assert (done, reward) == (dones[i], pytest.approx(rewards[i], abs=1e-6))
            if done:
                final = info["final_info"]
                assert {key: final[key][i] for key in told} == pytest.approx(told)
                assert not observation.any()
                observation, told = single.reset()
                assert {key: info[key][i] for key in told} == pytest.approx(told)
                lengths.append(length[i])
                length[i] = 0
            np.testing.assert_allclose(observations[i], observation, rtol=1e-4, atol=1e-5)
    assert set(lengths) == {1, 2, 3}  # the slots did part


def test_macs_include_each_decision_of_the_policy(leave, make_engine):
    env = SkipEnv(engine=make_engine(leave, policy_macs=1000))
    env.reset(seed=0)
    env.step(0)
    *_, info = env.step(1)
    net = leave.backbone
    assert info["macs"] == net.stem_macs + net.blocks[0].macs + EXIT_MACS + 2 * 1000
    assert info["compute"] == pytest.approx(info["macs"] / net.full_macs)


def test_memory_travels_with_its_rows(leave, make_engine):
    engine = make_engine(leave, num_envs=3)
    engine.seed(0)
    engine.reset()
    for actions in ([0, 1, 0], [0, 0, 1], [0, 1, 0]):  # slot 0 goes on, the others begin anew now and then
        engine.step(torch.tensor(actions))
    visits = {int(row): float(v) for s in engine.cohorts for row, v in zip(s.rows, s.memory["visits"], strict=True)}
    positions = {int(row): s.position for s in engine.cohorts for row in s.rows}
    assert positions == {0: 0, 1: 0, 2: 1}
    assert visits == {0: 0, 1: 0, 2: 1}


def test_slots_left_empty_earn_and_observe_nothing(leave, make_engine):
    engine = make_engine(leave, num_envs=2)
    engine.reset()
    first = engine.step(torch.tensor([1, 0]), deal=False)
    assert first.done.tolist() == [True, False]
    second = engine.step(torch.tensor([0, 1]), deal=False)
    assert second.done.tolist() == [False, True]
    assert (second.reward[0], second.macs[0], second.correct[0]) == (0, 0, 0)
    assert first.observation[0].eq(0).all()
    assert second.observation.eq(0).all()
    assert first.observation[1].ne(0).any()
