"""The Gumbel learners and SkipNet: schedule, rates, tiny tasks; and how a policy is brought to a compute target."""

from types import SimpleNamespace

import pytest
import torch

from skipgym import Controller
from skipgym.agents.budget import Lagrange
from skipgym.agents.evaluate import measure
from skipgym.agents.gate import Gate, VectorTrunk, price_signal
from skipgym.agents.gumbel import AIGOptions, ConvNetAIG, Gumbel, GumbelOptions, rate_loss
from skipgym.agents.learner import make_learner
from skipgym.agents.policy import GatePolicy
from skipgym.agents.relaxed import attempt, gumbel
from skipgym.agents.skipnet import SkipNetOptions
from skipgym.agents.training import TrainConfig, meet, shift_for, train
from skipgym.envs import Layout, make_task


def setting(task=None, *, target=None, **options):
    """Return what `begin` reads of a setting."""
    return SimpleNamespace(task=task, lagrange=Lagrange(target) if target else None, agent_options=options)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "wrong"),
        [
            *((GumbelOptions, {name: 0}) for name in ("learning_rate", "start", "end")),
            (GumbelOptions, {"hard": 2}),
            (GumbelOptions, {"leash": -1}),
            (AIGOptions, {"rate": 1.5}),
            (AIGOptions, {"rate": -0.1}),
            (AIGOptions, {"weight": -1}),
            (AIGOptions, {"start": 0}),
            (SkipNetOptions, {"learning_rate": 0}),
            (SkipNetOptions, {"warm_up": 1.0}),
            (SkipNetOptions, {"rl_weight": -1}),
            (SkipNetOptions, {"baseline": "critic"}),
            (SkipNetOptions, {"recurrent": 2}),
        ],
    )
    def test_out_of_range_is_told(self, options, wrong):
        with pytest.raises(ValueError, match=f"expected .*{next(iter(wrong))}.*got"):
            options(**wrong)

    @pytest.mark.parametrize("agent", ["gumbel", "convnet-aig", "skipnet"])
    def test_unknown_option_is_told_with_the_agents_name(self, agent, tell):
        with pytest.raises(ValueError, match=f"options of {agent}: .*momentum.*Known are .*learning_rate"):
            make_learner(agent).check(tell, {"momentum": 1})

    def test_options_are_read(self):
        learner = ConvNetAIG()
        learner.begin(setting(rate=0.3, weight=5.0, learning_rate=0.1))
        assert (learner.target, learner.options.weight, learner.learning_rate) == (0.3, 5.0, 0.1)


class TestTemperature:
    @pytest.mark.parametrize(("progress", "temperature"), [(0.0, 4.0), (0.5, 1.0), (1.0, 0.25)])
    def test_it_falls_exponentially_from_start_to_end(self, progress, temperature):
        learner, logits = Gumbel(), torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        learner.begin(setting(start=4.0, end=0.25, hard=0))
        torch.manual_seed(0)
        drawn = learner.draw(progress)(logits)
        torch.manual_seed(0)
        torch.testing.assert_close(drawn, gumbel(temperature, hard=False)(logits))

    def test_convnet_aigs_stays_at_one_and_its_choices_are_hard(self):
        learner, logits = ConvNetAIG(), torch.zeros(20, 2)
        learner.begin(setting())
        for progress in (0.0, 0.9):
            torch.manual_seed(0)
            drawn = learner.draw(progress)(logits)
            torch.manual_seed(0)
            torch.testing.assert_close(drawn, gumbel(1.0)(logits))
            assert drawn.round().sum(1).tolist() == [1.0] * 20
            torch.testing.assert_close(drawn, drawn.round())


class TestLeash:
    @staticmethod
    def gradient(task, data, leash):
        """Return the gradient of the bias of the gate's last layer, which is sure of executing every block."""
        learner = Gumbel()
        learner.begin(setting(task, leash=leash))
        gate = Gate(Layout.of(task, priced=False), task.decisions, hidden=8)
        torch.nn.init.zeros_(gate.head.weight)
        with torch.no_grad():
            gate.head.bias.copy_(torch.tensor([-200.0, 200.0]))
        images, labels = task.prepare(data.policy.images[:8]), data.policy.labels[:8]
        trial = attempt(task, gate, (task.begin(images), labels, torch.full((8,), 5.0)), learner.draw(0.5))
        learner.loss(trial, 0.5).backward()
        return gate.head.bias.grad

    def test_a_gate_that_is_sure_can_still_change_its_mind(self, tell, dark_or_bright):
        """Its softmax is flat; the mean square of the logits -200 and 200 has the gradients -200 and 200."""
        assert self.gradient(tell, dark_or_bright, 0.0).tolist() == [0.0, 0.0]
        torch.testing.assert_close(self.gradient(tell, dark_or_bright, 0.01), torch.tensor([-2.0, 2.0]))


class TestRates:
    def test_loss_by_hand(self):
        """The first piece executes in 3 of 4 rows; the second, of three options, a quarter of the time.

        Its middle option counts half: (0 + 0.25 + 0 + 0.4) / 4 = 0.1625; where the others are alike, 0.25.
        """
        first = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        second = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.2, 0.3]])
        assert rate_loss([first, second], 0.5).item() == pytest.approx((0.25**2 + 0.3375**2) / 2)
        assert rate_loss([first, second], 0.75).item() == pytest.approx((0.0 + 0.5875**2) / 2)
        assert rate_loss([first, second], 0.5, alike=True).item() == pytest.approx((0.25**2 + 0.25**2) / 2)

    def test_gradient_pulls_each_piece_towards_the_target(self):
        often, rarely = (torch.full((4, 2), 0.5).requires_grad_() for _ in range(2))
        scale = torch.tensor([[0.2, 1.8]])  # executed 0.9 of the time, and 0.1
        loss = rate_loss([often * scale, rarely * scale.flip(1)], 0.5)
        up, down = torch.autograd.grad(loss, [often, rarely])
        assert (up[:, 1] > 0).all()  # less weight on executing
        assert (down[:, 1] < 0).all()

    def test_compute_target_asks_all_blocks_for_the_rate_that_spends_it(self, small_backbone):
        task, learner = make_task("layer-skip", small_backbone), ConvNetAIG()
        learner.begin(setting(task, target=0.7, rate=0.2))
        least, full = small_backbone.least_macs, small_backbone.full_macs
        assert least + learner.target * (full - least) == pytest.approx(0.7 * full)

    def test_heavy_rate_loss_brings_every_block_to_its_rate(self, small_backbone, dark_or_bright):
        """The rate is that of the draws in training; without the noise a gate may execute always, or never."""
        task, seen = make_task("layer-skip", small_backbone), []

        class Watched(ConvNetAIG):
            def loss(self, trial, progress):
                seen.append(torch.stack([piece[:, 1].mean() for piece in trial.decider.weights]).detach())
                return super().loss(trial, progress)

        def run(rate):
            seen.clear()
            options = {"rate": rate, "weight": 200.0, "learning_rate": 0.02}
            config = TrainConfig(agent="convnet-aig", images=6_000, num_envs=64, hidden=8, agent_options=options)
            train(config, task, dark_or_bright, quiet=True)
            return torch.stack(seen[-20:]).mean(0)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("skipgym.agents.training.make_learner", lambda _: Watched())  # pyright: ignore[reportAbstractUsage]
            for rate in (0.3, 0.7):
                torch.testing.assert_close(run(rate), torch.full((3,), rate), atol=0.06, rtol=0)


class TestTinyTasks:
    @pytest.mark.parametrize(("agent", "options"), [("skipnet", {"recurrent": 1}), ("gumbel", {"hard": 0, "end": 0.3})])
    def test_variants_find_the_known_optimum(self, agent, options, tell, dark_or_bright):
        config = TrainConfig(
            agent=agent, price=0.1, images=12_000, num_envs=64, hidden=16, seed=1, agent_options=options
        )
        policy = train(config, tell, dark_or_bright, quiet=True).controller.policy
        assert policy.gate.recurrent == ("recurrent" in options)
        test = measure(Controller(tell, policy), dark_or_bright.test)
        assert test.accuracy == 1.0
        assert test.compute == pytest.approx(0.1 + 2 * policy.macs / tell.full_macs)

    @pytest.mark.parametrize("agent", ["gumbel", "convnet-aig", "skipnet"])
    def test_decisions_of_several_parts_are_learned(self, agent, tell_at_once, dark_or_bright):
        config = TrainConfig(agent=agent, price=0.1, images=12_000, num_envs=64, hidden=16)
        trained = train(config, tell_at_once, dark_or_bright, quiet=True)
        assert measure(trained.controller, dark_or_bright.test).accuracy == 1.0

    def test_gumbel_told_a_range_of_prices_answers_to_its_price(self, tell, dark_or_bright):
        """A right answer saves 2 of cross-entropy; at a price of 60 an execution costs 6."""
        config = TrainConfig(agent="gumbel", price=(0.1, 60.0), images=20_000, num_envs=64, hidden=16)
        controller = train(config, tell, dark_or_bright, quiet=True).controller
        assert controller.policy.priced
        cheap, dear = (measure(controller, dark_or_bright.test, price=price) for price in (0.1, 60.0))
        assert cheap.accuracy == 1.0
        assert sum(dear.execution) < 0.1 < sum(cheap.execution)

    def test_compute_target_is_kept_on_validation(self, tell, dark_or_bright):
        config = TrainConfig(agent="gumbel", price=0.0, target_compute=0.15, images=12_000, num_envs=64, hidden=8)
        trained = train(config, tell, dark_or_bright, quiet=True)
        assert trained.val.accuracy == 1.0
        assert trained.val.compute <= 0.15


def make_telling(task, threshold, *, priced=False):
    """Return a controller whose gate, unshifted, executes where |brightness| of the wanted sign exceeds a threshold.

    At -0.5 it executes always, at 0.5 where it should (images are 0.5 away from 0 at least), at 5 never. If it is
    told a price, that raises the threshold: by nothing at 0, by 0.5 at 0.5.
    """
    gate = Gate(Layout.of(task, priced=priced), task.decisions, hidden=4)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.zero_()
        assert isinstance(gate.trunk, VectorTrunk)
        gate.trunk.weight[0, 0, 0], gate.trunk.weight[1, 0, 0] = 1, -1  # bright first, dark second
        if priced:
            free, half = price_signal(torch.tensor([0.0, 0.5])).tolist()
            gate.trunk.weight[:, 1, 2], gate.trunk.bias[:, 1] = 0.5 / (half - free), -0.5 * free / (half - free)
        gate.trunk.second.weight.copy_(torch.eye(4))
        gate.head.weight[1, 0], gate.head.weight[1, 1] = 1, -1
        gate.head.bias[1] = -threshold
    return Controller(task, GatePolicy(gate), price=0.0)


def shift(controller):
    assert isinstance(controller.policy, GatePolicy)
    return controller.policy.shift


class TestTarget:
    @pytest.fixture
    def val(self, dark_or_bright):
        return dark_or_bright.val

    def budget(self, controller, executions):
        """Return the compute of so many executions an image, and the gate's."""
        return 0.1 * executions + 2 * controller.policy.macs / controller.task.full_macs + 1e-9

    def test_policy_that_overspends_is_brought_within_the_target(self, tell, val):
        controller = make_telling(tell, -0.5)
        before = measure(controller, val)
        assert (before.accuracy, before.execution) == (0.0, [1.0, 1.0])
        meet(controller, val, self.budget(controller, 1))
        after = measure(controller, val)
        assert shift(controller) < 0
        assert (after.accuracy, sum(after.execution)) == (1.0, 1.0)
        assert after.compute <= self.budget(controller, 1)

    def test_policy_that_underspends_spends_more_where_that_helps(self, tell, val):
        controller = make_telling(tell, 5.0)
        assert measure(controller, val).accuracy == 0.0
        meet(controller, val, self.budget(controller, 1.5))
        after = measure(controller, val)
        assert shift(controller) > 0
        assert (after.accuracy, sum(after.execution)) == (1.0, 1.0)

    def test_policy_that_underspends_stays_where_more_does_not_help(self, tell, val):
        controller = make_telling(tell, 0.5)
        meet(controller, val, self.budget(controller, 2))
        assert shift(controller) == 0.0
        assert measure(controller, val).accuracy == 1.0

    @pytest.mark.parametrize("name", ["layer-skip", "block-drop"])
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_gate_with_random_weights_is_brought_within_the_target(self, name, share, small_backbone, val):
        task = make_task(name, small_backbone)
        torch.manual_seed(0)
        gate = Gate(Layout.of(task, priced=False), task.decisions, hidden=8)
        least = (task.least_macs + task.horizon * gate.macs()) / task.full_macs
        most = 1 + task.horizon * gate.macs() / task.full_macs
        target = least + share * (most - least)
        controller = Controller(task, GatePolicy(gate, shift=4.0))
        assert measure(controller, val).compute == pytest.approx(most)
        meet(controller, val, target)
        after = measure(controller, val)
        assert shift(controller) < 4.0
        assert least < after.compute <= target

    def test_policy_that_is_told_a_price_gets_the_lowest_within_the_target(self, tell, val):
        """It executes always at a price of 0, and where it should from 0.5 on."""
        controller = make_telling(tell, -0.5, priced=True)
        assert measure(controller, val).accuracy == 0.0
        meet(controller, val, self.budget(controller, 1))
        assert controller.price == pytest.approx(0.5, abs=1 / 1000)
        assert shift(controller) == 0.0
        assert measure(controller, val).accuracy == 1.0

    def test_price_is_zero_where_that_is_within_the_target(self, tell, val):
        controller = make_telling(tell, 0.5, priced=True)
        controller.price = 3.0
        meet(controller, val, self.budget(controller, 1))
        assert controller.price == 0.0

    def test_shift_grows_with_the_target_and_each_is_the_largest_within_it(self, tell, val):
        controller, most = make_telling(tell, 2.0), 16.0
        executions = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0]
        shifts = [shift_for(controller, val, self.budget(controller, count)) for count in executions]
        assert shifts == sorted(shifts)
        assert len(set(shifts)) == len(shifts)
        assert shifts[-1] == most
        assert shift(controller) == 0.0  # tried on a copy
        step = 2 * most / 2**12
        for count, largest in zip(executions[:-1], shifts, strict=False):
            spent = []
            for of in (largest, largest + step):
                controller.policy.shift = of
                spent.append(measure(controller, val).compute)
            assert spent[0] <= self.budget(controller, count) < spent[1]

    def test_shift_is_the_least_where_no_shift_meets_the_target(self, tell, val):
        assert shift_for(make_telling(tell, -100.0), val, 0.01) == -16.0


@pytest.mark.parametrize("name", ["layer-skip", "block-drop"])
def test_saved_controller_of_a_shifted_gate_decides_the_same(name, small_backbone, dark_or_bright, tmp_path):
    task, images = make_task(name, small_backbone), dark_or_bright.test.images
    torch.manual_seed(0)
    gate = Gate(Layout.of(task, priced=False), task.decisions, hidden=8)
    with torch.no_grad():
        seen = gate.layout.join(task.observe(task.begin(task.prepare(images))), 0, torch.zeros(len(images)))
        first = gate(seen)[0]
        median = float((first[:, 0] - first[:, 1]).median())  # half of the images execute the first piece
    controller = Controller(task, GatePolicy(gate, shift=median))
    controller.save(tmp_path / "c")
    loaded = Controller.load(tmp_path / "c")
    assert shift(loaded) == median
    before, after = controller(images), loaded(images)
    assert 0.3 < before.actions[:, 0].float().mean() < 0.7
    assert torch.equal(after.actions, before.actions)
    assert torch.equal(after.logits, before.logits)
