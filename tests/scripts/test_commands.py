"""The commands, called as a user calls them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from skipgym import make_backbone
from skipgym.scripts.cli import COMMANDS, main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("commands") / "run"
    assert main(["train", "--images", "1500", "--num-envs", "64", "--out", str(out)]) == 0
    return out


@pytest.fixture
def digit(tmp_path):
    from sklearn.datasets import load_digits

    pixels = load_digits().images[0]
    Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(tmp_path / "zero.png")
    return tmp_path / "zero.png"


def test_controller_is_evaluated_from_its_directory(run, tmp_path, capsys):
    assert main(["evaluate", str(run / "controller"), "--split", "val", "--out", str(tmp_path / "e")]) == 0
    (row,) = json.loads((tmp_path / "e" / "results.json").read_text())["rows"]
    (trained,) = json.loads((run / "results.json").read_text())["rows"]
    assert (row["accuracy"], row["compute"]) == (trained["accuracy"], trained["compute"])
    assert f"{row['accuracy']:.2%}" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["layer-skip", "block-drop"])
def test_full_method_costs_everything_and_is_the_network(task, tmp_path):
    assert main(["evaluate", "full", "--task", task, "--data", "digits", "--out", str(tmp_path / "e")]) == 0
    (row,) = json.loads((tmp_path / "e" / "results.json").read_text())["rows"]
    assert row["compute"] == 1.0
    assert row["accuracy"] == row["full_accuracy"] > 0.95


def test_random_and_static_keep_to_their_budget(tmp_path):
    for method in ("random", "static"):
        out = tmp_path / method
        assert main(["evaluate", method, "--compute", "0.5", "--split", "val", "--out", str(out)]) == 0
        (row,) = json.loads((out / "results.json").read_text())["rows"]
        assert row["method"] == method
        least = 0.47 if method == "random" else 0.5 - 1 / 9  # a subset may leave up to a block unspent
        assert least <= row["compute"] <= (0.53 if method == "random" else 0.5)


@pytest.mark.parametrize("method", ["threshold", "threshold-entropy", "threshold-patience"])
def test_threshold_is_calibrated_and_its_controller_kept(method, tmp_path):
    words = ["--task", "early-exit", "--compute", "0.4", "--split", "val"]
    assert main(["evaluate", method, *words, "--out", str(tmp_path / "e")]) == 0
    (row,) = json.loads((tmp_path / "e" / "results.json").read_text())["rows"]
    assert row["method"] == method
    assert row["compute"] <= 0.4
    kept = str(tmp_path / "e" / "controller")
    assert main(["evaluate", kept, "--split", "val", "--out", str(tmp_path / "again")]) == 0
    (again,) = json.loads((tmp_path / "again" / "results.json").read_text())["rows"]
    assert [again[key] for key in ("method", "accuracy", "compute")] == [
        row[key] for key in ("method", "accuracy", "compute")
    ]


def test_features_are_stored_once_for_training_and_comparing(tmp_path, capsys, monkeypatch):
    weights = tmp_path / "random.safetensors"
    save_file(make_backbone("resnet8-w4", num_classes=10, input_shape=(1, 8, 8)).network.state_dict(), weights)
    monkeypatch.setenv("SKIPGYM_CACHE", str(tmp_path / "cache"))
    words = ["--backbone", "resnet8-w4", "--weights", str(weights), "--prefix", "1", "--images", "64", "--hidden", "4"]
    assert main(["train", *words, "--agent", "reinforce", "--out", str(tmp_path / "run")]) == 0
    told = "images x 266 numbers after the first 4.7% of the MACs of skipgym/LayerSkip-v0"
    assert told in capsys.readouterr().out
    (file,) = (tmp_path / "cache" / "tables").glob("layer-skip-prefix-*.f32")
    made = file.stat().st_mtime_ns
    few = ["--agents", "reinforce", "--targets", "0.6", "--seeds", "1", "--oracle-images", "20", "--workers", "1"]
    assert main(["compare", *words, *few, "--out", str(tmp_path / "compared")]) == 0
    assert told in capsys.readouterr().out
    assert [one.stat().st_mtime_ns for one in file.parent.glob("*.f32")] == [made]
    assert main(["evaluate", str(tmp_path / "run" / "controller"), "--split", "val", "--out", str(tmp_path / "e")]) == 0
    (live,) = json.loads((tmp_path / "e" / "results.json").read_text())["rows"]
    (stored,) = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    for figure in ("accuracy", "compute", "full_accuracy"):
        assert live[figure] == stored[figure]


def test_run_tells_answer_and_what_was_executed(run, digit, capsys):
    assert main(["run", str(run / "controller"), str(digit)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{digit}: 0 (")
    assert "of 9:" in out


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for word in (
        "layer-skip",
        "block-drop",
        "early-exit",
        "cascade",
        "ppo",
        "reinforce",
        "resnet56",
        "vit_b_16",
        "cifar10",
        "digits",
        "skipnet",
    ):
        assert f"  {word} " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Did you mean train"),
        (["list", "task"], "Did you mean tasks"),
        (["evaluate", "nowhere/controller"], "does not exist"),
        (["evaluate", "full", "--data", "digts"], "digits"),
        (["evaluate", "full", "--backbone", "resnet21"], "Did you mean resnet"),
        (["evaluate", "full", "--backbone", "resnet20", "--weights", "nowhere.th"], "nowhere.th"),
        (["evaluate", "random", "--compute", "0.001"], "everything left out"),
        (["evaluate", "threshold"], "expected a task whose backbone has exits, got layer-skip"),
        (["evaluate", "threshold", "--task", "early-exit", "--compute", "2"], "compute: expected between"),
        (["evaluate", "full", "--task", "early-exit", "--task-options", "exits", "5 2"], "exits: expected one or more"),
        (["run", "nowhere", "x.png"], "Check the path"),
    ],
)
def test_mistake_is_told_in_one_line(words, message, capsys):
    assert main(words) != 0
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_run_in_use_is_refused_before_any_work(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["train", "--out", str(run)]) == 1
    assert "new or empty" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_package_runs_as_a_module():
    called = subprocess.run([sys.executable, "-m", "skipgym", "--help"], capture_output=True, text=True, timeout=60)
    assert called.returncode == 0, called.stderr
    assert all(f"  {command} " in called.stdout for command in COMMANDS)


def test_usage_names_every_command(capsys):
    assert main(["--help"]) == 0
    assert all(command in capsys.readouterr().out for command in list(COMMANDS)[:1])
    assert main([]) == 2
