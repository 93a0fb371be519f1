"""Two runs in one batch, against the same two runs one after the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.agents.gate import Gate
from skipgym.agents.policy import Decider, GatePolicy
from skipgym.agents.twins import bounded, by_part, follow_both
from skipgym.backbones import make_backbone
from skipgym.backbones.exits import Exit
from skipgym.envs import Hard, Layout, make_task, rollout

IMAGES = torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(0))
PRICE = torch.linspace(0.1, 0.6, 6)


def pair_of(task, gate, *, forced, seed):
    start, generator = task.begin(task.prepare(IMAGES)), torch.Generator().manual_seed(seed)
    return follow_both(task, start, gate, PRICE, bound=0.8, forced=forced, generator=generator)


def task_and_gate_of(name):
    torch.manual_seed(0)
    net = make_backbone("resnet14-w4", input_shape=(1, 8, 8))
    if name == "early-exit":
        net = net.with_exits([Exit(after, net.blocks[after - 1].out_shape, net.num_classes) for after in (1, 3)])
    task = make_task(name, net)
    return task, Gate(Layout.of(task, priced=True), task.decisions, hidden=8)


@pytest.fixture(scope="module", params=["layer-skip", "block-drop", "early-exit"])
def task_and_gate(request):
    return task_and_gate_of(request.param)


@pytest.fixture(scope="module")
def stepwise():
    return task_and_gate_of("layer-skip")


@given(seed=st.integers(0, 10**6), forced=st.integers(0, 1))
def test_both_come_to_what_they_come_to_alone(task_and_gate, seed, forced):
    task, gate = task_and_gate
    pair, parts = pair_of(task, gate, forced=forced, seed=seed), len(task.decisions)

    def again(actions):
        def decide(state):
            here = actions[state.rows, state.position * parts : (state.position + 1) * parts]
            return Hard(here.squeeze(1) if parts == 1 else here)

        return decide

    with torch.no_grad():
        for run in (pair.drawn, pair.greedy):
            alone = rollout(task, task.prepare(IMAGES), again(run.actions))
            torch.testing.assert_close(run.logits, alone.logits, rtol=1e-4, atol=1e-5)
            assert torch.equal(run.macs, alone.macs)
            assert torch.equal(run.actions, alone.actions)
        if forced == 0:
            alone = rollout(task, task.prepare(IMAGES), Decider(task, GatePolicy(gate), PRICE))
            assert torch.equal(pair.greedy.actions, alone.actions)
    if forced:
        assert (pair.drawn.actions[:, 0] == task.onward[0]).all()
        assert (pair.greedy.actions[:, 0] == task.onward[0]).all()


@given(seed=st.integers(0, 10**6))
def test_what_both_share_is_spent_once(stepwise, seed):
    """The stem, and blocks until the decision at which they part; everything where they never do."""
    task, gate = stepwise
    pair, net = pair_of(task, gate, forced=0, seed=seed), task.backbone
    for row in range(len(IMAGES)):
        first, second = pair.drawn.actions[row].tolist(), pair.greedy.actions[row].tolist()
        apart = next((at for at in range(6) if first[at] != second[at]), None)
        blocks = zip(net.blocks[:apart], first[:apart], strict=True)
        shared = net.stem_macs + sum(block.macs if kept else block.bypass_macs for block, kept in blocks)
        shared += net.head_macs if apart is None else 0
        assert pair.spent[row] == pair.drawn.macs[row] + pair.greedy.macs[row] - shared


def test_blocks_run_once_on_what_both_share(stepwise):
    (task, gate), ran = stepwise, []
    bodies = [block.body for block in task.backbone.blocks]
    hooks = [body.register_forward_pre_hook(lambda _, inputs: ran.append(len(inputs[0]))) for body in bodies]
    pair = pair_of(task, gate, forced=5, seed=1)  # of six
    for hook in hooks:
        hook.remove()
    assert ran[:5] == [6] * 5
    together = pair.drawn.actions[:, 5] + pair.greedy.actions[:, 5]
    differs = pair.drawn.actions[:, 5] != pair.greedy.actions[:, 5]
    assert sum(ran[5:]) == int(torch.where(differs, together, pair.drawn.actions[:, 5]).sum())


def test_draws_are_judged_by_hand(task_and_gate):
    task, gate = task_and_gate
    pair = pair_of(task, gate, forced=1, seed=2)
    log_prob, entropy = pair.draws.judged(gate, 0.8)
    expected_log, expected_entropy = torch.zeros(6), torch.zeros(6)
    draws, parts = pair.draws, len(task.decisions)
    for seen, row, actions, free in zip(draws.observations, draws.rows, draws.actions, draws.free, strict=True):
        logits = gate(seen.unsqueeze(0))[0][0].split(list(task.decisions))
        for part in range(parts):
            p = bounded(logits[part].softmax(0)[None], 0.8)[0]
            expected_log[row] += p[actions[part]].log() * free[part]
            expected_entropy[row] -= (p * p.log()).sum() * free[part]
    torch.testing.assert_close(log_prob, expected_log, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-4, atol=1e-5)
    assert log_prob.requires_grad


def test_parts_of_different_options_are_told_apart():
    logits = torch.arange(10.0).view(2, 5)
    first, second = by_part(logits, (2, 3))
    assert first.tolist() == [[[0, 1]], [[5, 6]]]
    assert second.tolist() == [[[2, 3, 4]], [[7, 8, 9]]]
    (together,) = by_part(logits[:, :4], (2, 2))
    assert together.tolist() == [[[0, 1], [2, 3]], [[5, 6], [7, 8]]]
