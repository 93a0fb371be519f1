"""A controller answers as its parts do, survives saving, and refuses what is damaged or does not fit."""

import json

import pytest
import torch
from torch import nn

from skipgym import Controller, wrap
from skipgym.agents.controller import _hash
from skipgym.agents.gate import Gate
from skipgym.agents.policy import GatePolicy, StaticPolicy, full_policy
from skipgym.envs import Layout, make_task


def gate_controller(backbone, *, task="layer-skip", recurrent=False, priced=False):
    task = make_task(task, backbone)
    torch.manual_seed(1)
    gate = Gate(Layout.of(task, priced=priced), task.decisions, hidden=8, recurrent=recurrent)
    return Controller(task, GatePolicy(gate), price=0.2, info={"note": "made for a test"})


@pytest.fixture
def images(dark_or_bright):
    return dark_or_bright.test.images[:20]


@pytest.mark.parametrize("task", ["layer-skip", "block-drop"])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("priced", [False, True])
def test_saved_and_loaded_controller_decides_the_same(task, recurrent, priced, small_backbone, images, tmp_path):
    controller = gate_controller(small_backbone, task=task, recurrent=recurrent, priced=priced)
    controller.save(tmp_path / "c")
    loaded = Controller.load(tmp_path / "c")
    before, after = controller(images), loaded(images)
    assert torch.equal(before.actions, after.actions)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.macs, after.macs)
    assert (loaded.price, loaded.info) == (0.2, {"note": "made for a test"})
    assert loaded.task.backbone.fingerprint() == small_backbone.fingerprint()


def test_full_policy_gives_the_untouched_network_at_its_full_cost(small_backbone, images):
    task = make_task("layer-skip", small_backbone)
    decision = Controller(task, full_policy(task))(images)
    with torch.no_grad():
        expected = small_backbone.eval().network(small_backbone.prepare(images))
    torch.testing.assert_close(decision.logits, expected, rtol=1e-4, atol=1e-4)
    assert decision.compute.tolist() == [1.0] * 20


def test_cost_is_the_task_plus_one_gate_for_each_decision(small_backbone, images):
    controller = gate_controller(small_backbone)
    decision = controller(images)
    blocks = torch.tensor(small_backbone.block_macs, dtype=torch.float64)
    ends = small_backbone.stem_macs + small_backbone.head_macs
    gate = (
        8 * 8 + 8 * 8 + 8 * 2
    )  # its position's first layer (features are 4, 4 and 8 wide), the second layer, two logits
    expected = ends + decision.actions.double() @ blocks + 3 * gate
    assert decision.macs.tolist() == expected.tolist()
    assert decision.policy_macs.tolist() == [3 * gate] * 20


def test_result_does_not_depend_on_the_batch_size(small_backbone, images):
    controller = gate_controller(small_backbone, recurrent=True)
    whole, single = controller(images), controller(images, batch_size=3)
    assert torch.equal(whole.actions, single.actions)
    torch.testing.assert_close(whole.logits, single.logits)


def test_floats_and_bytes_are_the_same_image(small_backbone, images):
    controller = gate_controller(small_backbone)
    torch.testing.assert_close(controller(images).logits, controller(images.float() / 255).logits)


def test_wrapped_network_is_loaded_into_the_network_given(tmp_path, images):
    def network():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 2)
        )

    backbone = wrap(network(), ["1"], input_shape=(1, 8, 8))
    task = make_task("layer-skip", backbone)
    controller = Controller(task, StaticPolicy([0], 1))
    controller.save(tmp_path / "c")
    with pytest.raises(ValueError, match="backbone="):
        Controller.load(tmp_path / "c")
    loaded = Controller.load(tmp_path / "c", backbone=wrap(network(), ["1"], input_shape=(1, 8, 8)))
    assert torch.equal(loaded(images).logits, controller(images).logits)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 1, 9, 8, dtype=torch.uint8), "1 x 8 x 8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "1 x 8 x 8"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), "N, C, H, W"),
        (torch.full((2, 1, 8, 8), float("nan")), "finite"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), "uint8"),
    ],
)
def test_images_that_do_not_fit_are_refused(bad, message, small_backbone):
    with pytest.raises(ValueError, match=message):
        gate_controller(small_backbone)(bad)


def test_negative_price_is_refused(small_backbone, images):
    with pytest.raises(ValueError, match="price"):
        gate_controller(small_backbone)(images, price=-1.0)


def test_gate_with_nan_is_refused(small_backbone, images):
    controller = gate_controller(small_backbone)
    nn.init.constant_(controller.policy.gate.head.weight, float("nan"))
    with pytest.raises(ValueError, match="finite logits"):
        controller(images)


def test_nothing_is_overwritten(small_backbone, tmp_path):
    controller = gate_controller(small_backbone)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        controller.save(tmp_path / "c")
    assert [path.name for path in tmp_path.rglob("*")] == ["c", "precious.txt"]


def truncate(path):
    content = (path / "policy.safetensors").read_bytes()
    (path / "policy.safetensors").write_bytes(content[: len(content) // 2])


def flip_a_bit(path):
    content = bytearray((path / "backbone.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "backbone.safetensors").write_bytes(content)


def change_json(path):
    content = json.loads((path / "controller.json").read_text())
    (path / "controller.json").write_text(json.dumps({**content, "price": 9}))


def from_the_future(path):
    content = json.loads((path / "controller.json").read_text())
    (path / "controller.json").write_text(json.dumps({**content, "format": 999}))


def test_a_gate_that_was_told_prices_otherwise_is_refused(small_backbone, tmp_path):
    for priced in (False, True):
        path = tmp_path / str(priced)
        gate_controller(small_backbone, priced=priced).save(path)
        content = json.loads((path / "controller.json").read_text())
        content |= {"format": 1}
        del content["sha256"]
        (path / "controller.json").write_text(json.dumps({**content, "sha256": _hash(content)}))
    Controller.load(tmp_path / "False")
    with pytest.raises(ValueError, match="expected format 2 .*got 1.*Train it again"):
        Controller.load(tmp_path / "True")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "truncated or was changed"),
        (flip_a_bit, "truncated or was changed"),
        (change_json, "was changed"),
        (from_the_future, "Update skipgym"),
        (lambda path: (path / "controller.json").write_text("{"), "Save it again"),
        (lambda path: (path / "controller.json").write_text("[]"), "Save it again"),
    ],
)
def test_damaged_controller_is_refused(damage, message, small_backbone, tmp_path):
    path = gate_controller(small_backbone).save(tmp_path / "c")
    damage(path)
    with pytest.raises(ValueError, match=message):
        Controller.load(path)


@pytest.mark.parametrize("name", ["controller.json", "policy.safetensors"])
def test_missing_file_is_told(name, small_backbone, tmp_path):
    path = gate_controller(small_backbone).save(tmp_path / "c")
    (path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Controller.load(path)
