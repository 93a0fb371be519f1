from math import exp, log

import pytest
import torch

from skipgym.envs import Outcome, Spent, make_reward, make_task
from skipgym.envs.rewards import AccuracyMinusPrice, BlockDrop, CrossEntropy, SkipNet

# two rows: the first is right with p = 0.8, the second is wrong with p = 0.1 for the truth
LOGITS = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1]]).log()
LABELS = torch.tensor([0, 2])


def outcome(kept=(1, 3), pieces=4):
    return Outcome(LOGITS, LABELS, torch.tensor(kept).float(), torch.tensor([0.5, 0.5]), pieces)


def spent(kept=(0.0, 1.0), decided=1, pieces=4):
    return Spent(torch.tensor(kept), decided, torch.tensor([0.1, 0.25]), torch.tensor([0.5, 2.0]), pieces)


def check(got, expected):
    assert got.tolist() == pytest.approx(expected, rel=1e-5)


class TestByHand:
    def test_accuracy(self):
        check(AccuracyMinusPrice().step(spent()), [-0.5 * 0.1, -2.0 * 0.25])
        check(AccuracyMinusPrice().end(outcome()), [1, 0])

    def test_cross_entropy(self):
        check(CrossEntropy().step(spent()), [-0.05, -0.5])
        check(CrossEntropy().end(outcome()), [log(0.8), log(0.1)])

    def test_cross_entropy_is_clipped(self):
        check(CrossEntropy(clip=2.0).end(outcome()), [log(0.8), -2.0])  # log 0.1 = -2.3
        assert CrossEntropy().clip == 4.0

    def test_skipnet_pays_for_each_block_left_out(self):
        check(SkipNet(alpha=0.2).step(spent()), [0.2 / 4, 0])
        check(SkipNet(alpha=0.2).step(spent(kept=(1.0, 3.0), decided=4)), [3 * 0.2 / 4, 0.2 / 4])
        check(SkipNet().end(outcome()), [log(0.8), log(0.1)])
        assert SkipNet().alpha == 0.1

    def test_block_drop_squares_the_share_that_was_kept(self):
        check(BlockDrop().step(spent()), [0, 0])
        check(BlockDrop(gamma=3.0).end(outcome(kept=(1, 3))), [1 - 1 / 16, -3.0])
        check(BlockDrop().end(outcome(kept=(4, 0))), [0, -5.0])

    def test_tie_is_broken_as_argmax_does(self):
        even = Outcome(torch.zeros(1, 3), torch.tensor([0]), torch.ones(1), torch.ones(1), 4)
        check(even.correct, [1])


class TestNames:
    @pytest.mark.parametrize(
        ("name", "config"),
        [
            ("accuracy", {"name": "accuracy"}),
            ("cross-entropy", {"name": "cross-entropy", "clip": 4.0}),
            ("skipnet", {"name": "skipnet", "alpha": 0.1}),
            ("block-drop", {"name": "block-drop", "gamma": 5.0}),
        ],
    )
    def test_config_tells_name_and_parameters(self, name, config):
        assert make_reward(name).config() == config

    def test_reward_of_ones_own_is_taken_as_it_is(self):
        mine = SkipNet(alpha=0.7)
        assert make_reward(mine) is mine

    def test_unknown_name_is_told_with_close_matches(self):
        with pytest.raises(ValueError, match=r"unknown reward: .*got 'acuracy'\. Did you mean accuracy"):
            make_reward("acuracy")


def episode(engine, actions):
    """Play one episode in one slot; return its rewards, its last transition and the image's number."""
    engine.seed(3)
    engine.reset()
    index = int(engine.indices[0])
    steps = [engine.step(torch.tensor([action]), deal=False) for action in actions]
    assert [bool(step.done) for step in steps] == [False] * (len(actions) - 1) + [True]
    return [float(step.reward) for step in steps], steps[-1], index


def facts(task, data, index, kept):
    """Return MACs, probabilities and label of an image of which these blocks are executed."""
    net = task.backbone
    x, macs = task.prepare(data.policy.images[index : index + 1]), net.stem_macs + net.head_macs
    with torch.no_grad():
        x = net.stem(x)
        for block, keep in zip(net.blocks, kept, strict=True):
            x, macs = (block.run(x), macs + block.macs) if keep else (block.bypass(x), macs + block.bypass_macs)
        return macs, net.head(x)[0].softmax(0), int(data.policy.labels[index])


class TestWholeEpisodes:
    """Returns through the engine, on 3 blocks of which 1, 0, 1 are executed."""

    KEPT = (1, 0, 1)

    @pytest.fixture(params=["layer-skip", "block-drop"])
    def play(self, request, tiny_backbone, tiny_images, make_engine):
        task = make_task(request.param, tiny_backbone)
        actions = list(self.KEPT) if request.param == "layer-skip" else [list(self.KEPT)]

        def play(reward, **options):
            engine = make_engine(task, reward=reward, **options)
            rewards, last, index = episode(engine, actions)
            macs, probabilities, label = facts(task, tiny_images, index, self.KEPT)
            right = int(probabilities.argmax()) == label
            assert (last.macs.tolist(), last.kept.tolist(), last.correct.tolist()) == ([macs], [2], [right])
            assert engine.drain().means()["reward"] == pytest.approx(sum(rewards), rel=1e-5)
            return sum(rewards), macs / task.full_macs, float(probabilities[label]), right

        return play

    @pytest.mark.parametrize("price", [0, 0.3, 2.0])
    def test_accuracy_minus_price_times_compute(self, play, price):
        total, compute, _, right = play("accuracy", price=price)
        assert total == pytest.approx(right - price * compute, abs=1e-5)

    def test_cross_entropy_minus_price_times_compute(self, play):
        total, compute, p, _ = play("cross-entropy", price=0.3)
        assert p > exp(-4)  # not clipped
        assert total == pytest.approx(log(p) - 0.3 * compute, abs=1e-5)

    def test_skipnet(self, play):
        total, _, p, _ = play(SkipNet(alpha=0.6))
        assert total == pytest.approx(0.6 / 3 + log(p), abs=1e-5)

    def test_block_drop(self, play):
        total, _, _, right = play(BlockDrop(gamma=2.5))
        assert total == pytest.approx(1 - (2 / 3) ** 2 if right else -2.5, abs=1e-5)

    def test_policy_is_charged_as_compute(self, play):
        class Free(AccuracyMinusPrice):
            def end(self, outcome):
                return torch.zeros_like(outcome.kept)

        total, compute, _, _ = play(Free(), price=0.5)
        assert total == pytest.approx(-0.5 * compute, abs=1e-5)


def test_step_charges_add_up_to_price_times_compute(tiny_backbone, make_engine):
    task = make_task("layer-skip", tiny_backbone)
    net, price, policy = task.backbone, 0.7, 500
    rewards, last, _ = episode(make_engine(task, price=price, policy_macs=policy), [0, 1, 1])
    paid = [net.stem_macs + net.blocks[0].bypass_macs, net.blocks[1].macs, net.blocks[2].macs + net.head_macs]
    expected = [-price * (macs + policy) / net.full_macs for macs in paid]
    expected[-1] += float(last.correct)
    assert rewards == pytest.approx(expected, abs=1e-6)
    assert last.macs.tolist() == [sum(paid) + 3 * policy]
