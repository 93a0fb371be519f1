"""Soft execution against hard, and REINFORCE's gradients against enumeration or by hand."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from skipgym.agents.gate import Gate
from skipgym.agents.reinforce import episode_reward
from skipgym.agents.relaxed import Metered, _tally, attempt, sampled, soft, through
from skipgym.agents.skipnet import reinforce_loss
from skipgym.agents.twins import bounded, follow_both
from skipgym.envs import Hard, Layout, Soft, State, Task, make_reward, make_task, one_hot
from skipgym.envs.rollout import follow, relax
from skipgym.envs.task import task_class
from skipgym.ids import TASKS


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


@pytest.mark.parametrize(
    "task_and_gate", [case for case in CASES if not case[1]], ids=lambda case: case[0], indirect=True
)
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
        parts = len(task.decisions)
        columns = iter(plan.unflatten(1, (-1, parts))[:, forced // parts :].flatten(2).unbind(1))
        monkeypatch.setattr(torch, "multinomial", lambda *_, columns=columns, **__: next(columns).reshape(-1, 1))
        copy = replace(start, features=start.features.clone())  # it may be overwritten
        pair = follow_both(task, copy, gate, price, bound=0.8, forced=forced, generator=torch.Generator())
        assert torch.equal(pair.drawn.actions, plan)
        advantage = episode_reward(reward, pair.drawn, labels, price, task, gate.macs()).detach() - 0.37
        log_prob, _ = pair.draws.judged(gate, 0.8)
        estimated = estimated + log_prob.detach().exp() * advantage * log_prob
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
