"""Fast ways of an interpreter, against the plain ones: rows put in order, and looked at only where they changed."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.backbones import make_backbone
from skipgym.envs import Hard, Masked, make_task, rollout
from skipgym.envs.rollout import advance
from skipgym.envs.view import View

INPUTS = torch.rand((7, 1, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def every_row_worth_moving():
    """Let even the short rows of tiny networks be put in order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["skipgym.envs.rollout"], "WORTH_MOVING", 0)
        yield


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    return make_task("layer-skip", make_backbone("resnet14-w4", input_shape=(1, 8, 8)))


def drawn(seed):
    return torch.randint(2, (7, 6), generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 10**6))
def test_rows_put_in_order_come_to_the_same_as_rows_that_never_move(task, seed):
    actions = drawn(seed)
    with torch.no_grad():
        runs = [
            rollout(task, INPUTS, lambda state, kind=kind: kind(actions[state.rows, state.position]))
            for kind in (Hard, Masked)
        ]
    assert torch.allclose(runs[0].logits, runs[1].logits, atol=1e-5)
    assert torch.equal(runs[0].macs, runs[1].macs)
    assert torch.equal(runs[0].actions, actions)


def test_rows_are_gathered_nowhere_but_before_the_first_decision(task, monkeypatch):
    routing = sys.modules["skipgym.backbones.routing"]
    taken = []
    monkeypatch.setattr(routing, "take", lambda x, rows: taken.append(len(rows)) or x[rows])
    with torch.no_grad():
        rollout(task, INPUTS, lambda s: Hard(drawn(3)[s.rows, s.position]))
    first = drawn(3)[:, 0]
    assert 0 < first.sum() < 7
    assert taken == [int(first.sum())]


@given(seed=st.integers(0, 10**6))
def test_what_is_remembered_is_what_would_be_observed(task, seed):
    actions, view = drawn(seed), View(task, 7)
    looked = []

    def decide(state):
        looked.append(view.look(state))
        assert torch.allclose(looked[-1], task.observe(state), atol=1e-6)
        choice = Hard(actions[state.rows, state.position])
        view.decided(state, choice)
        return choice

    with torch.no_grad():
        rollout(task, INPUTS, decide)
    assert len(looked) == 6


def test_only_rows_that_changed_are_looked_at(task, monkeypatch):
    view, rows = View(task, 7), []
    observe = task.observe
    monkeypatch.setattr(task, "observe", lambda state: rows.append(len(state)) or observe(state))
    state = task.begin(INPUTS)
    for chosen in ([1, 1, 1, 0, 0, 0, 0], [0] * 7):  # two blocks before the first that changes the shape
        view.look(state)
        choice = Hard(torch.tensor(chosen))
        view.decided(state, choice)
        with torch.no_grad():
            ((state,), _) = advance(task, [state], lambda _, choice=choice: choice, spare=True)
    view.look(state)
    assert rows == [7, 3]
    view.forget(torch.tensor([2, 5]))
    view.look(state)
    assert rows == [7, 3, 7]  # these two do not lie together


def test_tasks_that_stay_nowhere_are_observed_as_ever():
    task = make_task("block-drop", make_backbone("resnet8-w4", input_shape=(1, 8, 8)))
    view = View(task, 7)
    state = task.begin(INPUTS)
    assert not view.pays
    assert torch.equal(view.look(state), task.observe(state))


class TestAstray:
    @given(actions=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def test_few_pairs_bring_those_of_an_option_together(self, actions):
        left, pairs = torch.tensor(actions), Hard(torch.tensor(actions)).astray()
        if pairs is not None:
            first, second = pairs
            assert 3 * len(first) <= len(actions)  # of two ways, the shorter; at worst 0 0 1 1 0 0
            left[torch.cat([first, second])] = left[torch.cat([second, first])]
        assert (left[1:] != left[:-1]).sum() <= 1

    @pytest.mark.parametrize("actions", [[0, 0, 0], [1, 1], [1, 0, 0]])
    def test_rows_in_order_are_left(self, actions):
        assert Hard(torch.tensor(actions)).astray() is None

    def test_nothing_is_gained_where_all_is_executed_or_several_parts_are_decided(self):
        assert Masked(torch.tensor([0, 1, 0])).astray() is None
        assert Hard(torch.tensor([[0, 1], [1, 0], [0, 1]])).astray() is None
