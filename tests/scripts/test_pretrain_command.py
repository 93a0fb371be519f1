import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from skipgym.backbones.recipe import PretrainConfig
from skipgym.scripts.cli import main


def options(out: Path, *more: str) -> list[str]:
    return ["pretrain", "--backbone", "resnet8-w4", "--epochs", "1", "--device", "cpu", "--out", str(out), *more]


def test_command_trains_and_leaves_weights(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(options(out, "--stochastic-depth", "0.2")) == 0
    printed = capsys.readouterr().out
    assert "epoch 1/1" in printed
    assert "left" in printed
    assert {path.name for path in out.iterdir()} >= {
        "backbone.safetensors",
        "backbone.json",
        "README.md",
        "checkpoint.pt",
    }
    assert json.loads((out / "backbone.json").read_text())["pretrain"]["stochastic_depth"] == 0.2


def test_setting_out_of_range_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):  # tyro's own exit
        main(options(tmp_path / "run", "--lr", "-1"))
    assert "lr: expected a number above 0, got -1.0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unknown_backbone_is_told_in_one_line(tmp_path, capsys):
    assert main([*options(tmp_path / "run"), "--backbone", "resnt20"]) == 1
    assert capsys.readouterr().err.startswith("error: unknown backbone: ")


def test_other_settings_are_refused(tmp_path, capsys):
    assert main(options(tmp_path / "run")) == 0
    assert main(options(tmp_path / "run", "--seed", "1")) == 1
    assert "seed 0, got 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [{}, {"epochs": 3, "channels_last": False, "init": Path("a b.pt"), "image_size": 16, "schedule": "cosine"}],
)
def test_the_command_on_the_card_gives_the_same_configuration(tmp_path, changes):
    config = replace(PretrainConfig(out=tmp_path / "my run"), **changes)
    program, command, *arguments = shlex.split(config.command())
    assert (program, command) == ("skipgym", "pretrain")
    assert tyro.cli(PretrainConfig, args=arguments) == config
