from itertools import product

import pytest
import torch

from skipgym.envs import Task, make_task
from skipgym.envs.tree import LARGEST, Tree, explore

from .conftest import Leave, World

SMALL = ["layer-skip", "block-drop", "early-exit", "cascade", "resolution", "patch-crop", "frame-select"]


def noise(task):
    """Return the images that `make_world` prepares."""
    return torch.rand((7, *task.blank().shape[1:]), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=SMALL)
def small(request, make_world, random_backbone):
    if request.param != "patch-crop":
        return make_world(request.param, "resnet8-w4")
    task = make_task("patch-crop", random_backbone(), grid=2, looks=2)  # fewer places than by default
    return World(task, make_world("patch-crop", "resnet8-w4").inputs)


def test_every_way_through_ends_as_the_live_task_does(small):
    seen = explore(small.task, noise(small.task))
    tree, parts = seen.tree, len(small.task.decisions)
    options = list(small.task.decisions) * small.task.horizon
    ways = list(small.task.paths or product(*map(range, options)))
    for path in ways[:: 1 + len(ways) // 40]:
        alone = small.follow(torch.tensor(path).view(1, small.task.horizon, parts).expand(7, -1, -1))
        node, macs = 0, tree.begun
        while node >= 0:
            position = int(tree.positions[node])
            option = 0
            for part, count in enumerate(small.task.decisions):
                option = option * count + path[position * parts + part]
            macs, node = macs + float(tree.macs[node, option]), int(tree.children[node, option])
        assert torch.allclose(seen.answers[:, -1 - node], alone.logits, atol=1e-6)
        assert alone.macs.tolist() == [macs] * 7


@pytest.mark.parametrize("name", ["layer-skip", "block-drop", "early-exit", "cascade"])
def test_beginnings_are_computed_once(make_world, name):
    world, rows = make_world(name, "resnet8-w4"), []
    net = world.task.backbone
    hook = net.stem.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    explore(world.task, noise(world.task))
    hook.remove()
    assert rows == [7]


@pytest.mark.parametrize(
    ("name", "nodes", "leaves", "comb"),
    [("layer-skip", 7, 8, False), ("block-drop", 1, 8, True), ("early-exit", 2, 3, True), ("cascade", 2, 3, True)],
)
def test_shape_of_the_tree_of_three_blocks_two_exits_two_smaller_networks(make_world, name, nodes, leaves, comb):
    world = make_world(name, "resnet8-w4")
    tree = explore(world.task, noise(world.task)).tree
    assert (len(tree.positions), tree.leaves, tree.is_comb) == (nodes, leaves, comb)
    assert Tree.from_json(tree.as_json()).as_json() == tree.as_json()


def test_untouched_network_is_among_the_answers(small):
    seen = explore(small.task, noise(small.task))
    task, images = small.task, noise(small.task)
    expected = task.untouched(images) if task.takes_clips else task.backbone(task.prepare(images))
    assert seen.answers.shape[1] == seen.tree.answers
    assert torch.allclose(seen.answers[:, seen.tree.untouched], expected, atol=1e-5)


def test_too_many_ways_are_refused_before_any_work(random_backbone):
    task = make_task("layer-skip", random_backbone("resnet32-w4"))  # 15 blocks: 32,768 ways
    begun = []
    task.begin = begun.append  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=rf"at most {LARGEST:,} ways through, got layer-skip with 32,768.*--table 0"):
        explore(task, torch.zeros(1, 1, 8, 8))
    assert not begun


class Unequal(Leave):
    """Costs more for the brighter images."""

    def begin(self, inputs):
        state = super().begin(inputs)
        return state.advance(state.features, macs=(inputs.mean((1, 2, 3)) > 0).double(), position=0)


class Fickle(Leave):
    """Lets bright images answer whatever is chosen."""

    def step(self, state, choice):
        after = super().step(state, choice)
        return after.finish(self.exit(state.features), when=(state.features.mean((1, 2, 3)) > 0.5).float())


@pytest.mark.parametrize(("broken", "told"), [(Unequal, "cost the same"), (Fickle, "decisions alone say who answers")])
def test_task_whose_images_part_is_refused(random_backbone, broken, told):
    task: Task = broken(random_backbone())
    images = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 1, 8, 8).contiguous()
    with pytest.raises(ValueError, match=rf"table: expected .*{told}.*Run it live"):
        explore(task, images)
