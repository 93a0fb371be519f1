"""What is special about patch-crop: places, cost, mixtures, bad input. The contract is tested with all tasks."""

import pytest
import torch

from skipgym.backbones import make_backbone
from skipgym.backbones.cost import count_macs
from skipgym.backbones.glimpses import encode
from skipgym.backbones.reader import Reader
from skipgym.envs import Engine, Hard, PatchCrop, Soft, make_reward, make_task, rollout
from skipgym.envs.outcomes import looking_paths, outcomes
from skipgym.envs.patch_crop import grid_places
from skipgym.envs.rollout import relax


@pytest.fixture
def task(random_backbone):
    """Nine places at two zooms, two looks."""
    return PatchCrop(random_backbone(), looks=2)


def only(task, place):
    """Return the decision to look at a place first, then answer."""
    return lambda state: Hard(torch.full((len(state),), place if state.position == 0 else 0))


def test_grid_reaches_from_edge_to_edge():
    places = grid_places((8, 12), 4, 3, 1)
    assert [(p.row, p.column) for p in places[:4]] == [(2, 2), (2, 6), (2, 10), (4, 2)]
    assert places[-1] == (6, 10, 1)
    assert grid_places((8, 8), 4, 1, 2) == [(4, 4, 1), (4, 4, 2)]


def test_fixed_order_is_the_centre_then_the_corners(random_backbone):
    task = PatchCrop(random_backbone(), looks=6)
    assert task.onward[:5] == (5, 1, 3, 7, 9)
    assert len(task.onward) == 6


def test_every_look_costs_the_crops_and_the_reader(task):
    backbone, reader = task.backbone, task.reader
    trunk = count_macs(lambda x: encode(backbone, x), torch.zeros(1, 1, 4, 4))
    core, hidden, width, classes = 2 * 3 * 8 * 8, 8, 16, 4
    least = trunk + width * hidden + core + hidden * classes
    look = 2 * trunk + (2 * width + 3) * hidden + core + hidden * classes  # two scales
    assert (task.least_macs, task.look_macs, task.most_macs) == (least, look, least + 2 * look)
    run = rollout(task, torch.randn(3, 1, 8, 8), only(task, 4))
    assert run.macs.tolist() == [least + look] * 3
    assert reader.scales == 2


def test_paths_are_those_on_which_stopping_ends_all(task):
    assert len(task.paths) == 1 + 18 + 18**2
    assert looking_paths(2, 2, 100) == ([(0, 0), (1, 0), (2, 0), (1, 1), (1, 2), (2, 1), (2, 2)], True)
    assert looking_paths(2, 2, 6) == ([(0, 0), (1, 0), (2, 0)], False)


def test_outcomes_share_their_beginnings(task):
    paths = [(1, 0), (1, 1), (1, 2), (2, 0)]
    table = outcomes(task, torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.long), paths)
    assert table.spent == 3 * (task.least_macs + 4 * task.look_macs)  # 1, 1 1, 1 2, 2; each look once


def test_stopping_softly_does_not_dim_what_is_seen(task):
    start = task.begin(torch.randn(3, 1, 8, 8))
    weights = torch.zeros(3, 19)
    weights[:, 0], weights[:, 5] = 0.75, 0.25
    after = task.step(start, Soft(weights))
    alone = task.step(start, Hard(torch.full((3,), 5)))
    torch.testing.assert_close(task.answer_now(after), task.answer_now(alone), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.macs, start.macs + 0.25 * task.look_macs)
    torch.testing.assert_close(after.answer, 0.75 * task.answer_now(start))


def test_gradients_reach_the_places(task):
    logits = torch.zeros(3, 19, requires_grad=True)
    torch.manual_seed(0)
    run = relax(task, task.begin(torch.randn(3, 1, 8, 8)), lambda _: Soft(logits.softmax(1)))
    run.logits[:, 0].sum().backward()
    assert (logits.grad[:, 1:].abs() > 0).all()


def test_region_of_a_look_is_its_widest_square(task):
    assert task.region(0, 0) is None
    assert task.region(0, 1) == (2 - 4, 2 - 4, 8, 8)  # patch 4, two scales


def test_policy_sees_where_was_looked(task):
    state = task.step(task.begin(torch.randn(2, 1, 8, 8)), Hard(torch.tensor([3, 7])))
    looked = task.observe(state)[:, 4 + 8 : 4 + 8 + 18]
    assert looked.nonzero().tolist() == [[0, 2], [1, 6]]


class TestBadInput:
    def test_network_without_a_reader_is_told(self):
        with pytest.raises(
            ValueError, match=r"expected a backbone with a reader of crops, got resnet8-w4 with none\. Train one"
        ):
            make_task("patch-crop", make_backbone("resnet8-w4", input_shape=(1, 8, 8)))

    def test_reader_of_other_sizes_is_told(self, random_backbone):
        with pytest.raises(ValueError, match="patch: expected 4, as the reader of resnet8-w4 was trained, got 6"):
            PatchCrop(random_backbone(), patch=6)

    @pytest.mark.parametrize("wrong", [{"grid": 0}, {"looks": 0}, {"cells": 1.5}, {"grid": 99}])
    def test_option_out_of_range_is_told(self, random_backbone, wrong):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected 1 … "):
            PatchCrop(random_backbone(), **wrong)

    def test_images_of_one_pixel_leave_nothing_to_save(self):
        backbone = make_backbone("resnet8-w4", num_classes=4, input_shape=(1, 1, 1))
        with pytest.raises(ValueError, match="glance: expected one that costs less than resnet8-w4 on the whole image"):
            PatchCrop(backbone.with_reader(Reader(16, 4, glance=1, patch=1)))

    def test_images_smaller_than_a_patch_are_told(self):
        backbone = make_backbone("resnet8-w4", num_classes=4, input_shape=(1, 6, 6))
        with pytest.raises(ValueError, match="patch: expected at most the 6 pixels of resnet8-w4's images, got 8"):
            PatchCrop(backbone.with_reader(Reader(16, 4, glance=3, patch=8)))


class TestGainRewards:
    def play(self, task, images, reward, actions):
        engine = Engine(task, images.policy, reward=make_reward(reward), price=0.0, num_envs=4)
        engine.seed(0)
        engine.reset()
        labels = engine.targets.clone()
        inputs = task.prepare(engine.images[engine.indices])
        return engine, labels, inputs, [engine.step(torch.full((4,), a), deal=False).reward for a in actions]

    def right(self, task, state, labels):
        return task.answer_now(state).softmax(1).gather(1, labels.unsqueeze(1))[:, 0]

    def test_gain_is_what_the_look_added(self, task, tiny_images):
        _, labels, inputs, rewards = self.play(task, tiny_images, "confidence-gain", [4, 0])
        start = task.begin(inputs)
        after = task.step(start, Hard(torch.full((4,), 4)))
        torch.testing.assert_close(rewards[0], self.right(task, after, labels) - self.right(task, start, labels))
        assert rewards[1].tolist() == [0] * 4

    def test_gains_add_up_to_the_end(self, task, tiny_images):
        _, labels, inputs, rewards = self.play(task, tiny_images, "confidence-gain", [4, 2])
        start = task.begin(inputs)
        end = task.step(start, Hard(torch.full((4,), 4)))
        end = task.step(end, Hard(torch.full((4,), 2)))
        torch.testing.assert_close(sum(rewards), self.right(task, end, labels) - self.right(task, start, labels))

    def test_gain_over_random_runs_and_charges_another_look(self, task, tiny_images):
        engine, labels, inputs, rewards = self.play(task, tiny_images, "gain-over-random", [4, 0])
        drawn = torch.randint(1, 19, (4,), generator=torch.Generator().manual_seed(0))
        start = task.begin(inputs)
        chosen, other = task.step(start, Hard(torch.full((4,), 4))), task.step(start, Hard(drawn))
        torch.testing.assert_close(rewards[0], self.right(task, chosen, labels) - self.right(task, other, labels))
        assert rewards[1].tolist() == [0] * 4
        expected = 4 * (task.least_macs + task.look_macs + 2 * task.look_macs)
        assert engine.drain().backbone_macs == expected

    def test_task_without_exits_is_refused(self, random_backbone, tiny_images):
        with pytest.raises(ValueError, match="reward confidence-gain: expected a task with exits, .* got layer-skip"):
            Engine(
                make_task("layer-skip", random_backbone()),
                tiny_images.policy,
                reward=make_reward("confidence-gain"),
                price=0.0,
                num_envs=4,
            )
