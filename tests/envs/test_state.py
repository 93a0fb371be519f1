import pytest
import torch

from skipgym.envs import State, merge


@pytest.fixture
def state():
    """Return 3 rows after 100 MACs each, with a memory."""
    return State.start(torch.arange(6.0).view(3, 2), macs=100, seen=torch.tensor([5, 6, 7]))


def test_start_is_the_first_position_of_rows_in_order(state):
    assert (len(state), state.position, state.answer) == (3, 0, None)
    assert state.rows.tolist() == [0, 1, 2]
    assert state.alive.tolist() == [1, 1, 1]
    assert state.macs.tolist() == [100, 100, 100]
    assert state.memory["seen"].tolist() == [5, 6, 7]


class TestAdvance:
    def test_charges_and_moves_on(self, state):
        after = state.advance(torch.ones(3, 4), macs=torch.tensor([1.0, 20.0, 0.0]))
        assert after.macs.tolist() == [101, 120, 100]
        assert (after.position, after.features.shape) == (1, (3, 4))
        assert (state.position, state.macs.tolist()) == (0, [100, 100, 100])

    def test_position_may_jump(self, state):
        assert state.advance(state.features, macs=0, position=5).position == 5

    def test_memory_is_carried_and_changed(self, state):
        after = state.advance(state.features, macs=0, more=torch.zeros(3))
        assert set(after.memory) == {"seen", "more"}
        assert after.advance(state.features, macs=0, seen=torch.ones(3)).memory["seen"].tolist() == [1, 1, 1]
        assert after.memory["seen"].tolist() == [5, 6, 7]

    def test_rows_that_have_answered_pay_nothing(self, state):
        after = state.finish(torch.zeros(3, 2), when=torch.tensor([0.0, 1.0, 0.25])).advance(state.features, macs=40)
        assert after.macs.tolist() == [140, 100, 130]

    def test_large_sums_are_exact(self):
        state = State.start(torch.zeros(1, 1), macs=2**40)
        assert state.advance(state.features, macs=1).macs.tolist() == [2**40 + 1]


class TestFinish:
    def test_all_answer(self, state):
        after = state.finish(torch.eye(3), macs=7)
        assert torch.equal(after.answer, torch.eye(3))
        assert after.alive.tolist() == [0, 0, 0]
        assert after.macs.tolist() == [107, 107, 107]

    def test_shares_of_two_exits_are_those_by_hand(self):
        """Exit 1 takes 0.25 of the row; of the rest half (0.375) leaves at exit 2, and 0.375 answers at the end."""
        state = State.start(torch.zeros(1, 1), macs=100)
        state = state.finish(torch.tensor([[8.0, 0.0]]), macs=16, when=torch.tensor([0.25]))
        assert (state.alive.item(), state.macs.item(), state.answer.tolist()) == (0.75, 104, [[2, 0]])
        state = state.advance(state.features, macs=40)
        assert state.macs.item() == 134  # 104 + 0.75 x 40
        state = state.finish(torch.tensor([[0.0, 8.0]]), macs=16, when=torch.tensor([0.5]))
        assert (state.alive.item(), state.macs.item(), state.answer.tolist()) == (0.375, 140, [[2, 3]])
        state = state.finish(torch.tensor([[8.0, 8.0]]), macs=80)
        assert (state.alive.item(), state.macs.item(), state.answer.tolist()) == (0, 170, [[5, 6]])

    def test_gradient_of_the_cost_passes_through_the_shares(self):
        leave = torch.tensor([0.25], requires_grad=True)
        state = State.start(torch.zeros(1, 1)).finish(torch.zeros(1, 2), macs=16, when=leave)
        state.advance(state.features, macs=40).macs.sum().backward()
        assert leave.grad.tolist() == [16 - 40]


class TestCohorts:
    def leave(self, state, *gone):
        return state.finish(torch.ones(len(state), 2), when=torch.tensor(gone))

    def test_those_who_answered_are_parted_from_those_who_decide(self, state):
        alive, done = self.leave(state, 0.0, 1.0, 0.0).split_done()
        assert (alive.rows.tolist(), done.rows.tolist()) == ([0, 2], [1])
        assert torch.equal(alive.features, state.features[[0, 2]])
        assert (alive.memory["seen"].tolist(), done.memory["seen"].tolist()) == ([5, 7], [6])
        assert (done.answer.tolist(), alive.answer.tolist()) == ([[1, 1]], [[0, 0], [0, 0]])

    def test_cohort_that_agrees_is_not_copied(self, state):
        """Copies would cost time at each step, and tables of outcomes know shared beginnings by their tensors."""
        alive, nobody = state.split_done()
        assert alive.features is state.features
        assert (len(nobody), nobody.memory["seen"].shape) == (0, (0,))
        gone = state.finish(torch.ones(3, 2))
        nobody, done = gone.split_done()
        assert done.features is state.features
        assert len(nobody) == 0

    def test_parting_and_merging_is_the_identity(self, state):
        state = self.leave(state, 0.0, 1.0, 0.0).advance(state.features, macs=3)
        (joined,) = merge(state.split_done())
        order = joined.rows.argsort()
        assert joined.rows[order].tolist() == [0, 1, 2]
        assert joined.position == state.position
        for key in ("features", "macs", "alive", "answer"):
            assert torch.equal(getattr(joined, key)[order], getattr(state, key))
        assert torch.equal(joined.memory["seen"][order], state.memory["seen"])

    def test_only_rows_at_the_same_position_meet(self, state):
        first = state.select(torch.tensor([0]))
        second = state.select(torch.tensor([1])).advance(state.features[1:2], macs=0)
        third = state.select(torch.tensor([2]))
        joined = merge([second, first, third])
        assert [(s.position, s.rows.tolist()) for s in joined] == [(0, [0, 2]), (1, [1])]

    def test_empty_cohorts_disappear(self, state):
        nobody = state.select(torch.tensor([False] * 3))
        assert merge([nobody]) == []
        assert [s.rows.tolist() for s in merge([nobody, state])] == [[0, 1, 2]]

    def test_rows_that_passed_an_exit_meet_rows_that_passed_none(self, state):
        passed = self.leave(state.select(torch.tensor([0, 1])), 0.0, 0.5).advance(
            state.features[:2], macs=0, position=2
        )
        fresh = state.select(torch.tensor([2])).advance(state.features[2:], macs=0, position=2)
        for pair in ([passed, fresh], [fresh, passed]):
            (joined,) = merge(pair)
            order = joined.rows.argsort()
            assert joined.answer[order].tolist() == [[0, 0], [0.5, 0.5], [0, 0]]

    def test_rows_are_selected_by_mask_or_index(self, state):
        by_index, by_mask = state.select(torch.tensor([2, 0])), state.select(torch.tensor([True, False, True]))
        assert (by_index.rows.tolist(), by_mask.rows.tolist()) == ([2, 0], [0, 2])
        assert by_index.memory["seen"].tolist() == [7, 5]
