"""Gate and network finetuned together: what changes, what stays, and what cannot be."""

import pytest
import torch

from skipgym.agents import joint
from skipgym.agents.controller import Controller
from skipgym.agents.evaluate import measure
from skipgym.agents.gate import Gate
from skipgym.agents.joint import loosened, settle
from skipgym.agents.policy import GatePolicy
from skipgym.agents.training import TrainConfig, train
from skipgym.envs import make_task
from skipgym.envs.begun import Prefix
from skipgym.envs.observation import Layout
from skipgym.envs.table import keep, tabulate

SHORT = {"images": 500, "num_envs": 32, "hidden": 8, "price": 0.0}


@pytest.mark.parametrize("agent", ["ppo", "gumbel", "skipnet"])
def test_network_learns_and_the_one_that_was_given_stays(agent, small_backbone, dark_or_bright, monkeypatch, tmp_path):
    """The network has random weights; the images can be told apart by their brightness."""
    monkeypatch.setattr(joint, "NETWORK_RATE", 1e-2)
    task = make_task("layer-skip", small_backbone)
    before = task.backbone.fingerprint()
    trained = train(
        TrainConfig(agent=agent, joint=4_000, **SHORT), task, dark_or_bright, out=tmp_path / "run", quiet=True
    )
    assert measure(trained.controller, dark_or_bright.test).accuracy > 0.95
    finetuned = trained.controller.task.backbone
    assert task.backbone.fingerprint() == small_backbone.fingerprint() == before != finetuned.fingerprint()
    assert finetuned.is_frozen
    assert not any(one.requires_grad for one in finetuned.parameters())
    again = Controller.load(tmp_path / "run" / "controller")
    assert again.task.backbone.fingerprint() == finetuned.fingerprint()
    images = dark_or_bright.test.images
    torch.testing.assert_close(again(images).logits, trained.controller(images).logits)


@pytest.mark.parametrize("name", ["patch-crop", "early-exit"])
def test_what_the_network_carries_learns_too(name, tiny_backbone, tiny_images, tmp_path):
    task = make_task(name, tiny_backbone)
    before = task.backbone.identity().split("+")
    trained = train(TrainConfig(agent="ppo", joint=64, **SHORT), task, tiny_images, out=tmp_path / "run", quiet=True)
    after = trained.controller.task.backbone.identity().split("+")
    network, exits, reader = (old != new for old, new in zip(before[:3], after[:3], strict=True))
    assert network
    assert (exits, reader) == (name == "early-exit", name == "patch-crop")
    assert task.backbone.identity().split("+") == before
    assert before[3:] == after[3:], "smaller networks stay as they were"
    again = Controller.load(tmp_path / "run" / "controller")
    images = tiny_images.test.images
    torch.testing.assert_close(again(images).logits, trained.controller(images).logits)


def test_stage_is_counted_and_told(small_backbone, dark_or_bright, tmp_path):
    """The 64 or more images of the stage cost at least a forward and a backward pass each beyond the frozen stage."""
    task = make_task("layer-skip", small_backbone)
    frozen = train(TrainConfig(agent="gumbel", **SHORT), task, dark_or_bright, quiet=True)
    both = train(TrainConfig(agent="gumbel", joint=64, **SHORT), task, dark_or_bright, out=tmp_path / "run", quiet=True)
    blocks = sum(task.backbone.block_macs)
    assert both.backbone_macs - frozen.backbone_macs >= 64 * 3 * blocks
    assert both.controller.info["config"]["joint"] == 64
    assert list((tmp_path / "run" / "joint").glob("events*"))


def test_finetuned_network_answers_as_before_while_nothing_was_learned(small_backbone, dark_or_bright, monkeypatch):
    """Thawing and freezing again changes no weight, and the gate's threshold moves into its bias."""
    monkeypatch.setattr(joint, "NETWORK_RATE", 0.0)
    monkeypatch.setattr(joint, "GATE_RATE", 0.0)
    task = make_task("layer-skip", small_backbone)
    options = {**SHORT, "target_compute": 0.7}
    frozen = train(TrainConfig(agent="ppo", **options), task, dark_or_bright, quiet=True)
    both = train(TrainConfig(agent="ppo", joint=64, **options), task, dark_or_bright, quiet=True)
    assert both.controller.task.backbone.fingerprint() == task.backbone.fingerprint()
    images = dark_or_bright.test.images
    assert torch.equal(both.controller(images).actions, frozen.controller(images).actions)


def test_gradients_reach_every_block(small_backbone, dark_or_bright):
    loose = loosened(make_task("layer-skip", small_backbone))
    x = loose.prepare(dark_or_bright.test.images[:4])
    loose.backbone(x).sum().backward()
    assert all(any(one.grad is not None for one in block.parameters()) for block in loose.backbone.blocks)


@pytest.mark.parametrize("alike", [False, True])
def test_settled_shift_decides_as_the_shift_did(alike):
    gate = Gate(Layout((5,), positions=0, priced=False), (3, 2), hidden=8, alike=alike)
    observations = torch.randn(200, 5)
    shifted = GatePolicy(gate, shift=0.7)
    expected, _ = shifted.act(observations, _At(), torch.zeros(200), None)
    before, _ = GatePolicy(gate).act(observations, _At(), torch.zeros(200), None)
    settle(gate, 0.7)
    found, _ = GatePolicy(gate).act(observations, _At(), torch.zeros(200), None)
    assert torch.equal(found, expected)
    assert not torch.equal(before, expected)


class _At:
    position = 0


@pytest.mark.parametrize("agent", ["dqn", "path-table"])
def test_learner_without_probabilities_is_told_before_work(agent, small_backbone, dark_or_bright, tmp_path):
    task = make_task("layer-skip", small_backbone)
    with pytest.raises(ValueError, match=f"joint: expected a learner whose gate gives probabilities, got {agent}"):
        train(TrainConfig(agent=agent, joint=10), task, dark_or_bright, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_task_without_the_network_s_weights_is_told(
    tell, enough, small_backbone, dark_or_bright, tmp_path, monkeypatch
):
    monkeypatch.setenv("SKIPGYM_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="or of what it carries, live, got tell"):
        train(TrainConfig(joint=10), tell, dark_or_bright, quiet=True)
    table, data = tabulate(enough, dark_or_bright, versions=1, augment=dark_or_bright.augment, quiet=True)
    with pytest.raises(ValueError, match="live, got enough"):
        train(TrainConfig(joint=10), table, data, quiet=True)
    task = make_task("layer-skip", small_backbone)
    begun, data = keep(Prefix(task), dark_or_bright, versions=1, augment=dark_or_bright.augment, quiet=True)
    with pytest.raises(ValueError, match=r"live, got layer-skip.*no --table or --prefix"):
        train(TrainConfig(joint=10), begun, data, quiet=True)


def test_negative_number_of_images_is_told():
    with pytest.raises(ValueError, match="joint: expected 0 or a number of images, got -1"):
        TrainConfig(joint=-1)
