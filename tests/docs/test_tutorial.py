"""The tutorial runs from a network and a folder to a loaded controller; its page is its script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

SCRIPT = Path(__file__).parents[2] / "examples" / "tutorial.py"


def run(out, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(out), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("tutorial") / "out"
    return out, run(out)


@pytest.mark.slow
def test_task_is_checked_trained_compared_and_saved(finished):
    out, told = finished
    assert "task how-deep: no failing" in told
    rows = json.loads((out / "compared" / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} >= {"full", "random", "static", "oracle", "ppo", "gumbel"}
    for agent in ("ppo", "gumbel"):
        assert {path.name for path in (out / agent / "controller").iterdir()} == {
            "controller.json",
            "policy.safetensors",
            "backbone.safetensors",
        }
    assert "how-deep" in (out / "compared" / "report.html").read_text()
    assert "of the full network's MACs" in told.splitlines()[-1]


@pytest.mark.slow
def test_it_takes_a_network_and_a_folder_of_the_users(finished, tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), tmp_path / "mine.pth")
    told = run(tmp_path / "out", "--images", str(finished[0] / "images"), "--weights", str(tmp_path / "mine.pth"))
    assert "epoch" not in told


def test_task_takes_forty_lines_of_code(code_lines):
    (cell,) = (cell for cell in SCRIPT.read_text().split("# %%") if "@register_task" in cell)
    assert code_lines(cell.partition("\n")[2]) <= 40


def test_page_is_the_script(site, tmp_path):
    site.stage(tmp_path / "out")
    page = (tmp_path / "out" / "pages" / "tutorial.md").read_text()
    assert page.startswith("# From your network")
    for line in SCRIPT.read_text().partition("# %% [markdown]")[2].splitlines():
        assert line.removeprefix("# %% [markdown]").removeprefix("# %%").lstrip("# ").rstrip() in page
