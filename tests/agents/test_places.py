"""Decisions that have a place: learners find a known one, and what is drawn is judged by hand."""

import pytest
import torch

from skipgym.agents.evaluate import measure
from skipgym.agents.gate import Gate, Within
from skipgym.agents.policy import GatePolicy, make_policy
from skipgym.agents.training import TrainConfig, train
from skipgym.agents.twins import bounded, follow_both
from skipgym.envs import Layout, State, Task, rollout

SPREAD = 0.2


class Find(Task):
    """A task with a known optimum: look at 0.5 where the image is bright, at -0.5 where it is dark.

    The answer is right within 0.35 of that; without a look it is wrong. A look costs a tenth of the full network.
    """

    name = "find"
    has_exits, alike, coordinates = True, True, 1

    def __init__(self, backbone):
        super().__init__(backbone)
        self.horizon, self.decisions, self.observation_shape, self.least_macs = 1, (2,), (1,), 0

    @property
    def most_macs(self):
        return self.full_macs // 10

    def begin(self, inputs):
        return State.start(inputs.mean((1, 2, 3)).unsqueeze(1))

    def observe(self, state):
        return state.features

    def answer_now(self, state):
        sign = state.features.sign()
        return torch.cat([sign, -sign], 1)

    def step(self, state, choice):
        sign = state.features.sign()
        place = torch.zeros_like(sign) if choice.place is None else choice.place
        right = sign * 4 * (0.35 - (place - sign / 2).abs())
        state = state.finish(self.answer_now(state), when=choice.weight(0))
        state = state.advance(state.features, macs=choice.cost([0, self.most_macs]))
        return state.finish(torch.cat([-right, right], 1))


@pytest.fixture
def find(small_backbone):
    return Find(small_backbone)


@pytest.mark.parametrize("agent", ["ppo", "a2c", "recurrent-ppo", "reinforce", "gumbel", "convnet-aig", "skipnet"])
def test_learner_finds_the_known_place(agent, find, dark_or_bright):
    options = {"rate": 1.0} if agent == "convnet-aig" else {}
    config = TrainConfig(agent=agent, price=0.1, images=10_000, num_envs=64, hidden=16, agent_options=options)
    trained = train(config, find, dark_or_bright, quiet=True)
    assert measure(trained.controller, dark_or_bright.test).accuracy == 1.0
    places = trained.controller(dark_or_bright.test.images).places[:, 0, 0]
    wanted = dark_or_bright.test.labels - 0.5
    assert (places - wanted).abs().max() < 0.35


def pair_of(find, gate, images):
    start = find.begin(find.prepare(images))
    generator = torch.Generator().manual_seed(0)
    price = torch.zeros(len(images))
    how = {"bound": 0.8, "spread": SPREAD, "generator": generator}
    return follow_both(find, start, gate, price, forced=0, **how)


@pytest.fixture
def gate(find):
    torch.manual_seed(1)
    return Gate(Layout.of(find, priced=False), (2,), hidden=8, alike=True, coordinates=1)


def test_draws_with_places_are_judged_by_hand(find, gate, dark_or_bright):
    draws = pair_of(find, gate, dark_or_bright.val.images[:40]).draws
    log_prob, _ = draws.judged(gate, 0.8, SPREAD)
    for index, row in enumerate(draws.rows.tolist()):
        outputs = gate(draws.observations[index : index + 1])[0][0]
        expected = bounded(outputs[:2].softmax(0)[None], 0.8)[0, draws.actions[index, 0]].log()
        if draws.actions[index, 0]:
            normal = torch.distributions.Normal(outputs[2].clamp(-1, 1), SPREAD)
            peak = normal.log_prob(normal.mean)  # the constant is left out
            expected = expected + normal.log_prob(draws.places[index, 0]) - peak
        torch.testing.assert_close(log_prob[row], expected, rtol=1e-4, atol=1e-5)
    assert set(draws.actions[:, 0].tolist()) == {0, 1}


def test_greedy_run_looks_where_the_gate_says_and_the_drawn_one_around_it(find, gate, dark_or_bright):
    images = dark_or_bright.val.images
    pair = pair_of(find, gate, images)
    with torch.no_grad():
        outputs = gate(find.observe(find.begin(find.prepare(images))))[0]
    off = (pair.draws.places - gate.split(outputs)[1])[pair.draws.rows.argsort()]
    assert off.std().item() == pytest.approx(SPREAD, rel=0.3)
    alone = rollout(find, find.prepare(images), lambda state: find.choice(decisions(gate, outputs)[state.rows]))
    torch.testing.assert_close(pair.greedy.logits, alone.logits)


def decisions(gate, outputs):
    logits, place = gate.split(outputs)
    return torch.cat([logits.argmax(1, keepdim=True), place], 1)


def test_options_alone_say_no_place(find, dark_or_bright):
    images = dark_or_bright.val.images[:5]
    run = rollout(find, find.prepare(images), lambda state: find.choice(torch.ones(5, 1).long()))
    assert run.places.isnan().all()
    assert run.actions.tolist() == [[1]] * 5


def test_gradient_leads_back_from_beyond_the_edge_and_not_further_out():
    x = torch.tensor([-2.0, -2.0, 0.5, 2.0, 2.0], requires_grad=True)
    within = Within.apply(x)
    assert within.tolist() == [-1, -1, 0.5, 1, 1]
    within.backward(torch.tensor([1.0, -1.0, 3.0, 1.0, -1.0]))  # a positive gradient lowers, as it is descended
    assert x.grad.tolist() == [0, -1, 3, 1, 0]


def test_gate_with_a_place_is_built_again(gate):
    policy = GatePolicy(gate)
    again = make_policy(policy.config())
    again.load_state_dict(policy.state_dict())
    state = State.start(torch.randn(4, 1))
    first, second = (one.act(state.features, state, torch.zeros(4), None)[0] for one in (policy, again))
    assert torch.equal(first, second)
    assert first.shape == (4, 2)


def test_shift_moves_whether_is_looked_and_not_where(gate):
    state = State.start(torch.randn(6, 1))
    acts = [
        GatePolicy(gate, shift=shift).act(state.features, state, torch.zeros(6), None)[0] for shift in (-99.0, 99.0)
    ]
    assert [one[:, 0].unique().tolist() for one in acts] == [[0], [1]]
    assert torch.equal(acts[0][:, 1], acts[1][:, 1])
