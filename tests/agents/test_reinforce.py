"""BlockDrop's ingredients, by hand."""

import pytest
import torch

from skipgym.agents.policy import Decider, StaticPolicy
from skipgym.agents.reinforce import ReinforceOptions, _forced, episode_reward
from skipgym.agents.twins import bounded
from skipgym.envs import make_reward, make_task, rollout


def test_bounded_probabilities_are_those_of_blockdrop():
    pulled = bounded(torch.tensor([[0.9, 0.1], [0.5, 0.5], [1.0, 0.0]]), 0.8)
    expected = [[0.8 * 0.9 + 0.2 * 0.1, 0.8 * 0.1 + 0.2 * 0.9], [0.5, 0.5], [0.8, 0.2]]
    torch.testing.assert_close(pulled, torch.tensor(expected))


def test_bounded_probabilities_of_three_options_sum_to_one():
    pulled = bounded(torch.tensor([[0.7, 0.2, 0.1]]), 0.8)
    assert pulled.sum() == pytest.approx(1.0)
    assert pulled.min() > 0


def test_curriculum_releases_the_last_pieces_first(small_backbone):
    task = make_task("layer-skip", small_backbone)  # three blocks
    assert [_forced(task, progress, 0.4) for progress in (0.0, 0.2, 0.4, 0.9)] == [2, 1, 0, 0]
    assert _forced(task, 0.0, 0.0) == 0


def test_whole_episodes_earn_what_their_steps_add_up_to(small_backbone, dark_or_bright):
    task = make_task("layer-skip", small_backbone)
    images, labels = dark_or_bright.val.images[:8], dark_or_bright.val.labels[:8]
    price = torch.full((8,), 0.5)
    run = rollout(task, task.prepare(images), Decider(task, StaticPolicy([1, 0, 1], 1), price))
    right = (run.logits.argmax(1) == labels).float()
    block = small_backbone.block_macs
    macs = small_backbone.stem_macs + small_backbone.head_macs + block[0] + block[2] + 3 * 7  # a policy of 7 MACs
    earned = episode_reward(make_reward("accuracy"), run, labels, price, task, policy_macs=7)
    torch.testing.assert_close(earned, right - 0.5 * macs / task.full_macs)
    earned = episode_reward(make_reward("block-drop"), run, labels, price, task, policy_macs=7)
    torch.testing.assert_close(earned, torch.where(right > 0, torch.tensor(1 - (2 / 3) ** 2), torch.tensor(-5.0)))


def test_gain_over_what_was_known_before_is_paid(small_backbone, dark_or_bright):
    task = make_task("layer-skip", small_backbone)
    images, labels, price = dark_or_bright.val.images[:8], dark_or_bright.val.labels[:8], torch.zeros(8)
    run = rollout(task, task.prepare(images), Decider(task, StaticPolicy([1, 0, 1], 1), price))
    before = torch.linspace(0, 0.7, 8)
    earned = episode_reward(make_reward("confidence-gain"), run, labels, price, task, policy_macs=7, before=before)
    after = run.logits.softmax(1)[torch.arange(8), labels]
    torch.testing.assert_close(earned, after - before)


@pytest.mark.parametrize("wrong", [{"bound": 0.5}, {"learning_rate": 0}, {"curriculum": 2}, {"entropy": -1}])
def test_options_out_of_range_are_told(wrong):
    with pytest.raises(ValueError, match="reinforce: expected"):
        ReinforceOptions(**wrong)
