import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skipgym.backbones import route
from skipgym.backbones.routing import flat_rows, swap, take, unchanged

BRANCHES = [lambda x: 2 * x, lambda x: x**2 - 1, lambda x: x.flip(1)]


def counted(branch, seen):
    def run(x):
        seen.append(x.clone())
        return branch(x)

    return run


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_route_equals_each_row_alone(actions):
    x = torch.rand((len(actions), 3, 4), generator=torch.Generator().manual_seed(len(actions)))
    expected = torch.cat([BRANCHES[action](x[i : i + 1]) for i, action in enumerate(actions)])
    assert torch.equal(route(BRANCHES, x, torch.tensor(actions)), expected)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_each_branch_sees_its_rows_only_and_others_do_not_run(actions):
    x = torch.arange(2.0 * len(actions)).view(-1, 2)
    seen = [[], [], []]
    route([counted(branch, calls) for branch, calls in zip(BRANCHES, seen, strict=True)], x, torch.tensor(actions))
    for option, calls in enumerate(seen):
        rows = [i for i, action in enumerate(actions) if action == option]
        assert len(calls) == bool(rows)
        if rows:
            assert torch.equal(calls[0], x[rows])


@given(st.lists(st.integers(0, 1), min_size=1, max_size=8))
def test_gradients_reach_inputs_and_the_chosen_branches(actions):
    factors = torch.tensor([3.0, 5.0], requires_grad=True)
    x = torch.arange(1.0, len(actions) + 1).view(-1, 1).requires_grad_()
    route([lambda x: factors[0] * x, lambda x: factors[1] * x], x, torch.tensor(actions)).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[3.0, 5.0][action] for action in actions]).view(-1, 1))
    totals = [sum(i + 1.0 for i, action in enumerate(actions) if action == option) for option in (0, 1)]
    assert torch.equal(factors.grad, torch.tensor(totals))


def test_empty_batch_gives_an_empty_batch_of_the_right_shape():
    branches = [nn.Identity(), nn.Conv2d(4, 4, 3, padding=1)]
    assert route(branches, torch.zeros(0, 4, 5, 5), torch.zeros(0, dtype=torch.long)).shape == (0, 4, 5, 5)


def test_branches_may_change_the_shape():
    branches = [lambda x: x[:, :1], lambda x: x.sum(1, keepdim=True)]
    out = route(branches, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 1]))
    assert torch.equal(out, torch.tensor([[1.0], [7.0]]))


@pytest.mark.parametrize("actions", [[0, 3], [-1, -1], [2, 5]])
def test_action_without_a_branch_is_refused(actions):
    with pytest.raises(ValueError, match=r"each of 2 rows to choose 0 … 2"):
        route(BRANCHES, torch.zeros(2, 3), torch.tensor(actions))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (5, 1, 4, 4), (5, 3, 1, 1)])
def test_rows_taken_keep_their_values_layout_and_gradients(layout, shape):
    x = torch.rand(shape).to(memory_format=layout).requires_grad_()
    rows = torch.tensor([4, 0, 4])
    taken = take(x, rows)
    assert torch.equal(taken, x[rows])
    assert taken.is_contiguous(memory_format=layout)
    taken.sum().backward()
    assert x.grad is not None
    assert x.grad.sum((1, 2, 3)).tolist() == [x[0].numel() * times for times in (1, 0, 0, 0, 2)]


def test_routed_feature_maps_stay_in_channels_last():
    x = torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last)
    seen = []
    route([lambda rows: rows, lambda rows: seen.append(rows) or rows + 1], x, torch.tensor([1, 0, 1, 0]))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.booleans())
def test_unchanged_rows_are_as_if_routed_through_an_identity(actions, in_place):
    x = torch.rand((len(actions), 3, 4), generator=torch.Generator().manual_seed(len(actions)))
    kept, chosen = x.clone(), torch.tensor(actions)
    expected = route([lambda x: x, *BRANCHES[1:]], x, chosen)
    assert torch.equal(route([unchanged, *BRANCHES[1:]], x, chosen, in_place=in_place), expected)
    assert in_place or torch.equal(x, kept)


def test_in_place_rows_that_stay_are_not_moved():
    x = torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last)
    assert route([unchanged, lambda x: x + 1], x, torch.tensor([1, 0, 1, 0]), in_place=True) is x


def test_gradients_pass_unchanged_rows():
    x = torch.tensor([[1.0], [2.0]]).requires_grad_()
    route([unchanged, lambda x: 3 * x], x, torch.tensor([0, 1])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0], [3.0]]


class Adding:
    """Adds one; over its input where it has leave to."""

    def __init__(self):
        self.given = []

    def __call__(self, x):
        return x + 1

    def overwrite(self, x):
        self.given.append(x.data_ptr())
        return x.add_(1)


@pytest.mark.parametrize("actions", [[0, 0, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]])
def test_rows_that_lie_together_are_run_where_they_lie(actions):
    x, branch = torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last), Adding()
    expected = x + torch.tensor(actions).view(-1, 1, 1, 1)
    first = x[actions.index(1)].data_ptr()
    assert route([unchanged, branch], x, torch.tensor(actions), in_place=True) is x
    assert torch.equal(x, expected)
    assert branch.given == [first]


@pytest.mark.parametrize("actions", [[0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]])
def test_without_leave_nothing_is_overwritten(actions):
    x, branch = torch.rand(4, 3), Adding()
    before = x.clone()
    assert torch.equal(route([unchanged, branch], x, torch.tensor(actions)), x + torch.tensor(actions).view(-1, 1))
    assert torch.equal(x, before)
    assert branch.given == []


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3, 4), (6, 16, 32, 32)])  # the last are long rows
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_swapped_rows_change_places_and_others_stay(shape, layout):
    x = torch.rand(shape)
    x = x.to(memory_format=layout) if len(shape) == 4 else x
    expected = x[[5, 1, 4, 3, 2, 0]].clone()
    swap(x, torch.tensor([0, 2]), torch.tensor([5, 4]))
    assert torch.equal(x, expected)


def test_rows_without_a_stretch_of_memory_of_their_own_are_told():
    assert flat_rows(torch.rand(4, 3, 5, 5)[:, :, 1:]) is None
    flat = flat_rows(torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last))
    assert flat is not None
    assert flat.shape == (4, 75)
