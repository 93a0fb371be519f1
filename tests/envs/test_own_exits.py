"""Early exit over networks whose exits are their own: every promise, interpreter and baseline, as over added ones."""

import pytest
import torch

from skipgym.agents.controller import Controller
from skipgym.agents.policy import StaticPolicy
from skipgym.agents.threshold import ThresholdPolicy
from skipgym.backbones import make_backbone
from skipgym.envs import Hard, make_task, rollout
from skipgym.envs.build import find_task
from skipgym.envs.outcomes import outcomes
from skipgym.testing import RULES, check_task

NAMES = ["msdnet3-s2-w4", "ranet4-s2-w4"]
IMAGES = torch.rand((8, 1, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=NAMES)
def backbone(request, randomise):
    torch.manual_seed(0)
    made = make_backbone(request.param, num_classes=4, input_shape=(1, 8, 8))
    randomise(made.network)
    return made.eval()


@pytest.fixture(scope="module")
def task(backbone):
    return make_task("early-exit", backbone)


@pytest.mark.parametrize("options", [{}, {"pooled": 1, "exits": "2"}])
def test_task_keeps_every_promise(backbone, options):
    """Hard = soft at one-hot, routed = masked, and 20 more; see `skipgym.testing`."""
    assert check_task(make_task("early-exit", backbone, **options), count=4, tables=2).passed == list(RULES)


def test_stages_cost_and_answer_as_the_network_does(task, backbone):
    with torch.no_grad():
        expected = backbone.answers(backbone.prepare(IMAGES))
        for stage, path in enumerate(task.paths):
            run = rollout(
                task, task.prepare(IMAGES), lambda s, path=path: Hard(torch.full((len(s),), path[s.position]))
            )
            torch.testing.assert_close(run.logits, expected[stage], rtol=1e-4, atol=1e-4)
            assert run.macs.tolist() == [backbone.answer_macs[stage]] * len(IMAGES)


def test_rows_that_have_answered_reach_no_later_block(task, backbone):
    rows = [0] * len(task.backbone.blocks)

    def hook(index):
        def count(_module, inputs, _output):
            rows[index] += len(inputs[0])

        return count

    handles = [block.body.register_forward_hook(hook(i)) for i, block in enumerate(task.backbone.blocks)]
    leave = torch.arange(len(IMAGES)) % (task.horizon + 1)  # the exit at which each row leaves
    with torch.no_grad():
        rollout(task, task.prepare(IMAGES), lambda s: Hard((leave[s.rows] > s.position).long()))
    for handle in handles:
        handle.remove()
    stage = [sum(place <= count for place in task.places) for count in range(len(rows))]
    assert rows == [int((leave >= at).sum()) for at in stage]


def test_table_holds_each_exit(task, backbone):
    labels = torch.arange(len(IMAGES)) % 4
    table = outcomes(task, IMAGES, labels, task.paths)
    with torch.no_grad():
        answers = torch.stack([one.argmax(1) for one in backbone.answers(backbone.prepare(IMAGES))], 1)
    assert torch.equal(table.answers.long(), answers)
    assert table.macs.tolist() == backbone.answer_macs
    assert table.spent == len(IMAGES) * task.most_macs  # every prefix once


def test_saved_controller_decides_the_same(task, backbone, tmp_path):
    controller = Controller(task, ThresholdPolicy("max-softmax", [0.5] * task.horizon))
    loaded = Controller.load(controller.save(tmp_path / "c"))
    before, after = controller(IMAGES), loaded(IMAGES)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.actions, after.actions)
    assert torch.equal(before.macs, after.macs)
    assert loaded.task.backbone.identity() == backbone.identity()
    assert not (tmp_path / "c" / "exits.safetensors").exists()


def test_never_leaving_gives_the_untouched_network(task, backbone):
    decision = Controller(task, StaticPolicy([1] * task.horizon, 1))(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(decision.logits, backbone.network(backbone.prepare(IMAGES)), rtol=1e-4, atol=1e-4)


def test_own_exits_are_taken_as_they_are(backbone, tiny_images):
    task = find_task("early-exit", backbone, tiny_images)
    assert [one.macs for one in task.backbone.exits] == [one.macs for one in backbone.exits]
    assert task.backbone.identity() == backbone.identity()


def test_pooled_features_are_those_that_the_exit_answers_from(backbone):
    task = make_task("early-exit", backbone, pooled=1)
    with torch.no_grad():
        state = task.begin(task.prepare(IMAGES))
        maps = backbone.network.steps[0].takes.unpack(backbone.stem(backbone.prepare(IMAGES)))
        seen = backbone.network.steps[0].body(maps)[-1].mean((2, 3))
    torch.testing.assert_close(task.observe(state)[:, 4 : 4 + seen.shape[1]], seen, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["layer-skip", "block-drop"])
def test_tasks_that_leave_blocks_out_say_why_not(name, backbone):
    with pytest.raises(ValueError, match=r"block steps\.0: expected one that can be left out.*early-exit"):
        make_task(name, backbone)


def test_exit_where_there_is_none_is_told(backbone):
    with pytest.raises(ValueError, match=r"exits: expected .* blocks?.*, got (1 )?3"):
        make_task("early-exit", backbone, exits=(1, 3))  # not one of RANet's; beyond MSDNet's last step but one
