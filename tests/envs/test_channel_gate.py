"""Channel gates: cost by formula, smaller layers for the rows that want them, contiguous or scattered."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.agents.training import TrainConfig, train
from skipgym.envs import ChannelGate, make_task
from skipgym.testing import check_task

from .conftest import IMAGES, check_saved, run


@pytest.fixture(scope="module")
def task(random_backbone):
    return ChannelGate(random_backbone("resnet8-w4"))


@pytest.fixture(scope="module")
def scattered(random_backbone):
    return ChannelGate(random_backbone("resnet8-w4"), scattered=True)


def cost_by_hand(groups):
    """Return the MACs of resnet8-w4 on 8x8 grey images with so many of 4 groups kept in each block."""
    stages = ((4, 4, 64), (4, 8, 16), (8, 16, 4))
    shapes = zip(stages, groups, strict=True)
    inner = sum(9 * places * kept * out // 4 * (into + out) for (into, out, places), kept in shapes)
    return 9 * 64 * 4 + inner + 16 * 4


@given(plan=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=6))
def test_contiguous_groups_cost_what_the_formula_says(task, plan):
    expected = [cost_by_hand([option + 1 for option in row]) for row in plan]
    assert run(task, torch.tensor(plan)).macs.tolist() == expected


@given(plan=st.lists(st.integers(0, 2**12 - 1), min_size=1, max_size=6))
def test_scattered_groups_cost_what_the_formula_says(scattered, plan):
    bits = (torch.tensor(plan).unsqueeze(1) >> torch.arange(12)) % 2
    actions = bits.view(-1, 3, 4)
    assert run(scattered, actions).macs.tolist() == [cost_by_hand(row) for row in actions.sum(2).tolist()]


@given(plan=st.tuples(*[st.integers(0, 3)] * 3))
def test_the_first_groups_are_the_same_contiguous_or_scattered(task, scattered, plan):
    contiguous = torch.tensor(plan).expand(6, -1)
    gates = (torch.arange(4) <= contiguous.unsqueeze(2)).long()
    torch.testing.assert_close(run(task, contiguous).logits, run(scattered, gates).logits, rtol=1e-3, atol=1e-4)


def test_all_groups_are_the_frozen_network_exactly(task):
    found = run(task, torch.full((6, 3), 3))
    with torch.no_grad():
        assert torch.equal(found.logits, task.backbone(task.prepare(IMAGES)))
    assert found.macs.tolist() == [task.full_macs] * 6


def test_a_smaller_block_sees_only_the_rows_that_want_it(task):
    seen = [0] * 3
    hooks = [
        one.register_forward_hook(lambda _m, x, _y, i=i: seen.__setitem__(i, seen[i] + len(x[0])))
        for i, one in enumerate(task.narrow[0])
    ]
    run(task, torch.tensor([[0, 0, 0], [0, 1, 2], [2, 0, 0], [3, 3, 3], [0, 3, 1], [2, 1, 1]]))
    for hook in hooks:
        hook.remove()
    assert seen == [3, 0, 2]


def test_scattered_gates_keep_every_promise(scattered):
    check_task(scattered, count=3, tables=1)


def test_saved_controller_keeps_the_same_channels(task, tmp_path):
    check_saved(task, (0, 3, 2), tmp_path / "c")


def test_q_learning_runs_on_it(task, tiny_images):
    config = TrainConfig(task="channel-gate", agent="dqn", images=64, num_envs=8, hidden=4, price=0.3)
    trained = train(config, task=task, data=tiny_images)
    assert trained.controller(IMAGES).actions.shape == (6, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 1}, "expected 2 or more, got 1.*nothing to choose"),
        ({"groups": 3}, r"divides the channels, got 3 for the 4 of layer1\.0"),
        ({"grid": 9}, "grid: expected 1 … 8, got 9"),
    ],
)
def test_bad_options_are_told(tiny_backbone, options, message):
    with pytest.raises(ValueError, match=message):
        make_task("channel-gate", tiny_backbone, **options)


def test_scattered_needs_two_convolutions(random_backbone):
    with pytest.raises(ValueError, match="scattered: expected blocks of two convolutions, got EncoderBlock"):
        ChannelGate(random_backbone("vit_tiny"), scattered=True)
