"""The demo, on a tiny network instead of its own."""

import json

import pytest

from skipgym import Controller
from skipgym.agents.policy import GatePolicy
from skipgym.envs import make_task
from skipgym.scripts import demo


@pytest.fixture
def small(monkeypatch, tiny_backbone, tiny_images):
    """Let the demo find a tiny network and tiny data."""

    def prepared(_):
        return make_task("layer-skip", tiny_backbone), tiny_images

    monkeypatch.setattr(demo, "prepare", prepared)
    monkeypatch.setattr("skipgym.referee.compare.prepare", prepared)


def arguments(out, images=100):
    words = ["--seeds", "1", "--images", str(images), "--compute", "0.7", "--workers", "1", "--out", str(out)]
    return words


def test_demo_leaves_rows_figure_report_and_a_controller_that_is_what_was_measured(small, tmp_path, capsys):
    assert demo.main(arguments(tmp_path / "demo")) == 0
    rows = {row["method"]: row for row in json.loads((tmp_path / "demo" / "results.json").read_text())["rows"]}
    assert {"full", "random", "static", "oracle", "ppo", "gumbel"} <= set(rows)
    assert rows["full"]["compute"] == 1.0
    assert {"frontier.png", "report.html"} <= {path.name for path in (tmp_path / "demo").iterdir()}
    assert Controller.load(tmp_path / "demo" / rows["ppo"]["controller"]).policy.config()["kind"] == "gate"
    told = capsys.readouterr().out
    assert "as before" in told
    assert "tensorboard --logdir" in told


def test_second_demo_leaves_the_first_alone(small, tmp_path):
    demo.main(arguments(tmp_path / "demo"))
    before = (tmp_path / "demo" / "results.json").stat().st_mtime_ns
    demo.main(arguments(tmp_path / "demo", images=120))
    assert (tmp_path / "demo" / "results.json").stat().st_mtime_ns == before
    assert (tmp_path / "demo-2" / "results.json").is_file()


def test_controller_that_changed_on_the_way_is_told(small, tmp_path, monkeypatch):
    def other(path):
        controller = load(path)
        assert isinstance(controller.policy, GatePolicy)
        controller.policy.shift = 16.0 if controller.policy.shift < 0 else -16.0
        return controller

    load = Controller.load
    monkeypatch.setattr(demo.Controller, "load", other)
    with pytest.raises(RuntimeError, match="loaded controller"):
        demo.main(arguments(tmp_path / "demo"))
