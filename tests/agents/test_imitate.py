"""Imitation: what the expert knows at each decision by hand, and toy tasks solved."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from skipgym import Controller
from skipgym.agents.evaluate import measure
from skipgym.agents.imitate import Guide, ImitateOptions, Table, option_values, price_of, regret
from skipgym.agents.oracle import full_answers
from skipgym.agents.policy import StaticPolicy
from skipgym.agents.training import TrainConfig, train
from skipgym.envs import Layout, State, Task, make_task
from skipgym.envs.rollout import follow

PATHS = torch.tensor([(0, 0), (0, 1), (1, 0), (1, 1)])
INF = float("inf")


class Dial(Task):
    """Three options: dark images need the second, bright ones the third; the first is cheap and always wrong."""

    name = "dial"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.horizon, self.decisions, self.observation_shape, self.least_macs = 1, (3,), (1,), 0

    def begin(self, inputs):
        return State.start(inputs.mean((1, 2, 3)).unsqueeze(1))

    def observe(self, state):
        return state.features

    def step(self, state, choice):
        bright = (state.features[:, 0] > 0).float()
        right = bright * choice.weight(2) + (1 - bright) * choice.weight(1)
        sign = (2 * right - 1) * (2 * bright - 1)
        macs = choice.cost([0, self.full_macs / 10, self.full_macs / 5])
        return state.advance(state.features, macs=macs).finish(torch.stack([-sign, sign], 1))


def config(**more):
    return TrainConfig(**{"agent": "imitate", "price": 0.1, "images": 2_000, "num_envs": 64, "hidden": 16, **more})


class TestToys:
    def test_decisions_in_turn(self, tell, dark_or_bright):
        trained = train(config(), tell, dark_or_bright, quiet=True)
        test = measure(trained.controller, dark_or_bright.test)
        assert test.accuracy == 1.0
        gates = 2 * trained.controller.policy.macs / tell.full_macs
        assert test.compute == pytest.approx(0.1 + gates)  # one of the two decisions executes

    def test_decisions_at_once(self, tell_at_once, dark_or_bright):
        trained = train(config(images=3_000), tell_at_once, dark_or_bright, quiet=True)
        assert measure(trained.controller, dark_or_bright.test).accuracy == 1.0

    def test_three_options(self, small_backbone, dark_or_bright):
        trained = train(config(), Dial(small_backbone), dark_or_bright, quiet=True)
        assert measure(trained.controller, dark_or_bright.test).accuracy == 1.0

    def test_price_above_the_worth_of_an_answer_executes_nothing(self, tell, dark_or_bright):
        """At a price of 12 an execution costs 1.2, more than a right answer earns."""
        trained = train(config(price=12.0), tell, dark_or_bright, quiet=True)
        assert measure(trained.controller, dark_or_bright.test).execution == [0, 0]

    def test_target_is_kept(self, tell, dark_or_bright):
        """One execution and two gates cost 0.11; between 0 and 1 execution only some images can be right."""
        for target in (0.15, 0.08):
            val = train(config(price=0.0, target_compute=target), tell, dark_or_bright, quiet=True).val
            assert val.compute <= target
        assert val.accuracy < 1

    def test_agreeing_with_the_full_network(self, tiny_backbone, tiny_images):
        """At a price of zero, what agrees is above all to execute; on noise nobody can tell more."""
        task, images = make_task("layer-skip", tiny_backbone), tiny_images.policy.images
        trained = train(config(price=0.0, agent_options={"expert": "agree"}), task, tiny_images, quiet=True)
        full = full_answers(task, images)
        shares = [
            float((controller(images).labels == full).float().mean())
            for controller in (trained.controller, Controller(task, StaticPolicy([0, 0, 0], 1)))
        ]
        assert shares[0] > 0.9
        assert shares[1] < 0.1


class TestExpert:
    def test_value_of_an_option_is_that_of_the_best_path_through_it(self):
        scores = torch.tensor([[0.1, 0.9, 0.5, 0.2]])
        assert option_values(scores, PATHS[:, :1], (2,))[0].tolist() == pytest.approx([0.9, 0.5])
        both = option_values(scores, PATHS, (2, 2))  # decided at once: each part given the best of the other
        assert both[0].tolist() == pytest.approx([0.9, 0.5, 0.5, 0.9])

    def test_option_that_no_path_takes_is_unknown(self):
        values = option_values(torch.tensor([[0.1, -INF]]), torch.tensor([[0], [1]]), (3,))
        assert values[0].tolist() == pytest.approx([0.1, -INF, -INF])

    def test_best_path_is_walked_and_valued(self, tell, dark_or_bright):
        guide, run = walked(tell, dark_or_bright, [[0.1, 0.9, 0.5, 0.2], [0.3, 0.1, 0.4, 0.0]])
        assert run.actions.tolist() == [[0, 1], [1, 0]]
        first, second = (lesson.values for lesson in guide.lessons)
        assert first.tolist() == [pytest.approx([0.9, 0.5]), pytest.approx([0.3, 0.4])]
        assert second.tolist() == [pytest.approx([0.1, 0.9]), pytest.approx([0.4, 0.0])]

    def test_policy_that_strays_is_told_the_best_way_on_from_there(self, tell, dark_or_bright):
        scores = [[0.1, 0.9, 0.5, 0.2], [0.3, 0.1, 0.4, 0.0]]
        guide, run = walked(tell, dark_or_bright, scores, policy=StaticPolicy([1, 1], 1))
        assert run.actions.tolist() == [[1, 1], [1, 1]]
        assert guide.lessons[1].values.tolist() == [pytest.approx([0.5, 0.2]), pytest.approx([0.4, 0.0])]

    def test_beginning_that_the_table_does_not_know_teaches_nothing(self, tell, dark_or_bright):
        guide, _ = walked(tell, dark_or_bright, [[0.1, 0.9]], paths=PATHS[:2], policy=StaticPolicy([1, 1], 1))
        unknown = guide.lessons[1].values
        assert unknown.tolist() == [[-INF, -INF]]
        assert regret(torch.randn(1, 2), unknown, (2,)).tolist() == [0]

    def test_price_is_the_lowest_that_meets_the_target(self):
        """The second image gives up its dear path at a price of (1 - 0.5) / (0.9 - 0.1) = 0.625; the first never."""
        worth, compute = torch.tensor([[1.0, 0.0], [0.5, 1.0]]), torch.tensor([0.1, 0.9])
        table = Table(torch.zeros(2, 1, 8, 8), worth, compute, torch.tensor([[0], [1]]))
        assert price_of(table, 0.5) == pytest.approx(0, abs=1e-5)
        assert price_of(table, 0.3) == pytest.approx(0.625, abs=1e-5)


values = st.lists(st.floats(-1, 1), min_size=2, max_size=2)


@given(values, values)
def test_regret_of_two_options_is_weighted_cross_entropy(logits, ends):
    logit, value = torch.tensor([logits]), torch.tensor([ends])
    weight = (value[:, 1] - value[:, 0]).abs()
    expected = weight * F.cross_entropy(logit, value.argmax(1), reduction="none")
    torch.testing.assert_close(regret(logit, value, (2,)), expected)


def test_regret_adds_up_over_parts_and_options():
    logits = torch.zeros(1, 5)
    ends = torch.tensor([[0.25, 1.0, 0.5, 0.75, -INF]])  # gaps: 0.75 of the first part, 0.25 of the second
    torch.testing.assert_close(regret(logits, ends, (2, 3)), torch.tensor([0.6931 * (0.75 + 0.25)]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["layer-skip", "block-drop"])
def test_backbone_budget_is_respected(name, small_backbone, dark_or_bright):
    task = make_task(name, small_backbone)
    budget = 4_000.0 * task.full_macs
    trained = train(config(train_macs=budget, images=100_000), task, dark_or_bright, quiet=True)
    slack = 256 * task.full_macs  # the last batch of a walk
    assert 0.6 * budget < trained.backbone_macs <= budget + slack


def test_images_are_those_of_table_and_corrections(tell, dark_or_bright):
    options = {"table_images": 100, "rounds": 3}
    trained = train(config(agent_options=options), tell, dark_or_bright, quiet=True)
    assert trained.history[-1]["images"] == 100 * (1 + 3)


@pytest.mark.parametrize(
    "wrong", [{"expert": "lucky"}, {"limit": 0}, {"rounds": -1}, {"record_share": 1.0}, {"learning_rate": 0.0}]
)
def test_options_out_of_range_are_told(wrong):
    with pytest.raises(ValueError, match="imitate: expected"):
        ImitateOptions(**wrong)


def test_range_of_prices_is_told(tell, dark_or_bright):
    with pytest.raises(ValueError, match=r"expected a single price, got the range \(0.1, 0.5\)"):
        train(config(price=(0.1, 0.5)), tell, dark_or_bright, quiet=True)


def test_unknown_option_and_too_many_paths_are_told_and_leave_nothing(small_backbone, dark_or_bright, tmp_path):
    for options, message in (({"beta": 1}, "beta"), ({"limit": 2}, "got 3 paths")):
        with pytest.raises(ValueError, match=message):
            train(config(agent_options=options), Dial(small_backbone), dark_or_bright, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def walked(task, data, scores, paths=PATHS, policy=None):
    guide = Guide(task, Layout.of(task, priced=False), paths, torch.tensor(scores), policy)
    inputs = task.prepare(data.val.images[: len(scores)])
    return guide, follow(task, task.begin(inputs), guide)
