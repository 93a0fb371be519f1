from itertools import product

import pytest
import torch

from skipgym.envs import LayerSkip
from skipgym.envs.outcomes import candidate_paths, outcomes

from .conftest import World

ALL = list(product((0, 1), repeat=3))


@pytest.fixture(params=["layer-skip", "block-drop"])
def small(request, make_world):
    return make_world(request.param, "resnet8-w4")


@pytest.fixture
def images():
    return torch.rand((7, 1, 8, 8), generator=torch.Generator().manual_seed(0))  # those of the worlds


LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2])


def test_table_equals_following_each_path_alone(small, images):
    paths = [ALL[i] for i in (5, 0, 7, 3, 6, 1)]  # in no order
    table = outcomes(small.task, images, LABELS, paths)
    for column, path in enumerate(paths):
        actions = torch.tensor(path).view(1, small.task.horizon, -1).expand(7, -1, -1)
        alone = small.follow(actions)
        assert table.answers[:, column].tolist() == alone.logits.argmax(1).tolist()
        assert table.correct[:, column].tolist() == (alone.logits.argmax(1) == LABELS).tolist()
        assert torch.allclose(table.probability[:, column], alone.logits.softmax(1)[range(7), LABELS], atol=1e-5)
        assert alone.macs.tolist() == [table.macs[column]] * 7


def test_beginnings_are_computed_once_and_all_that_was_computed_is_counted(small, images):
    net, rows = small.task.backbone, {}

    def count(module, inputs, output):
        rows[module] = rows.get(module, 0) + len(inputs[0])

    pieces = [net.stem, *(block.body for block in net.blocks), net.head]
    hooks = [piece.register_forward_hook(count) for piece in pieces]
    try:
        table = outcomes(small.task, images, LABELS, ALL)
    finally:
        for hook in hooks:
            hook.remove()
    assert [rows[piece] for piece in pieces] == [7 * times for times in (1, 1, 2, 4, 8)]
    costs = [net.stem_macs, *net.block_macs, net.head_macs]
    assert table.spent == sum(rows[piece] * macs for piece, macs in zip(pieces, costs, strict=True))


class Whole(LayerSkip):
    """One decision, used for one block after the other; a block that is left out hands on the very same tensor."""

    def __init__(self, backbone, *, parts=1):
        super().__init__(backbone)
        self.horizon, self.decisions = 1, (2,) * parts

    def step(self, state, choice):
        x, macs = state.features, 0
        for index, block in enumerate([*self.backbone.blocks[:1], *self.backbone.blocks]):
            part = choice if len(self.decisions) == 1 else choice.part(index % 2)
            x = part.among([block.bypass, block.run], x)
            macs = macs + part.cost([block.bypass_macs, block.macs])
        return state.advance(x, macs=macs).finish(self.backbone.head(x), macs=self.backbone.head_macs)


@pytest.mark.parametrize("parts", [1, 2])
def test_decision_that_is_used_several_times_is_followed_each_time(parts, random_backbone, images):
    task = Whole(random_backbone(), parts=parts)
    world, paths = World(task, task.prepare(images)), list(product((0, 1), repeat=parts))
    table = outcomes(task, images, LABELS, paths)
    for column, path in enumerate(paths):
        alone = world.follow(torch.tensor(path).view(1, 1, parts).expand(7, -1, -1))
        assert table.answers[:, column].tolist() == alone.logits.argmax(1).tolist()
        assert torch.allclose(table.probability[:, column], alone.logits.softmax(1)[range(7), LABELS], atol=1e-5)
        assert alone.macs.tolist() == [table.macs[column]] * 7


class TestCandidates:
    def test_all_paths_where_they_are_few(self):
        assert candidate_paths(3, 8) == ALL

    def test_otherwise_those_that_leave_out_two_at_most_and_those_that_keep_few(self):
        """Of 4 pieces 1 + 4 + 6 leave out two at most; with 1 that keeps none and 4 that keep one it would be 16."""
        paths = candidate_paths(4, 13)
        assert len(paths) == len(set(paths)) == 12
        assert {sum(path) for path in paths} == {0, 2, 3, 4}

    def test_many_pieces_stay_within_the_limit(self):
        paths = candidate_paths(54, 5000)
        assert (1,) * 54 in paths
        assert (0,) * 54 in paths
        assert 1486 < len(paths) <= 5000  # 1 + 54 + 1431 leave out two at most
