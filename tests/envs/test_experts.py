"""Experts: cost by formula, rows grouped by expert, mixtures run as one convolution, dead experts named."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skipgym.agents.evaluate import chosen_lines
from skipgym.envs import Experts, Soft, make_task

from .conftest import IMAGES, check_saved, run


@pytest.fixture(scope="module")
def task(random_backbone):
    return Experts(random_backbone("experts-resnet8-w8"))


def expert_by_hand(stage, expert):
    """Return the MACs of a block's two convolutions, 8 channels in the first stage, on 8x8 images."""
    channels, places, taps = 8 * 2**stage, 64 // 4**stage, (1, 9 / 4, 9)[expert]
    before = channels if stage == 0 else channels // 2
    return int(places * taps * (before * channels + channels**2))


@given(plan=st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=6))
def test_experts_cost_what_the_formula_says(task, plan):
    ends = 9 * 64 * 8 + 32 * 4
    expected = [ends + sum(expert_by_hand(stage, expert) for stage, expert in enumerate(row)) for row in plan]
    assert run(task, torch.tensor(plan)).macs.tolist() == expected


def test_an_expert_sees_only_the_rows_that_chose_it(task):
    seen = [0] * 3
    hooks = [
        one.register_forward_hook(lambda _m, x, _y, i=i: seen.__setitem__(i, seen[i] + len(x[0])))
        for i, one in enumerate(task.experts[1].first)
    ]
    run(task, torch.tensor([[0, 2, 0], [1, 0, 0], [2, 2, 1], [0, 2, 2], [0, 0, 0], [1, 2, 1]]))
    for hook in hooks:
        hook.remove()
    assert seen == [2, 0, 4]


def test_mixture_runs_no_expert_by_itself(task):
    ran = []
    hooks = [
        one.register_forward_hook(lambda *_: ran.append(1))
        for one in task.experts.modules()
        if isinstance(one, nn.Conv2d)
    ]
    with torch.no_grad():
        after = task.step(task.begin(task.prepare(IMAGES)), Soft(torch.full((6, 3), 1 / 3)))
    for hook in hooks:
        hook.remove()
    assert not ran
    assert after.features.shape == (6, 8, 8, 8)


def test_last_expert_everywhere_is_the_untouched_network(task, random_backbone):
    with torch.no_grad():
        expected = random_backbone("experts-resnet8-w8").network(task.prepare(IMAGES))
    found = run(task, torch.full((6, 3), 2))
    torch.testing.assert_close(found.logits, expected, rtol=1e-3, atol=1e-4)
    assert found.macs.tolist() == [task.full_macs] * 6


def test_saved_controller_chooses_the_same_experts(task, tmp_path):
    check_saved(task, (0, 1, 2), tmp_path / "c")


def test_experts_that_are_never_called_are_named():
    chosen = {"expert of a": [3, 0, 1], "expert of b": [0, 4, 0], "block": [0, 4], "expert of c": [0, 0, 0]}
    lines = chosen_lines({"method": "ppo", "chosen": chosen})
    assert lines[-1] == "ppo, never chosen: expert of a option 1; expert of b option 0 2"
    assert not any("never" in line for line in chosen_lines({"method": "ppo", "chosen": {"a": [1, 2, 3]}}))


def test_plain_name_stands_for_the_network_with_experts():
    named = ["resnet20", "cifar-resnet50", "resnet14-w8", "experts-resnet20", "vit_tiny"]
    expected = ["experts-resnet20", "experts-resnet50", "experts-resnet14-w8", "experts-resnet20", "vit_tiny"]
    assert [Experts.architecture(name) for name in named] == expected


def test_backbone_of_one_expert_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match="expected a backbone with experts, got resnet8-w4.*the only one"):
        make_task("experts", tiny_backbone)


def test_bad_grid_is_refused(random_backbone):
    with pytest.raises(ValueError, match="grid: expected 1 … 8, got 0"):
        make_task("experts", random_backbone("experts-resnet8-w4"), grid=0)
