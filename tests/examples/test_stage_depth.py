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


COMPARED = ["--agents", "ppo", "gumbel", "--targets", "0.8", "--seeds", "1", "--oracle-images", "20", "--workers", "2"]
COMMANDS = {
    "list": ["list", "tasks"],
    **{agent: ["train", "--agent", agent, *BACKBONE, *SMALL, "--out", agent] for agent in ("ppo", "gumbel")},
    "compare": ["compare", *BACKBONE, *SMALL, *COMPARED, "--out", "compared"],
}
SCRIPT = """
import contextlib, io, json, sys
import gymnasium as gym, skipgym
from skipgym.scripts.cli import main
from skipgym.testing import RULES, check_task

def ids():
    assert "skipgym_stage_depth" not in sys.modules
    options = dict(backbone="resnet14-w4", weights="weights.safetensors")
    env = gym.make("skipgym/StageDepth-v0", **options)
    env.reset(seed=0)
    print(env.step(1)[0].shape, gym.make_vec("skipgym/StageDepth-v0", 4, **options).reset(seed=0)[0].shape)
    print(check_task(env.unwrapped.engine.task).passed == list(RULES))

def again():
    rows = json.load(open("compared/results.json"))["rows"]
    saved = next(row["controller"] for row in rows if row["method"] == "gumbel")
    return main(["evaluate", f"compared/{saved}", "--split", "test", "--out", "again"])

if __name__ == "__main__":
    told = {}
    commands = {name: (main, words) for name, words in json.loads(sys.argv[1]).items()}
    for name, (work, *words) in {"ids": (ids,), **commands, "again": (again,)}.items():
        with contextlib.redirect_stdout(io.StringIO()) as text:
            assert not work(*words), name
        told[name] = text.getvalue()
    json.dump(told, sys.stdout)
"""


@pytest.fixture(scope="module")
def told(work):
    """What each command prints in that directory with the package installed; one process, which imports once."""
    (work / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(work / "site"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py", json.dumps(COMMANDS)]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def results(work, out):
    """Return the rows that a command has left."""
    return json.loads((work / out / "results.json").read_text())["rows"]


def test_task_takes_forty_lines_of_code(code_lines):
    assert code_lines((EXAMPLE / "skipgym_stage_depth.py").read_text()) <= 40


@pytest.mark.slow
def test_task_is_listed(told):
    what = "Before each stage of the network, run only its first block, or all of them."
    assert re.search(f"stage-depth +{what}", told["list"])


@pytest.mark.slow
def test_id_makes_environments_and_the_task_keeps_every_promise(told):
    assert told["ids"].splitlines() == ["(11,) (4, 11)", "True"]  # 8 channels, one of three positions


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["ppo", "gumbel"])
def test_it_trains(told, work, agent):
    row = results(work, agent)[0]
    assert (row["task"], row["method"]) == ("stage-depth", agent)
    assert row["macs"] >= row["policy_macs"] > 0


@pytest.mark.slow
def test_it_is_compared_and_reported_by_two_workers(told, work):
    rows = results(work, "compared")
    assert {row["method"] for row in rows} >= {"full", "random", "static", "oracle", "ppo", "gumbel"}
    assert {row["task"] for row in rows} == {"stage-depth"}
    assert "stage-depth" in (work / "compared" / "report.html").read_text()
    compared = next(row for row in rows if row["method"] == "gumbel")
    assert [results(work, "again")[0][key] for key in ("accuracy", "macs")] == [
        compared[k] for k in ("accuracy", "macs")
    ]
