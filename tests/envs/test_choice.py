import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.envs import Hard, Masked, Soft, one_hot


def double(x):
    return 2 * x


def square(x):
    return x**2


X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
ACTIONS = torch.tensor([1, 0, 1])
EXPECTED = torch.tensor([[1.0, 4.0], [6.0, 8.0], [25.0, 36.0]])
KINDS = [Hard, Masked, lambda actions: one_hot(actions, (2,) if actions.dim() == 1 else (2, 3))]


@pytest.mark.parametrize("kind", KINDS)
class TestOneDecision:
    def test_each_row_gets_its_branch(self, kind):
        assert torch.equal(kind(ACTIONS).among([double, square], X), EXPECTED)

    def test_weight_is_one_where_chosen(self, kind):
        assert kind(ACTIONS).weight(0).tolist() == [0, 1, 0]
        assert kind(ACTIONS).weight(1).tolist() == [1, 0, 1]

    def test_cost_is_that_of_the_chosen_option(self, kind):
        assert kind(ACTIONS).cost([5, 700]).tolist() == [700, 5, 700]

    def test_large_costs_are_exact(self, kind):
        assert kind(ACTIONS).cost([0, 2**40 + 1]).tolist() == [2**40 + 1, 0, 2**40 + 1]

    def test_parts_are_decided_apart(self, kind):
        choice = kind(torch.tensor([[1, 2], [0, 1], [1, 0]]))
        assert choice.part(0).cost([0, 10]).tolist() == [10, 0, 10]
        assert choice.part(1).cost([0, 10, 200]).tolist() == [200, 10, 0]


def test_masked_runs_every_branch_on_all_rows_and_hard_does_not():
    for kind, expected in ((Masked, [3, 3]), (Hard, [1, 2])):
        rows = [0, 0]

        def count(option, branch, rows=rows):
            def run(x):
                rows[option] += len(x)
                return branch(x)

            return run

        kind(ACTIONS).among([count(0, double), count(1, square)], X)
        assert rows == expected


def test_soft_mixes_by_weight():
    choice = Soft(torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]))
    expected = torch.tensor([[0.25 * 2 + 0.75 * 1, 0.25 * 4 + 0.75 * 4], [6.0, 8.0], [17.5, 24.0]])
    assert torch.allclose(choice.among([double, square], X), expected)
    assert torch.allclose(choice.cost([0, 8]), torch.tensor([6.0, 0.0, 4.0], dtype=torch.float64))


def test_branches_may_change_the_number_of_dimensions():
    images = torch.arange(16.0).view(2, 2, 2, 2)
    for choice in (Hard(torch.tensor([0, 1])), Soft(torch.eye(2))):
        pooled = choice.among([lambda x: x.mean((2, 3)), lambda x: x.amax((2, 3))], images)
        assert pooled.tolist() == [[1.5, 5.5], [11, 15]]


def test_gradient_of_soft_cost_is_the_cost_of_each_option():
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5]], requires_grad=True)
    Soft(weights).cost([3, 8]).sum().backward()
    assert weights.grad.tolist() == [[3, 8], [3, 8]]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=6))
def test_one_hot_has_one_row_of_weights_for_each_part(actions):
    parts = [one_hot(torch.tensor(actions), (2, 3)).part(i) for i in (0, 1)]
    for row, (first, second) in enumerate(actions):
        assert [float(parts[0].weight(o)[row]) for o in range(2)] == [float(o == first) for o in range(2)]
        assert [float(parts[1].weight(o)[row]) for o in range(3)] == [float(o == second) for o in range(3)]


def test_action_without_a_branch_is_refused():
    with pytest.raises(ValueError, match=r"3 rows to choose 0 … 1"):
        Hard(torch.tensor([0, 1, 2])).among([double, square], X)


def test_what_is_taken_is_known_of_actions_and_of_one_hot_weights_only():
    actions = torch.tensor([2, 0, 1])
    mixed = Soft(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    for choice in (Hard(actions), Masked(actions), one_hot(actions, (3,))):
        assert torch.equal(choice.taken(3), actions)
    assert mixed.taken(3) is None
    assert Soft(one_hot(actions, (3,)).weights[0].requires_grad_()).taken(3) is None


def test_leave_to_overwrite_passes_to_parts_and_is_ignored_by_weights():
    choice = Hard(torch.tensor([[0, 1], [1, 0]])).in_place()
    assert choice.overwrites
    assert choice.part(1).overwrites
    assert choice.part(1).merged([0, 1]).overwrites
    soft = one_hot(torch.tensor([0, 1]), (2,))
    assert soft.in_place() is soft
