"""Channel widths: cost by formula, rows grouped by width, stages of different width that fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym import Controller
from skipgym.agents.evaluate import chosen_lines, measure, option_counts, result_row
from skipgym.agents.policy import StaticPolicy
from skipgym.backbones.slimmable import slices
from skipgym.data import Part
from skipgym.envs import ChannelWidth, Hard, make_task
from skipgym.testing import check_task

from .conftest import IMAGES, check_saved, run

CHANNELS = (2, 4, 6, 8)


@pytest.fixture(scope="module", params=["slim-resnet8-w8", "us-resnet8-w8"])
def backbone(request, random_backbone):
    return random_backbone(request.param)


@pytest.fixture(scope="module")
def network_task(backbone):
    return ChannelWidth(backbone)


@pytest.fixture(scope="module")
def stage_task(backbone):
    return ChannelWidth(backbone, per="stage")


def stage_by_hand(stage, width):
    """Return the MACs of a stage of one block at a width, on 8x8 grey images of 4 classes."""
    if stage == 0:
        return 9 * 64 * (width + 2 * width**2)
    if stage == 1:
        return 9 * 16 * (width * 2 * width + (2 * width) ** 2)
    return 9 * 4 * (2 * width * 4 * width + (4 * width) ** 2) + 4 * width * 4


class TestCost:
    def test_width_costs_what_the_formula_says(self, network_task):
        found = run(network_task, torch.arange(4).unsqueeze(1)).macs
        assert found.tolist() == [sum(stage_by_hand(stage, width) for stage in range(3)) for width in CHANNELS]
        assert network_task.least_macs == found[0]
        assert network_task.full_macs == found[3]

    @given(plan=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=6))
    def test_stages_cost_what_their_own_widths_do(self, stage_task, plan):
        found = run(stage_task, torch.tensor(plan)).macs.tolist()
        assert found == [sum(stage_by_hand(s, CHANNELS[o]) for s, o in enumerate(row)) for row in plan]


class TestExecution:
    def test_each_row_is_answered_by_the_network_of_its_width(self, backbone, network_task):
        options = torch.tensor([[0], [1], [2], [3], [1], [0]])
        nets = slices(backbone, (0.25, 0.5, 0.75, 1))
        inputs = network_task.prepare(IMAGES)
        expected = torch.cat([nets[int(o)](x.unsqueeze(0)) for o, x in zip(options, inputs, strict=True)])
        torch.testing.assert_close(run(network_task, options).logits, expected, rtol=1e-3, atol=1e-4)

    def test_a_network_sees_only_the_rows_of_its_width(self, network_task):
        seen = [0] * 4
        hooks = [
            net.stem.register_forward_hook(lambda _m, x, _y, i=i: seen.__setitem__(i, seen[i] + len(x[0])))
            for i, net in enumerate(network_task.nets)
        ]
        run(network_task, torch.tensor([[0], [0], [3], [2], [0], [3]]))
        for hook in hooks:
            hook.remove()
        assert seen == [3, 0, 1, 2]

    @given(plan=st.tuples(*[st.integers(0, 3)] * 3))
    def test_stages_of_different_width_fit_as_they_do_in_training(self, backbone, stage_task, plan):
        widths = [CHANNELS[option] for option in plan]
        with torch.no_grad():
            expected = backbone.network.eval().forward_at(stage_task.prepare(IMAGES), widths)
        found = run(stage_task, torch.tensor(plan).expand(6, -1)).logits
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

    def test_features_are_zero_beyond_the_width(self, stage_task):
        with torch.no_grad():
            start = stage_task.begin(stage_task.prepare(IMAGES))
            state = stage_task.step(start, Hard(torch.tensor([0, 1, 2, 3, 0, 1])))
        assert state.features.shape[1] == 8
        assert not state.features[[0, 4], 2:].any()
        assert state.features[3, 2:].any()

    def test_stage_by_stage_keeps_every_promise(self, random_backbone):
        check_task(ChannelWidth(random_backbone("slim-resnet8-w4"), per="stage", widths="0.5 1"), count=3, tables=1)


class TestFace:
    def test_image_is_seen_first_then_features(self, stage_task):
        assert (stage_task.horizon, stage_task.decisions, stage_task.observation_shape) == (3, (4,), (64,))
        inputs = stage_task.prepare(IMAGES)
        state = stage_task.begin(inputs)
        torch.testing.assert_close(stage_task.observe(state), inputs.flatten(1))
        assert stage_task.pieces == ["width of layer1", "width of layer2", "width of layer3"]

    def test_grid_is_no_finer_than_the_image(self, random_backbone):
        backbone = random_backbone("slim-resnet8-w4")
        assert ChannelWidth(backbone, widths=(0.5, 1), grid=2).observation_shape == (4,)
        assert ChannelWidth(backbone, widths=(0.5, 1), grid=32).observation_shape == (64,)

    def test_plain_name_stands_for_the_slimmable_network(self):
        named = ["resnet20", "cifar-resnet50", "resnet14-w8", "us-resnet20", "vit_tiny"]
        expected = ["slim-resnet20", "slim-resnet50", "slim-resnet14-w8", "us-resnet20", "vit_tiny"]
        assert [ChannelWidth.architecture(name) for name in named] == expected

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"widths": 1.0}, r"two or more, rising, the last 1, got 1\..*nothing to choose"),
            ({"widths": "0.5 0.25 1"}, "two or more, rising, the last 1"),
            ({"widths": "0.25 0.5"}, "the last 1, got 0.25 0.5"),
            ({"widths": "narrow 1"}, "expected numbers"),
            ({"widths": "0.1 1"}, "within the trained range"),
            ({"widths": "0.3 1"}, "one that was trained, got 0.3"),
            ({"per": "block"}, "expected network or stage, got 'block'"),
            ({"grid": 0}, "grid: expected 1 … 32, got 0"),
        ],
    )
    def test_bad_options_are_told(self, backbone, options, message):
        with pytest.raises(ValueError, match=message):
            make_task("channel-width", backbone, **options)

    def test_backbone_of_one_width_is_refused(self, tiny_backbone):
        with pytest.raises(ValueError, match="expected a slimmable backbone, got resnet8-w4"):
            make_task("channel-width", tiny_backbone)

    def test_other_tasks_take_it_at_full_width(self, backbone):
        task = make_task("layer-skip", backbone)
        found = run(task, torch.ones((6, 3), dtype=torch.long))
        with torch.no_grad():
            torch.testing.assert_close(found.logits, backbone.frozen()(task.prepare(IMAGES)), rtol=1e-3, atol=1e-4)


def test_saved_controller_chooses_the_same_widths(stage_task, tmp_path):
    check_saved(stage_task, (0, 2, 3), tmp_path / "c")


def test_chosen_options_are_counted(stage_task):
    actions = torch.tensor([[0, 3, -1], [0, 1, -1], [2, 3, 3]])
    assert option_counts(actions, stage_task) == [[2, 0, 1, 0], [0, 1, 0, 2], [0, 0, 0, 1]]
    part = Part((255 * IMAGES).to(torch.uint8), torch.tensor([0, 1, 2, 3, 0, 1]))
    measured = measure(Controller(stage_task, StaticPolicy((0, 2, 3), 1)), part)
    row = result_row(stage_task, measured, method="static", data="noise", split="test", full_accuracy=1.0)
    assert row["chosen"]["width of layer2"] == [0, 0, 6, 0]
    assert chosen_lines(row)[1] == "static, width of layer2: option 0 0.0%, 1 0.0%, 2 100.0%, 3 0.0%"
