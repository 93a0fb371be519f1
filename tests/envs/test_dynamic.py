"""Tasks on networks with dynamic parameters: those that look inside blocks do it right, or say that they cannot."""

import pytest
import torch

from skipgym.backbones.channels import drop_channels
from skipgym.envs import ChannelGate, Hard, Masked, PixelMask, make_task
from skipgym.testing import check_task

from .conftest import check_saved, follow

pytestmark = pytest.mark.filterwarnings("ignore::skipgym.testing.SkippedRuleWarning")

NAMES = ["se-resnet8-w4", "deform-resnet8-w4"]


@pytest.mark.parametrize(("task", "name"), [("layer-skip", NAMES[0]), ("block-drop", NAMES[1])])
def test_task_keeps_every_promise(task, name, random_backbone):
    check_task(make_task(task, random_backbone(name)), count=4, tables=2)


@pytest.mark.parametrize("name", NAMES)
def test_controller_is_the_same_after_saving(name, random_backbone, tmp_path):
    check_saved(make_task("layer-skip", random_backbone(name)), (1, 0, 1), tmp_path / "controller")


@pytest.mark.parametrize("name", NAMES)
def test_rows_routed_answer_as_rows_masked(name, random_backbone):
    task = make_task("layer-skip", random_backbone(name))
    generator = torch.Generator().manual_seed(0)
    inputs = task.prepare(torch.rand((9, 1, 8, 8), generator=generator))
    actions = torch.randint(2, (9, 3), generator=generator)
    with torch.no_grad():
        routed, masked = (
            follow(task, inputs, lambda state, kind=kind: kind(actions[state.rows, state.position]))
            for kind in (Hard, Masked)
        )
    torch.testing.assert_close(routed.logits, masked.logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(routed.macs, masked.macs)


def test_channel_gate_keeps_channels_before_a_squeeze(random_backbone):
    task = ChannelGate(random_backbone("se-resnet8-w4"))
    check_task(task, count=4, tables=2)
    # at 8 x 8 places, 4 channels: one inner channel of four, and the two layers of the squeeze, which sees all
    assert task.branch_macs[0][0] == 64 * 9 * (4 * 1 + 1 * 4) + 2 * 4 * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda one: PixelMask(one), "neighbours only, got one with squeeze-and-excitation. Use a plain ResNet"),
        (lambda one: ChannelGate(one, scattered=True), "sum of what their channels add.*squeeze-and-excitation"),
        (lambda one: make_task("channel-width", one), "expected a slimmable backbone, got se-resnet8-w4"),
    ],
)
def test_what_a_squeeze_does_not_allow_is_refused(make, message, random_backbone):
    with pytest.raises(ValueError, match=message):
        make(random_backbone("se-resnet8-w4"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda one: PixelMask(one), "neighbours only, got one with a deformable convolution. Use a plain ResNet"),
        (lambda one: ChannelGate(one), "channels between them, got layer3.0 .* Use a ResNet of plain convolutions"),
        (lambda one: ChannelGate(one, scattered=True), "channels between them, got layer3.0"),
        (lambda one: drop_channels(one, 4), "channels between them, got layer3.0"),
        (lambda one: make_task("channel-width", one), "expected a slimmable backbone, got deform-resnet8-w4"),
    ],
)
def test_what_offsets_do_not_allow_is_refused(make, message, random_backbone):
    with pytest.raises(ValueError, match=message):
        make(random_backbone("deform-resnet8-w4"))
