"""DS-Net's gate: what each image asks for by hand, its loss by hand, a toy solved, MACs counted, misuse told."""

import math

import pytest
import torch

from skipgym.agents.ds_gate import DSGate, DSGateOptions, gate_loss, targets, ways_to_try
from skipgym.agents.evaluate import measure, option_counts
from skipgym.agents.gate import Gate
from skipgym.agents.relaxed import _tally, attempt, soft
from skipgym.agents.training import TrainConfig, train
from skipgym.backbones import make_backbone
from skipgym.envs import Layout, State, Task, make_task

SANDWICH, CHEAPEST = DSGateOptions(), DSGateOptions(target="cheapest")
COSTS = (0.1, 0.2, 0.4)
MEDIAN = (199.5 / 255 - 0.5) / 0.25  # of bright images, normalised


class Shades(Task):
    """Three sizes, each a tenth, a fifth and two fifths of the network. Each image is right from some size on.

    Dark ones are right at every size; bright ones from the second on, and the brighter half of them at the third only.
    """

    name = "shades"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.horizon, self.decisions, self.observation_shape, self.least_macs = 1, (3,), (2,), 0

    def begin(self, inputs):
        brightness = inputs.mean((1, 2, 3))
        return State.start(torch.stack([brightness > 0, brightness > MEDIAN], 1).float())

    def observe(self, state):
        return state.features

    def step(self, state, choice):
        needed = state.features.sum(1)
        right = sum(choice.weight(size) * (needed <= size) for size in range(3))
        sign = (2 * right - 1) * (2 * (needed > 0).float() - 1)
        macs = choice.cost([share * self.full_macs for share in COSTS])
        return state.advance(state.features, macs=macs).finish(torch.stack([-sign, sign], 1))


@pytest.fixture
def shades(small_backbone):
    return Shades(small_backbone)


def tried_of(task, options):
    """Return a trial of four rows that need sizes 0, 1, 2 and 2, and the ways that are tried."""
    gate = Gate(Layout.of(task, priced=False), task.decisions, hidden=4)
    start = State.start(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]))
    trial = attempt(task, gate, (start, torch.tensor([0, 1, 1, 1]), torch.full((4,), 0.5)), soft)
    return trial, ways_to_try(task, options)


class TestTargets:
    def test_sandwich_asks_for_the_smallest_where_it_is_right_else_for_the_largest(self, shades):
        trial, tried = tried_of(shades, SANDWICH)
        target, spent = targets(trial, tried)
        assert target[:, 0].tolist() == [0, 2, 2, 2]
        assert spent == pytest.approx(4 * 0.1 * shades.full_macs)  # the smallest alone has to run

    def test_cheapest_asks_for_the_middle_where_that_is_enough(self, shades):
        trial, tried = tried_of(shades, CHEAPEST)
        target, spent = targets(trial, tried)
        assert target[:, 0].tolist() == [0, 1, 2, 2]
        assert spent == pytest.approx(4 * (0.1 + 0.2) * shades.full_macs)  # the largest is what remains

    def test_largest_is_asked_for_where_no_size_is_right(self, shades):
        trial, tried = tried_of(shades, CHEAPEST)
        trial.labels[0] = 1
        assert targets(trial, tried)[0][:, 0].tolist() == [2, 1, 2, 2]

    def test_ways_of_several_decisions_have_a_target_each(self, tell):
        """Dark images need the second decision, bright ones the first; the cheapest right way has one execution."""
        assert ways_to_try(tell, CHEAPEST) == [(0, 0), (0, 1), (1, 0)]
        gate = Gate(Layout.of(tell, priced=False), tell.decisions, hidden=4)
        start = tell.begin(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(-1, 1, 8, 8))
        trial = attempt(tell, gate, (start, torch.tensor([0, 1]), torch.zeros(2)), soft)
        assert targets(trial, ways_to_try(tell, CHEAPEST))[0].tolist() == [[0, 1], [1, 0]]


class TestLoss:
    def test_by_hand(self):
        """Each row's mean over two decisions: ln 2 and ln(1 + e), ln 2 and ln(1 + 1/e)."""
        logits = [torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])]
        expected = (2 * math.log(2) + math.log(1 + math.e) + math.log(1 + 1 / math.e)) / 4
        assert gate_loss(logits, torch.tensor([[0, 1], [1, 1]])).item() == pytest.approx(expected)

    def test_nothing_is_asked_after_the_target_has_answered(self):
        logits = [torch.zeros(1, 2), torch.tensor([[9.0, 0.0]])]
        assert gate_loss(logits, torch.tensor([[0, 1]]), ends=True).item() == pytest.approx(math.log(2))
        both = gate_loss(logits, torch.tensor([[1, 1]]), ends=True).item()
        assert both == pytest.approx((math.log(2) + math.log(1 + math.e**9)) / 2)

    def test_whole_loss_is_entropy_and_price_times_squared_compute_and_the_targets(self, shades):
        trial, tried = tried_of(shades, SANDWICH)
        learner = DSGate()
        learner.options, learner.tried = DSGateOptions(weight=3.0), tried
        asked = gate_loss(trial.decider.drawn_from, torch.tensor([[0], [2], [2], [2]]))
        expected = trial.error.mean() + 0.5 * trial.compute.mean() ** 2 + 3 * asked
        torch.testing.assert_close(learner.loss(trial, 0.5), expected)

    def test_macs_of_the_targets_are_counted(self, shades):
        trial, tried = tried_of(shades, CHEAPEST)
        learner = DSGate()
        learner.tried = tried
        before = _tally(shades, trial).backbone_macs
        learner.loss(trial, 0.0)
        assert before == pytest.approx(4 * 2 * sum(COSTS) * shades.full_macs)  # all sizes, forward and backward
        assert _tally(shades, trial).backbone_macs == pytest.approx(before + 4 * (0.1 + 0.2) * shades.full_macs)


class TestShades:
    @pytest.mark.parametrize("target", ["sandwich", "cheapest"])
    def test_middle_size_is_chosen_only_where_it_is_asked_for(self, target, shades, dark_or_bright):
        options = {"target": target}
        config = TrainConfig(agent="ds-gate", price=0.1, images=8_000, num_envs=64, hidden=16, agent_options=options)
        test = measure(train(config, shades, dark_or_bright, quiet=True).controller, dark_or_bright.test)
        assert test.accuracy == 1.0
        images = shades.prepare(dark_or_bright.test.images)
        counts = shades.observe(shades.begin(images)).sum(1).long().bincount().tolist()
        assert min(counts) > 10
        expected = counts if target == "cheapest" else [counts[0], 0, counts[1] + counts[2]]
        assert option_counts(test.actions, shades) == [expected]

    def test_compute_target_is_kept_on_validation(self, shades, dark_or_bright):
        config = TrainConfig(agent="ds-gate", price=0.0, target_compute=0.2, images=8_000, num_envs=64, hidden=16)
        trained = train(config, shades, dark_or_bright, quiet=True)
        assert trained.val.compute <= 0.2
        assert 0.7 < trained.val.accuracy < 1


class TestMisuse:
    @pytest.mark.parametrize("wrong", [{"target": "middle"}, {"weight": -1}, {"limit": 0}])
    def test_out_of_range_is_told(self, wrong):
        with pytest.raises(ValueError, match=f"ds-gate: expected .*{next(iter(wrong))}.*got"):
            DSGateOptions(**wrong)

    def test_options_that_are_alike_are_refused(self, random_backbone):
        task = make_task("patch-crop", random_backbone())
        with pytest.raises(ValueError, match="rise from less to more, got patch-crop.*Use gumbel, ppo or reinforce"):
            DSGate().check(task, {})

    def test_too_many_ways_for_the_cheapest_are_refused(self):
        task = make_task("layer-skip", make_backbone("resnet20-w4", num_classes=2, input_shape=(1, 8, 8)))
        with pytest.raises(ValueError, match="at most 64 ways.*got 512 of layer-skip.*sandwich"):
            DSGate().check(task, {"target": "cheapest"})
        DSGate().check(task, {})
        DSGate().check(task, {"target": "cheapest", "limit": 512})
