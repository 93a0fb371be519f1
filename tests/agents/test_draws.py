"""Draws of weights from logits, and how far their gradients are from those of the expected loss."""

from itertools import product
from math import pi

import pytest
import torch
from torch.nn import functional as F

from skipgym.agents.relaxed import gumbel, sampled, soft, through

DRAWS = {"soft": soft, "sampled": sampled, "gumbel": gumbel(1.0), "gumbel soft": gumbel(1.0, hard=False)}
STANDARD_ERRORS = 5


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
