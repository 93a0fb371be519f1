"""The example scripts run. Those of libraries that are not ours to require are skipped where these are missing."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from skipgym.backbones import make_backbone
from skipgym.envs import BlockDrop, LayerSkip
from skipgym.testing import RULES, check_task

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def load(monkeypatch):
    """A function that imports a script by its name."""

    def of(name):
        spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return of


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A backbone of random weights for digits."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(make_backbone("resnet8-w4", input_shape=(1, 8, 8)).network.state_dict(), path)
    return {"backbone": "resnet8-w4", "weights": path}


def test_torchvision_network_is_a_backbone(load):
    torch.manual_seed(0)
    backbone = load("torchvision_backbone").mobilenet(size=32)
    assert len(backbone.blocks) == 10
    assert check_task(LayerSkip(backbone), count=3, tables=1).passed == list(RULES)


def test_timm_network_is_a_backbone(load):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    backbone = load("timm_backbone").convnext(size=32)
    assert len(backbone.blocks) == 12
    assert check_task(BlockDrop(backbone), count=3, tables=1).passed == list(RULES)


def test_own_sb3_policy_trains_and_is_measured_with_its_cost(load, tiny):
    found = load("own_sb3_policy").train(**tiny, steps=512, num_envs=16)
    assert found.policy_macs == 3 * (11 * 32 + 32 * 32 + 32 * 2)  # 8 channels and 3 positions; three decisions
    assert 0 < found.compute < 2


def test_single_file_ppo_learns_to_save(load, tiny):
    """With random weights nothing is to be won by executing."""
    module = load("cleanrl_style")
    history = module.main(module.Args(**tiny, updates=6, num_envs=64, steps=12, price=1.0))
    assert len(history) == 6
    assert history[-1] > history[0]


def test_torchrl_reads_the_ids(load, tiny):
    pytest.importorskip("torchrl")
    assert len(load("torchrl_ppo").main(**tiny, frames=180, batch=90)) == 2


def test_controllers_are_timed_against_their_networks(load, monkeypatch, capsys):
    pytest.importorskip("onnxscript")
    module = load("controllers_in_time")
    small = {"half": lambda: module.blocks("resnet8-w4", keep=lambda block: block == 1)}
    monkeypatch.setattr(module, "CONTROLLERS", small)
    monkeypatch.setattr(module, "IMAGES", 80)
    module.main([], sizes=[(4, 2, 1)])
    told = capsys.readouterr().out
    assert re.fullmatch(r"half .*: compute 0\.4\d\d, .*realised \d.\d\d,  1 paths, \w+\n", told), told


def test_controllers_that_are_timed_choose_among_all_options(load):
    module = load("controllers_in_time")
    made = [
        module.blocks("resnet8-w4"),
        module.exits("resnet8-w4", after=(1, 2)),
        module.widths("slim-resnet8-w4"),
        module.crops("resnet8-w4", side=16),
    ]
    options = [2, 2, 4, 5]
    for controller, count in zip(made, options, strict=True):
        actions = controller(module.pictures(controller.task.backbone)).actions
        assert actions[:, 0].unique().tolist() == list(range(count))


def test_slices_are_timed_against_the_full_network(load):
    module = load("slices_in_time")
    found = module.compare("slim-resnet8-w4", batch=4, rounds=1)
    assert found[1.0] == (1.0, 1.0)
    assert all(a < b for a, b in pairwise(macs for macs, _ in found.values()))
    assert all(time > 0 for _, time in found.values())


@pytest.mark.slow
def test_rllib_reads_the_ids(load, tiny, monkeypatch):
    pytest.importorskip("ray.rllib")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # it would leave a token in the home directory
    assert len(load("rllib_ppo").main(**tiny, rounds=1, batch=200)) == 1
