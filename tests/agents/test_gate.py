"""The gate network: each position its own map, constants measured once, cost by formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.agents.gate import Gate, VectorTrunk, by_position, make_trunk
from skipgym.agents.policy import greedy
from skipgym.envs import Layout


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_each_row_is_mapped_by_its_position(positions):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(4, 5, 3), torch.randn(4, 5), torch.randn(len(positions), 3)
    expected = torch.stack([weight[p] @ row + bias[p] for p, row in zip(positions, x, strict=True)])
    torch.testing.assert_close(by_position(x, weight, bias, torch.tensor(positions)), expected)


def test_features_are_standardised_by_position():
    layout = Layout((2,), 2, False)
    trunk = VectorTrunk(layout, 4)
    features = torch.tensor([[0.0, 10.0], [2.0, 30.0], [100.0, 0.0], [300.0, 0.0]])
    first, second = layout.join(features[:2], 0, torch.zeros(2)), layout.join(features[2:], 1, torch.zeros(2))
    trunk.fit(torch.cat([first, second]))
    assert trunk.mean.tolist() == [[1.0, 20.0], [200.0, 0.0]]
    torch.testing.assert_close(trunk.std, torch.tensor([[1.0, 10.0], [100.0, 1e-3]]))


@pytest.mark.parametrize("layout", [Layout((6,), 3, True), Layout((1, 8, 8), 2, True)])
def test_a_gate_is_told_the_logarithm_of_the_price(layout):
    """With weights that read nothing but the price, equal ratios (of price + 0.005) make equal differences."""
    gate = Gate(layout, (2,), hidden=4)
    with torch.no_grad():
        for weight in gate.parameters():
            weight.abs_()  # nothing is cut off: all is linear
    price = torch.tensor([0.095, 0.195, 0.395])
    features = torch.ones(3, *layout.shape)
    low, middle, high = gate(layout.join(features, 1, price))[0].unbind()
    torch.testing.assert_close(high - middle, middle - low)
    assert bool((high > low).all())
    for position in range(2):
        known, joined = gate.at(position, features, price)[0], gate(layout.join(features, position, price))[0]
        torch.testing.assert_close(known, joined)


def test_cost_of_one_decision():
    vector = Gate(Layout((6,), 4, True), (2,), hidden=8)
    assert vector.macs() == (6 + 1) * 8 + 8 * 8 + 8 * 2
    recurrent = Gate(Layout((6,), 4, True), (2,), hidden=8, recurrent=True)
    assert recurrent.macs() == vector.macs() + 4 * 8 * (8 + 8)  # four LSTM gates of input and state
    image = Gate(Layout((1, 8, 8), 0, False), (2, 2, 2), hidden=8)
    convolutions = 9 * (1 * 2 * 64 + 2 * 4 * 16 + 4 * 8 * 4)  # at 8 x 8, 4 x 4, 2 x 2
    assert image.macs() == convolutions + 8 * 8 + 8 * 6


def test_greedy_takes_the_likeliest_option_of_each_part():
    logits = torch.tensor([[0.0, 1.0, 5.0, 4.0, 9.0], [2.0, 1.0, 7.0, 8.0, 3.0]])
    assert greedy(logits, (2, 3)).tolist() == [[1, 2], [0, 1]]


def test_recurrent_gate_remembers():
    torch.manual_seed(0)
    gate = Gate(Layout((3,), 0, False), (2,), hidden=4, recurrent=True)
    x = torch.randn(2, 3)
    first, memory = gate(x)
    second, _ = gate(x, memory)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(gate(x)[0], first)


def test_observation_that_no_trunk_takes_is_told():
    with pytest.raises(ValueError, match="Pool or flatten"):
        make_trunk(Layout((3, 4), 0, False), 8)
