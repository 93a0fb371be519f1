"""The example package, installed as a user would, is known to every command; nothing else is edited."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from skipgym.backbones import make_backbone

EXAMPLE = Path(__file__).parents[2] / "examples" / "stage-depth"
BACKBONE = ["--task", "stage-depth", "--backbone", "resnet14-w4", "--weights", "weights.safetensors"]
SMALL = ["--images", "600", "--num-envs", "32", "--hidden", "8"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A directory with weights, and `site`, where the package is installed."""
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(EXAMPLE, work / "source")  # building leaves files beside the source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", work / "site", work / "source"], check=True, timeout=120)
    save_file(make_backbone("resnet14-w4", input_shape=(1, 8, 8)).network.state_dict(), work / "weights.safetensors")
    return work


@pytest.fixture(scope="module")
def run(work):
    """A function that runs Python in that directory with the package installed."""

    def call(*words):
        environment = {**os.environ, "PYTHONPATH": str(work / "site"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *words], cwd=work, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def results(work, out):
    """Return the rows that a command has left."""
    return json.loads((work / out / "results.json").read_text())["rows"]


def test_task_takes_forty_lines_of_code(code_lines):
    assert code_lines((EXAMPLE / "skipgym_stage_depth.py").read_text()) <= 40


@pytest.mark.slow
def test_task_is_listed(run):
    told = run("-m", "skipgym", "list", "tasks")
    assert re.search("stage-depth +Before each stage of the network, run only its first block, or all of them.", told)


@pytest.mark.slow
def test_id_makes_environments_and_the_task_keeps_every_promise(run):
    code = """
import gymnasium as gym, skipgym, sys
from skipgym.testing import RULES, check_task
assert "skipgym_stage_depth" not in sys.modules
options = dict(backbone="resnet14-w4", weights="weights.safetensors")
env = gym.make("skipgym/StageDepth-v0", **options)
env.reset(seed=0)
print(env.step(1)[0].shape, gym.make_vec("skipgym/StageDepth-v0", 4, **options).reset(seed=0)[0].shape)
print(check_task(env.unwrapped.engine.task).passed == list(RULES))
"""
    assert run("-c", code).splitlines() == ["(11,) (4, 11)", "True"]  # 8 channels, one of three positions


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["ppo", "gumbel"])
def test_it_trains(run, work, agent):
    run("-m", "skipgym", "train", "--agent", agent, *BACKBONE, *SMALL, "--out", agent)
    row = results(work, agent)[0]
    assert (row["task"], row["method"]) == ("stage-depth", agent)
    assert row["macs"] >= row["policy_macs"] > 0


@pytest.mark.slow
def test_it_is_compared_and_reported_by_two_workers(run, work):
    options = [
        "--agents",
        "ppo",
        "gumbel",
        "--targets",
        "0.8",
        "--seeds",
        "1",
        "--oracle-images",
        "20",
        "--workers",
        "2",
    ]
    run("-m", "skipgym", "compare", *BACKBONE, *SMALL, *options, "--out", "compared")
    rows = results(work, "compared")
    assert {row["method"] for row in rows} >= {"full", "random", "static", "oracle", "ppo", "gumbel"}
    assert {row["task"] for row in rows} == {"stage-depth"}
    assert "stage-depth" in (work / "compared" / "report.html").read_text()
    compared = next(row for row in rows if row["method"] == "gumbel")
    run("-m", "skipgym", "evaluate", f"compared/{compared['controller']}", "--split", "test", "--out", "again")
    assert [results(work, "again")[0][key] for key in ("accuracy", "macs")] == [
        compared[k] for k in ("accuracy", "macs")
    ]
