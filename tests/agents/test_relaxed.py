"""Soft execution against hard, and gradients of every estimator against enumeration or by hand."""

from itertools import product
from math import pi

import pytest
import torch
from torch.nn import functional as F

from skipgym.agents.gate import Gate
from skipgym.agents.reinforce import Sampler, bounded, episode_reward
from skipgym.agents.relaxed import Metered, _tally, attempt, gumbel, sampled, soft, through
from skipgym.agents.skipnet import reinforce_loss
from skipgym.envs import Hard, Layout, Soft, State, Task, make_reward, make_task, one_hot
from skipgym.envs.rollout import follow, relax
from skipgym.envs.task import task_class
from skipgym.ids import TASKS

DRAWS = {"soft": soft, "sampled": sampled, "gumbel": gumbel(1.0), "gumbel soft": gumbel(1.0, hard=False)}
STANDARD_ERRORS = 5


class Exits(Task):
    """A toy early exit: at each of two decisions 1 answers, with the class of the position, for 8 MACs; 0 goes on."""

    name = "exits"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.horizon, self.decisions, self.observation_shape, self.least_macs = 2, (2,), (1,), 24

    def begin(self, inputs):
        return State.start(inputs.mean((1, 2, 3)).unsqueeze(1), macs=16)

    def observe(self, state):
        return state.features

    def step(self, state, choice):
        state = state.finish(self.answer(state), macs=8, when=choice.weight(1))
        state = state.advance(state.features, macs=64)
        return state if state.position < 2 else state.finish(self.answer(state))

    def answer(self, state):
        return F.one_hot(torch.full((len(state),), state.position), 3).float()


class Parts(Exits):
    """The same, but rows that go on and rows that do not come back as two cohorts."""

    def step(self, state, choice):  # pyright: ignore[reportIncompatibleMethodOverride]
        after = super().step(state, choice)
        return [after, after.select(torch.tensor([], dtype=torch.long))]


def make_gate(task, *, recurrent=False):
    torch.manual_seed(1)
    return Gate(Layout.of(task, priced=False), task.decisions, hidden=8, recurrent=recurrent)


def images(count, seed=0):
    return torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))


def dealt(task, count):
    """Return what an engine would deal: images of alternating classes, at a price of 0.7."""
    with torch.no_grad():
        start = task.begin(task.prepare(images(count)))
    return start, torch.arange(count) % 2, torch.full((count,), 0.7)


def flat(gradients, parameters):
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def gradient(value, gate):
    parameters = list(gate.parameters())
    return flat(torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True), parameters)


IMAGES = [name for name in sorted(TASKS) if not task_class(name).takes_words]  # of texts: the contract tests
EXITS = [name for name in IMAGES if task_class(name).has_exits]
NETWORKS = {"routing": "supernet3-w4", "token-skip": "vit3-w16-p2"}
"""For tasks that are about other networks than ResNets."""


class TestSoftExecution:
    @pytest.mark.parametrize("name", IMAGES)
    def test_relaxed_at_one_hot_weights_equals_hard_execution(self, name, random_backbone):
        kind = task_class(name)
        reader = "frames" if kind.takes_clips else "crops"
        network = NETWORKS.get(name) or kind.architecture("resnet8-w4")
        task = make_task(name, random_backbone(network, reader=reader))
        pieces, parts = len(task.pieces), len(task.decisions)
        actions = torch.randint(2, (9, pieces), generator=torch.Generator().manual_seed(0))

        def mine(state):
            return actions[state.rows, state.position * parts : (state.position + 1) * parts]

        with torch.no_grad():
            start = task.begin(task.prepare(images(9)[:, None] if task.takes_clips else images(9)))
            hard = follow(task, start, lambda s: Hard(mine(s).squeeze(1)))
            relaxed = relax(task, start, lambda s: one_hot(mine(s), task.decisions))
        decided = hard.actions >= 0  # rows that have answered at an exit decide no more
        assert torch.equal(hard.actions[decided], actions[decided])
        assert bool(decided.all()) is not task.has_exits
        assert len(hard.macs.unique()) > 1
        assert torch.equal(relaxed.macs, hard.macs)
        torch.testing.assert_close(relaxed.logits, hard.logits, rtol=1e-4, atol=1e-4)

    def test_task_that_parts_its_rows_is_refused(self, small_backbone):
        task = Parts(small_backbone)
        start, *_ = dealt(task, 2)
        with pytest.raises(TypeError, match=r"expected exits to keep its rows together, got 2 cohorts\. Train it with"):
            relax(task, start, lambda s: Soft(torch.full((2, 2), 0.5)))

    def test_answers_and_costs_of_early_exits_mix_by_their_shares(self, small_backbone):
        """A quarter leaves at once, half of the rest at the second decision."""
        task, leave = Exits(small_backbone), iter([0.25, 0.5])
        gate = make_gate(task)

        def draw(logits):
            share = next(leave)
            return torch.tensor([[1 - share, share]]).expand(len(logits), -1)

        trial = attempt(task, gate, dealt(task, 2), draw)
        assert trial.run.logits.tolist() == [[0.25, 0.375, 0.375]] * 2
        macs = 16 + 0.25 * 8 + 0.75 * 64 + 0.375 * 8 + 0.375 * 64
        assert trial.run.macs.tolist() == [macs] * 2
        decided = 1 + 0.75  # only who has not left pays for the second decision
        torch.testing.assert_close(trial.compute, torch.full((2,), (macs + decided * gate.macs()) / task.full_macs))

    def test_nobody_is_asked_after_all_have_left(self, small_backbone):
        task, asked = Exits(small_backbone), []
        start, *_ = dealt(task, 2)
        run = relax(task, start, lambda s: asked.append(s.position) or one_hot(torch.ones(2, dtype=torch.long), (2,)))
        assert asked == [0]
        assert run.macs.tolist() == [24, 24]


class TestDraws:
    @pytest.mark.parametrize("name", DRAWS)
    def test_rows_sum_to_one_and_their_gradients_to_zero(self, name):
        logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        torch.manual_seed(0)
        weights = DRAWS[name](logits)
        torch.testing.assert_close(weights.sum(1), torch.ones(50))
        (grad,) = torch.autograd.grad((weights * torch.randn(50, 3)).sum(), logits)
        torch.testing.assert_close(grad.sum(1), torch.zeros(50), atol=1e-6, rtol=0)
        assert (grad.abs().amax(1) > 0).all()

    @pytest.mark.parametrize(("name", "backward"), [("gumbel", "gumbel soft"), ("sampled", "soft")])
    def test_one_option_forward_and_the_softmax_backward(self, name, backward):
        logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        weigh, values, grads = torch.randn(50, 3), [], []
        for draw in (DRAWS[name], DRAWS[backward]):
            torch.manual_seed(0)
            weights = draw(logits)
            values.append(weights.detach())
            grads.append(torch.autograd.grad((weights * weigh).sum(), logits)[0])
        torch.testing.assert_close(values[0], F.one_hot(values[0].argmax(1), 3).float())
        assert values[1].amax(1).median() < 0.95
        torch.testing.assert_close(grads[0], grads[1])

    @pytest.mark.parametrize("name", ["sampled", "gumbel"])
    def test_options_are_drawn_as_often_as_they_are_probable(self, name):
        logits, count = torch.tensor([0.0, 1.0, -0.5]), 20_000
        torch.manual_seed(0)
        shares = DRAWS[name](logits.expand(count, -1)).mean(0)
        probable = logits.softmax(0)
        error = (probable * (1 - probable) / count).sqrt()
        assert ((shares - probable).abs() < STANDARD_ERRORS * error).all()

    def test_through_by_hand(self):
        probabilities = torch.tensor([[0.2, 0.8], [0.5, 0.5]], requires_grad=True)
        weights = through(probabilities, torch.tensor([0, 1]))
        torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        (weights * torch.tensor([[3.0, 5.0], [7.0, 9.0]])).sum().backward()
        assert probabilities.grad.tolist() == [[3, 5], [7, 9]]


def estimate(draw, loss, a, b, *, draws=200_000):
    """Return the mean gradient of a loss of two gates with respect to their logits, and its standard error."""
    logits = [torch.tensor([0.0, x]).repeat(draws, 1).requires_grad_() for x in (a, b)]
    torch.manual_seed(0)
    value = loss(*(draw(one)[:, 1] for one in logits)).sum()
    grads = torch.stack([grad[:, 1] for grad in torch.autograd.grad(value, logits)], 1).double()
    return grads.mean(0), grads.std(0) / draws**0.5


def enumerated(loss, a, b):
    """Return the gradient of the expected loss of two gates, by enumeration."""
    logits = torch.tensor([a, b], dtype=torch.double, requires_grad=True)
    p = logits.sigmoid()
    ways = product((0.0, 1.0), repeat=2)
    chances = [
        (p[0] if g else 1 - p[0]) * (p[1] if h else 1 - p[1]) * loss(torch.tensor(g), torch.tensor(h)) for g, h in ways
    ]
    return torch.autograd.grad(torch.stack(chances).sum(), logits)[0]


def table(g, h):
    """Four outcomes: 1 with none, 3 with the first, 2 with the second, 9 with both; linear in each gate."""
    return 1 + 2 * g + h + 5 * g * h


def factor(a, temperature):
    """Return the mean of σ'((a + noise) / temperature) / temperature over logistic noise, as a share of σ'(a)."""
    u = (torch.arange(400_000, dtype=torch.double) + 0.5) / 400_000
    s = ((a + (u / (1 - u)).log()) / temperature).sigmoid()
    p = torch.tensor(a, dtype=torch.double).sigmoid()
    return float((s * (1 - s)).mean() / temperature / (p * (1 - p)))


class TestBias:
    """How far straight-through gradients are from those of the expected loss.

    Where the loss is linear in each gate (a table over outcomes is), SkipNet's `sampled` has no bias, and Gumbel's
    gradient is the true one times a factor of each gate: 2/3 for an undecided gate at temperature 1, less above, more
    below, over 1 for a decided gate. The sign is right. Where the loss bends between the corners neither holds: the
    slope at the corner is followed, and that may have either sign. Networks bend.
    """

    def test_straight_through_probabilities_are_unbiased_for_a_table(self):
        mean, error = estimate(sampled, table, 0.4, -0.7)
        assert ((mean - enumerated(table, 0.4, -0.7)).abs() < STANDARD_ERRORS * error).all()

    @pytest.mark.parametrize(
        ("temperature", "share"), [(0.5, 4 - pi), (1.0, 2 / 3), (2.0, (4 - pi) / 2)]
    )  # integrals of u^k over the odds of an undecided gate, in closed form
    def test_gumbel_shrinks_the_gradient_of_undecided_gates(self, temperature, share):
        assert factor(0.0, temperature) == pytest.approx(share, rel=1e-4)
        mean, error = estimate(gumbel(temperature), table, 0.0, 0.0)
        assert ((mean - share * enumerated(table, 0.0, 0.0)).abs() < STANDARD_ERRORS * error).all()

    @pytest.mark.parametrize(("a", "b"), [(0.4, -0.7), (2.0, -3.0)])
    def test_gumbel_scales_each_gates_gradient_by_a_factor_of_its_own(self, a, b):
        mean, error = estimate(gumbel(1.0), table, a, b)
        expected = torch.tensor([factor(a, 1.0), factor(b, 1.0)]) * enumerated(table, a, b)
        assert ((mean - expected).abs() < STANDARD_ERRORS * error).all()

    def test_gumbel_exaggerates_the_gradient_of_decided_gates(self):
        shares = [factor(a, 1.0) for a in (0.0, 1.0, 2.0, 3.0, 4.0)]
        assert shares == sorted(shares)
        assert shares[0] < 1 < shares[-1]

    def test_bias_of_gumbel_vanishes_with_the_temperature(self):
        shares = [factor(0.4, temperature) for temperature in (1.0, 0.5, 0.2, 0.05)]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0, abs=0.01)

    @pytest.mark.parametrize("draw", [gumbel(1.0), sampled], ids=["gumbel", "sampled"])
    def test_loss_that_bends_between_the_corners_can_turn_the_gradient_round(self, draw):
        """At both ends of g - 2 sin(2πg) / (2π) the slope is -1, though executing costs 1 more than skipping."""

        def bent(g, h):
            return g - 2 * torch.sin(2 * pi * g) / (2 * pi) + 0 * h

        assert enumerated(bent, 0.0, 0.0)[0] == pytest.approx(0.25)
        mean, error = estimate(draw, bent, 0.0, 0.0)
        share = factor(0.0, 1.0) if draw is not sampled else 1.0
        assert abs(mean[0] + 0.25 * share) < STANDARD_ERRORS * error[0] + 1e-6


def walk(task, gate, given, plan, squash):
    """Return the log-probability of a plan (N, pieces), (N,), and the run: hard, without gradients to features."""
    start, _, price = given
    parts, memory, logs = len(task.decisions), None, []

    def decide(state):
        nonlocal memory
        logits, memory = gate(gate.layout.join(task.observe(state), state.position, price), memory)
        actions = plan[:, state.position * parts : (state.position + 1) * parts]
        for part, chosen in zip(logits.split(list(task.decisions), 1), actions.unbind(1), strict=True):
            logs.append(squash(part.softmax(1)).log().gather(1, chosen[:, None])[:, 0])
        return Hard(actions.squeeze(1) if parts == 1 else actions)

    run = follow(task, start, decide)
    return torch.stack(logs, 1), run


def plans(task):
    return [torch.tensor(plan) for plan in product((0, 1), repeat=len(task.pieces))]


CASES = [("layer-skip", False), ("layer-skip", True), ("block-drop", False), ("tell", False), ("tell", True)]


@pytest.fixture(params=CASES, ids=lambda case: case[0] + (" recurrent" if case[1] else ""))
def task_and_gate(request, small_backbone, tell):
    name, recurrent = request.param
    task = tell if name == "tell" else make_task(name, small_backbone)
    return task, make_gate(task, recurrent=recurrent)


class TestSkipNetsReinforce:
    """Of minus cross-entropy minus price x compute, over all ways through, weighted by their probability."""

    def exact(self, task, gate, given):
        """Return the gradient of the mean over rows of minus the expected return."""
        start, labels, price = given
        expected = 0.0
        for plan in plans(task):
            logs, run = walk(task, gate, given, plan.expand(len(start), -1), lambda p: p)
            compute = (run.macs + task.horizon * gate.macs()).float() / task.full_macs
            returns = -F.cross_entropy(run.logits, labels, reduction="none") - price * compute
            expected = expected + (logs.sum(1).exp() * returns.detach()).mean()
        return gradient(-expected, gate)

    def estimated(self, task, gate, given, *, mean):
        """Return the gradient of `reinforce_loss`, over all plans of all rows together."""
        count, total = len(given[0]), torch.zeros(())
        for joint in product(plans(task), repeat=count):
            plan = torch.stack(joint)
            columns = iter(plan.unbind(1))
            trial = attempt(task, gate, given, lambda p, columns=columns: through(p.softmax(1), next(columns)))
            chosen = zip(trial.decider.logits(), plan.unbind(1), strict=True)
            likely = torch.stack([p.softmax(1).gather(1, c[:, None]) for p, c in chosen]).prod()
            total = total + likely.detach() * gradient(reinforce_loss(trial, mean=mean), gate)
        return total

    def test_expected_gradient_is_that_of_the_expected_return(self, task_and_gate):
        task, gate = task_and_gate
        given = dealt(task, 1)
        exact = self.exact(task, gate, given)
        assert exact.norm() > 0.05
        torch.testing.assert_close(self.estimated(task, gate, given, mean=False), exact, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("recurrent", [False, True])
    def test_batch_mean_as_baseline_costs_one_nth_of_the_gradient(self, tell, recurrent):
        """Its own return is in each row's baseline: with two rows half of the gradient is left, else it is unbiased."""
        gate, given = make_gate(tell, recurrent=recurrent), dealt(tell, 2)
        exact = self.exact(tell, gate, given)
        torch.testing.assert_close(self.estimated(tell, gate, given, mean=False), exact, rtol=0, atol=1e-5)
        torch.testing.assert_close(self.estimated(tell, gate, given, mean=True), exact / 2, rtol=0, atol=1e-5)

    def test_decision_is_not_charged_for_what_was_spent_before_it(self, tell):
        gate, given = make_gate(tell), dealt(tell, 2)
        plan = torch.tensor([[1, 1], [0, 1]])
        columns = iter(plan.unbind(1))
        trial = attempt(tell, gate, given, lambda p: through(p.softmax(1), next(columns)))
        with torch.no_grad():
            logs, _ = walk(tell, gate, given, plan, lambda p: p)
            gates = 2 * gate.macs() / tell.full_macs
            ahead = torch.tensor([[0.2, 0.1], [0.1, 0.1]]) + gates  # executions cost a tenth each
            returns = -trial.error[:, None] - 0.7 * ahead
            for mean in (False, True):
                advantage = returns - returns.mean(0) if mean else returns
                expected = -(advantage * logs).mean(0).sum()
                torch.testing.assert_close(reinforce_loss(trial, mean=mean), expected)


@pytest.mark.parametrize("forced", [0, 1])
def test_block_drops_reinforce_has_the_gradient_of_the_expected_reward(task_and_gate, forced, monkeypatch):
    """Under bounded probabilities, with any baseline, and with the first pieces forced to execute."""
    task, gate = task_and_gate
    given = dealt(task, 2)
    start, labels, price = given
    reward, expected, estimated = make_reward("cross-entropy"), 0.0, 0.0
    for plan in plans(task):
        if not plan[:forced].all():
            continue
        plan = plan.expand(2, -1)
        logs, run = walk(task, gate, given, plan, lambda p: bounded(p, 0.8))
        earned = episode_reward(reward, run, labels, price, task, gate.macs()).detach()
        expected = expected + logs[:, forced:].sum(1).exp() * earned
        columns = iter(plan[:, forced:].unbind(1))
        monkeypatch.setattr(torch, "multinomial", lambda *_, columns=columns, **__: next(columns)[:, None])
        sampler = Sampler(task, gate, price, bound=0.8, forced=forced, generator=torch.Generator())
        again = follow(task, start, sampler)
        assert torch.equal(again.actions, plan)
        advantage = episode_reward(reward, again, labels, price, task, gate.macs()).detach() - 0.37
        estimated = estimated + sampler.log_prob.detach().exp() * advantage * sampler.log_prob
    exact = gradient(expected.mean(), gate)
    assert exact.norm() > 0.005
    torch.testing.assert_close(gradient(estimated.mean(), gate), exact, rtol=0, atol=1e-5)


class TestCount:
    def test_metered_counts_every_branch_whatever_is_chosen(self):
        spent, mixed = [], []
        choice = Metered(torch.tensor([[1.0, 0.0], [0.25, 0.75]]), spent, mixed)
        assert choice.cost([3, 8]).tolist() == [3, 0.25 * 3 + 0.75 * 8]
        assert spent == [11]
        assert [one.tolist() for one in mixed] == [[3, 0.25 * 3 + 0.75 * 8]]

    def test_parts_of_metered_count_together(self):
        spent, mixed = [], []
        choice = Metered([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])], spent, mixed)
        assert [choice.part(0).cost([3, 8]).item(), choice.part(1).cost([0, 4]).item()] == [3, 2]
        assert spent == [11, 4]
        assert [one.item() for one in mixed] == [3, 2]

    @pytest.mark.parametrize("backbone", ["resnet8-w4", "resnet18"])
    @pytest.mark.parametrize("name", EXITS)
    def test_backbone_macs_of_a_trial_with_exits_are_those_of_all_stages_forward(self, name, backbone, random_backbone):
        """What goes on is not mixed, so no gradient passes the backbone; where it is a mixture of places, one does."""
        reader = "frames" if task_class(name).takes_clips else "crops"
        task = make_task(name, random_backbone(backbone, input_shape=(1, 32, 32), reader=reader))
        with torch.no_grad():
            start = task.begin(task.prepare(torch.rand(3, *task.blank().shape[1:])))
        dealt = start, torch.zeros(3, dtype=torch.long), torch.full((3,), 0.5)
        trial = attempt(task, make_gate(task), dealt, soft)
        assert sum(trial.decider.spent) == task.most_macs - task.least_macs
        passes = 2 if task.alike else 1
        expected = 3 * (task.least_macs + passes * (task.most_macs - task.least_macs))
        assert _tally(task, trial).backbone_macs == pytest.approx(expected)

    @pytest.mark.parametrize("backbone", ["resnet8-w4", "resnet18"])
    @pytest.mark.parametrize("name", ["layer-skip", "block-drop"])
    def test_backbone_macs_of_a_trial_are_stem_and_twice_branches_and_head(self, name, backbone, random_backbone):
        """Forward and backward; the stem runs before any gate, so no gradient passes it."""
        task = make_task(name, random_backbone(backbone, input_shape=(1, 32, 32)))
        net, gate = task.backbone, make_gate(task)
        with torch.no_grad():
            start = task.begin(task.prepare(torch.rand(3, 1, 32, 32)))
        trial = attempt(task, gate, (start, torch.zeros(3, dtype=torch.long), torch.full((3,), 0.5)), sampled)
        branches = sum(block.macs + block.bypass_macs for block in net.blocks)
        assert sum(trial.decider.spent) == branches
        tally = _tally(task, trial)
        assert tally.backbone_macs == pytest.approx(3 * (net.stem_macs + 2 * (branches + net.head_macs)))
        assert tally.episodes == 3

    @pytest.mark.parametrize("name", ["channel-width", "resolution"])
    def test_head_that_is_part_of_a_branch_is_counted_once(self, name, random_backbone):
        backbone = random_backbone(task_class(name).architecture("resnet8-w4"), input_shape=(1, 32, 32))
        task = make_task(name, backbone)
        start = task.begin(task.prepare(torch.rand(3, 1, 32, 32)))
        trial = attempt(task, make_gate(task), (start, torch.zeros(3, dtype=torch.long), torch.full((3,), 0.5)), soft)
        alone = [follow(task, start, lambda _, i=i: Hard(torch.full((3,), i))) for i in range(task.decisions[0])]
        assert _tally(task, trial).backbone_macs == pytest.approx(3 * 2 * sum(float(run.macs[0]) for run in alone))

    def test_backbone_macs_of_mixed_steps_are_counted_backward_too(self, random_backbone):
        """Gradients reach the gates through the recurrent state: its mixtures are gone through backward."""
        task = make_task("time-skip", random_backbone("words-w8", reader="steps"))
        start = task.begin(task.prepare(task.blank().expand(3, -1, -1, -1, -1)))
        dealt = start, torch.zeros(3, dtype=torch.long), torch.full((3,), 0.5)
        trial = attempt(task, make_gate(task), dealt, soft)
        expected = 3 * (task.least_macs + 2 * sum(trial.decider.spent))
        assert _tally(task, trial).backbone_macs == pytest.approx(expected)

    def test_tally_of_a_trial_by_hand(self, tell):
        """The first of two images is answered right: its first decision executes, as it should; the other's too."""
        price, gate = torch.full((2,), 0.7), make_gate(tell)
        brightness = torch.tensor([[1.0], [-1.0]])
        start = State.start(brightness, right=torch.ones(2))
        columns = iter([torch.tensor([1, 1]), torch.tensor([0, 0])])
        trial = attempt(
            tell, gate, (start, torch.tensor([1, 0]), price), lambda p: through(p.softmax(1), next(columns))
        )
        tally = _tally(tell, trial)
        compute = 0.1 + 2 * gate.macs() / tell.full_macs
        right, wrong = (F.softplus(torch.tensor(x)).item() for x in (-2.0, 2.0))  # cross-entropy of logits ±1
        means = {"reward": -(right + wrong) / 2 - 0.7 * compute, "accuracy": 0.5, "compute": compute}
        assert tally.means() == pytest.approx(means, rel=1e-5)
        assert tally.execution() == [1.0, 0.0]
