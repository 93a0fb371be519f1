"""Exported files, measured by the commands as a user calls them."""

import json
import subprocess
import sys

import pytest

from skipgym import Controller, make_backbone, make_task
from skipgym.agents.policy import StaticPolicy
from skipgym.scripts.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    task = make_task("layer-skip", make_backbone("resnet8-w4", input_shape=(1, 8, 8)))
    for name, kept in (("controller", [1, 0, 1]), ("other", [1, 1, 1])):
        Controller(task, StaticPolicy(kept, 1)).save(folder / name)
    assert main(["export", str(folder / "controller"), "--out", str(folder / "c.onnx")]) == 0
    return folder


def test_file_is_evaluated_over_a_part_and_held_against_torch(folder, tmp_path, capsys):
    words = ["--split", "val", "--out", str(tmp_path / "e")]
    against = ["--against", str(folder / "controller")]
    assert main(["evaluate", str(folder / "c.onnx"), "--runtime", "onnx", *against, *words]) == 0
    (row,) = json.loads((tmp_path / "e" / "results.json").read_text())["rows"]
    assert main(["evaluate", str(folder / "controller"), "--split", "val", "--out", str(tmp_path / "t")]) == 0
    (torch,) = json.loads((tmp_path / "t" / "results.json").read_text())["rows"]
    for key in ("task", "backbone", "data", "split", "accuracy", "macs", "policy_macs", "compute", "full_accuracy"):
        assert row[key] == torch[key], key
    assert row["against_torch"]["decisions"] == 0
    assert 0 < row["latency"]["p50_ms"] <= row["latency"]["p95_ms"]
    printed = capsys.readouterr().out
    assert f"0 of {row['count']:,} images decided otherwise" in printed
    assert "one image: " in printed


def test_file_of_another_controller_is_told_by_the_exit_status(folder, capsys):
    words = ["--runtime", "onnx", "--against", str(folder / "other"), "--split", "val"]
    assert main(["evaluate", str(folder / "c.onnx"), *words]) == 1
    count = capsys.readouterr().out.split("against torch: ")[1]
    assert count.split()[0] == count.split()[2]  # every image


def test_bench_tells_controller_and_static_network_apart(folder, tmp_path, capsys):
    out = tmp_path / "bench.json"
    few = ["--batches", "1", "--rounds", "1", "--batch-sizes", "1", "3"]
    assert main(["bench", "controller", str(folder / "controller"), "--data", "digits", *few, "--out", str(out)]) == 0
    kept, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert set(kept["batch_sizes"]) == {"1", "3"}
    assert set(kept["accuracy"]) == {"static", "controller"}
    assert kept["batch_sizes"]["1"]["compute"] < 1
    assert f"{kept['accuracy']['controller']:.2%}" in printed
    assert f"{kept['batch_sizes']['3']['realised']:.2f} (" in printed
    assert kept["versions"]["onnxruntime"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "full", "--runtime", "onnx"], "full: expected an exported file for --runtime onnx"),
        (["evaluate", "full", "--against", "x"], "--against: expected --runtime onnx"),
        (["evaluate", "nowhere.onnx", "--runtime", "onnx"], "nowhere.onnx, which is none"),
        (["evaluate", "{folder}/controller", "--runtime", "onnx"], "skipgym export CONTROLLER"),
        (
            ["evaluate", "{folder}/c.onnx", "--runtime", "onnx", "--data", "cluttered-canvas"],
            "expected images of",
        ),
        (["bench", "controller", "nowhere"], "Check the path"),
        (
            ["bench", "controller", "{folder}/controller", "--out", "nowhere/b.json"],
            "expected a new file",
        ),
    ],
)
def test_mistake_is_told_in_one_line(words, message, folder, capsys):
    assert main([word.format(folder=folder) for word in words]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["--batch-sizes", "0"], ["--rounds", "0"]])
def test_figure_out_of_range_is_told_before_anything_is_read(words, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "controller", "nowhere", *words])
    assert f"{words[0][2:].replace('-', '_')}: expected" in capsys.readouterr().err


HIDDEN = """
import sys
from importlib.machinery import PathFinder

class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ("onnx", "onnxruntime", "onnxscript") else super().find_spec(name, path)

sys.meta_path = [Hide if finder is PathFinder else finder for finder in sys.meta_path]
from skipgym.scripts.cli import main

print(main(["bench", "controller", "C"]), main(["evaluate", "c.onnx", "--runtime", "onnx"]))
"""


def test_missing_extra_is_told_with_what_to_install():
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True, check=True)
    assert done.stdout == "1 1\n"
    told = done.stderr.splitlines()
    assert len(told) == 2
    assert all(line.startswith("error: ONNX: expected onnx") for line in told)
    assert all('pip install "skipgym[onnx]"' in line for line in told)
