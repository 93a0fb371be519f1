"""A comparison leaves what it promises, gives all methods the same, and goes on where it was stopped."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from skipgym import Controller, make_backbone
from skipgym.agents import learner, sb3
from skipgym.agents.evaluate import measure
from skipgym.envs import make_task
from skipgym.referee.cell import Bench
from skipgym.referee.compare import compare
from skipgym.referee.plan import cells
from skipgym.registry import Named
from skipgym.scripts.cli import main

from ..testing.sound import SoundDepth

ROW = {
    "task", "backbone", "data", "split", "method", "price", "seed", "accuracy", "macs", "policy_macs", "full_macs",
    "full_accuracy", "compute", "train_backbone_macs", "train_seconds",
}  # fmt: skip
AGENTS = ("reinforce", "gumbel", "ppo-priced", "path-table")


@pytest.fixture(scope="module")
def done(tmp_path_factory, task, data, tiny_config):
    """A finished comparison: its configuration, what it returned, its directory."""
    out, config = tmp_path_factory.mktemp("compare") / "out", tiny_config(agents=AGENTS)
    return config, compare(config, out, command=["skipgym", "compare"], task=task, data=data, quiet=True), out


@pytest.fixture
def begun(done, tmp_path):
    """A copy of the finished comparison, to go on with."""
    config, _, out = done
    shutil.copytree(out, tmp_path / "out")
    return config, tmp_path / "out"


@pytest.fixture
def computed(monkeypatch):
    """The cells that are computed from here on, in order."""
    ran, run = [], Bench.run

    def watched(bench, cell, directory):
        ran.append((cell.method, cell.seed, str(cell.budgets[0])))
        run(bench, cell, directory)

    monkeypatch.setattr(Bench, "run", watched)
    return ran


def trees(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*")}


@pytest.fixture(scope="module", params=[(0.7, None), (None, 0.3)], ids=["target", "price"])
def on_exits(request, tmp_path_factory, backbone, data, tiny_config):
    """A finished comparison on early-exit: its rows by method, what it returned, its directory."""
    target, price = request.param
    budget = {"targets": (target,)} if target else {"targets": (), "prices": (price,)}
    out, config = tmp_path_factory.mktemp("exits") / "out", tiny_config(task="early-exit", agents=("gumbel",), **budget)
    content = compare(config, out, task=make_task("early-exit", backbone), data=data, quiet=True)
    return {row["method"]: row for row in content["rows"]}, content, out


def test_thresholds_stand_in_the_table_and_in_the_verdicts(on_exits, data):
    rows, content, out = on_exits
    assert {"threshold", "threshold-entropy", "threshold-patience"} <= rows.keys()
    assert any("gumbel" in sentence and "threshold" in sentence for sentence in content["meta"]["verdicts"])
    for method in ("threshold", "threshold-entropy", "threshold-patience"):
        row = rows[method]
        assert row["policy_macs"] == row["train_backbone_macs"] == 0
        again = measure(Controller.load(out / row["controller"]), data.test)
        assert (again.accuracy, again.compute) == pytest.approx((row["accuracy"], row["compute"]))
        assert row["target"] is None or row["val_compute"] <= row["target"]


# --- what is left ---


def test_directory_holds_results_picture_report_and_cells(done):
    config, content, out = done
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(content))
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "path-table" in (out / "report.html").read_text()
    assert len(list(out.glob("runs/*/cell.json"))) == len(list(out.glob("runs/*"))) == len(cells(config))
    assert content["meta"]["command"] == ["skipgym", "compare"]


def test_every_method_has_a_row_for_each_budget(done):
    _, content, _ = done
    found = sorted((row["method"], row["target"]) for row in content["rows"])
    methods = (*AGENTS, "random", "static", "oracle", "oracle-agree")
    assert found == sorted([("full", 1.0), *((method, target) for method in methods for target in (0.4, 0.7))])


def test_rows_keep_the_contract(done, task, data):
    _, content, _ = done
    for row in content["rows"]:
        assert row.keys() >= ROW
        assert (row["task"], row["backbone"], row["data"], row["split"]) == (
            task.name,
            task.backbone.name,
            "noise",
            "test",
        )
        assert row["compute"] == pytest.approx(row["macs"] / row["full_macs"])
        assert row["full_macs"] == task.full_macs
        assert row["count"] == (16 if row["method"].startswith("oracle") else len(data.test))
        trained = row["method"] in AGENTS
        assert (row["policy_macs"] > 0) == (row["train_backbone_macs"] > 0) == (row["train_seconds"] > 0) == trained
        assert row["macs"] >= task.least_macs + row["policy_macs"]


def test_full_network_is_the_untouched_one(done, data, backbone):
    _, content, _ = done
    (full,) = (row for row in content["rows"] if row["method"] == "full")
    with torch.no_grad():
        answers = backbone(backbone.prepare(data.test.images)).argmax(1)
    assert full["accuracy"] == full["full_accuracy"] == float((answers == data.test.labels).double().mean()) == 0.8
    assert full["compute"] == 1.0


def test_policies_keep_to_their_target_on_validation(done):
    _, content, _ = done
    for row in content["rows"]:
        if row["method"] in ("reinforce", "gumbel", "path-table"):
            assert row["val_compute"] <= row["target"] + 1e-6, row["method"]


def test_macs_are_counted_image_by_image_with_the_policy(done, task, data):
    _, content, out = done
    row = next(row for row in content["rows"] if row["method"] == "reinforce")
    controller = Controller.load(out / row["controller"])
    decision = controller(data.test.images)
    blocks = torch.tensor([block.macs for block in task.backbone.blocks], dtype=torch.double)
    # What every image pays, the executed blocks, and a gate before each.
    expected = task.least_macs + (decision.actions > 0).double() @ blocks + 3 * controller.policy.macs
    assert row["macs"] == pytest.approx(float(expected.mean()), rel=1e-6)
    assert row["policy_macs"] == 3 * controller.policy.macs


def test_saved_controllers_give_their_rows_again(done, data):
    _, content, out = done
    rows = [row for row in content["rows"] if row["method"] in AGENTS]
    assert len(rows) == 8
    for row in rows:
        measured = measure(Controller.load(out / row["controller"]), data.test, price=row["price"])
        assert (measured.accuracy, measured.macs) == (row["accuracy"], row["macs"]), row["method"]


def test_page_and_results_have_figures_with_intervals_and_words(done, task):
    _, content, _ = done
    meta = content["meta"]
    assert [(s["method"], s["budget"]) for s in meta["summary"] if s["kind"] == "learned"] == [
        (agent, budget) for agent in AGENTS for budget in ("compute0.4", "compute0.7")
    ]
    assert sum(sentence.startswith("RL against Gumbel") for sentence in meta["verdicts"]) == 2
    assert {"full", "random"} <= {s["method"] for s in meta["summary"] if s["accuracy"]["low"] is not None}
    assert meta["pieces"] == task.pieces
    assert sum(note.startswith("It looked up") for note in meta["notes"]) == 2


def test_tensorboard_has_a_record_of_each_policy(done):
    _, _, out = done
    expected = {f"{agent}-{budget}-seed0" for agent in AGENTS for budget in ("compute0.4", "compute0.7")}
    assert {path.name for path in (out / "hparams").iterdir()} == expected


def test_prices_instead_of_targets(task, data, tiny_config, tmp_path):
    config = tiny_config(targets=(), prices=(0.05, 0.8))
    rows = compare(config, tmp_path / "out", task=task, data=data, quiet=True)["rows"]
    assert [(row["method"], row["budget"], row["price"]) for row in rows if row["method"] != "full"] == [
        (name, f"price{price:g}", price) for name in ("static", "reinforce") for price in (0.05, 0.8)
    ]


def test_beside_prices_only_targets_within_reach_are_taken(task, data, tiny_config, tmp_path):
    config = tiny_config(targets=(0.01, 0.7), prices=(0.05,))
    content = compare(config, tmp_path / "out", task=task, data=data, quiet=True)
    assert [row["budget"] for row in content["rows"] if row["method"] == "random"] == ["compute0.7"]
    assert [note[:27] for note in content["meta"]["notes"] if "left out." in note] == ["target 0.01 is left out. co"]


def test_decision_of_many_options_is_compared_with_fixed_choices_and_bounds(backbone, data, tiny_config, tmp_path):
    task, config = SoundDepth(backbone), tiny_config(agents=("gumbel",), targets=(0.7,))
    rows = compare(config, tmp_path / "out", task=task, data=data, quiet=True)["rows"]
    assert [row["method"] for row in rows] == ["full", "static", "random", "oracle", "oracle-agree", "gumbel"]
    assert task.decisions == (4,)


@pytest.mark.parametrize("agent", ["ppo", "gumbel", "reinforce"])
def test_every_method_spends_the_same_in_training(agent, task, data, tiny_config, tmp_path, monkeypatch):
    options = sb3._ppo
    monkeypatch.setattr(sb3, "_ppo", lambda setting: options(setting) | {"n_epochs": 1})  # it need not learn much
    config = tiny_config(agents=(agent,), targets=(0.5,), images=6000, oracle_images=0)
    rows = compare(config, tmp_path / "out", task=task, data=data, quiet=True)["rows"]
    (row,) = (row for row in rows if row["method"] == agent)
    assert row["train_backbone_macs"] == pytest.approx(6000 * task.full_macs, rel=0.12)  # PPO collects 672 at a time


# --- going on ---


def test_second_call_computes_nothing_and_says_the_same(begun, done, computed, task, data):
    config, out = begun
    before = trees(out / "runs")
    content = compare(config, out, command=["skipgym", "compare"], task=task, data=data, quiet=True)
    assert computed == []
    assert content == done[1]
    assert trees(out / "runs") == before


def test_more_seeds_compute_only_the_new_cells(begun, computed, task, data):
    config, out = begun
    before = trees(out / "runs")
    content = compare(replace(config, seeds=2), out, task=task, data=data, quiet=True)
    assert computed == [
        ("random", 1, "compute0.4"),
        *(("reinforce", 1, budget) for budget in ("compute0.4", "compute0.7")),
        *(("gumbel", 1, budget) for budget in ("compute0.4", "compute0.7")),
        ("ppo-priced", 1, "compute0.4"),
        ("path-table", 1, "compute0.4"),
    ]
    after = trees(out / "runs")
    assert {path: after[path] for path in before} == before
    assert {s["seeds"] for s in content["meta"]["summary"] if s["kind"] == "learned"} == {2}


def test_half_a_cell_is_thrown_away_and_made_again(begun, done, computed, task, data):
    config, out = begun
    (whole,) = out.glob("runs/gumbel-compute0.4-*")
    leftover = whole.rename(whole.with_name(whole.name + ".part"))
    (leftover / "cell.json").write_text("{half")
    content = compare(config, out, command=["skipgym", "compare"], task=task, data=data, quiet=True)
    assert computed == [("gumbel", 0, "compute0.4")]
    assert not leftover.exists()
    timeless = [
        [{k: v for k, v in r.items() if k not in ("train_seconds", "history")} for r in c["rows"]]
        for c in (content, done[1])
    ]
    assert timeless[0] == timeless[1]


class Fragile(learner.Learner):
    """Learns nothing, and fails while `broken`."""

    broken = True

    def train(self, setting):
        if self.broken:
            raise ArithmeticError("diverged")
        return learner.make_learner("reinforce").train(setting)


@pytest.fixture
def fragile(monkeypatch):
    monkeypatch.setitem(learner.REGISTRY.registered, "fragile", Named(Fragile, "fails"))
    monkeypatch.setattr(Fragile, "broken", True)
    return Fragile


def test_failing_cell_takes_no_other_along_and_is_all_that_is_computed_next(
    fragile, computed, monkeypatch, task, data, tiny_config, tmp_path
):
    config = tiny_config(agents=("fragile", "reinforce"), targets=(0.5,), oracle_images=0)
    with pytest.raises(
        RuntimeError, match=r"1 of 5 cells failed.*fragile seed 0 compute0.5: ArithmeticError\('diverged'"
    ):
        compare(config, tmp_path / "out", task=task, data=data, quiet=True)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["full", "static", "random", "reinforce"]

    monkeypatch.setattr(fragile, "broken", False)
    computed.clear()
    rows = compare(config, tmp_path / "out", task=task, data=data, quiet=True)["rows"]
    assert computed == [("fragile", 0, "compute0.5")]
    assert [row["method"] for row in rows] == ["full", "static", "random", "fragile", "reinforce"]


def test_comparison_of_which_nothing_succeeds_tells_why(monkeypatch, task, data, tiny_config, tmp_path):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Bench, "run", fail)
    with pytest.raises(RuntimeError, match="cells failed.*full seed 0 compute1: OSError.*no space left"):
        compare(tiny_config(), tmp_path / "out", task=task, data=data, quiet=True)


# --- what is refused ---


def test_other_data_in_the_same_directory_is_refused(begun, task, data):
    config, out = begun
    before = trees(out)
    for changed, images in ((replace(config, data="digits"), data), (config, replace(data, fingerprint="1" * 16))):
        with pytest.raises(ValueError, match="begun with something else.*data"):
            compare(changed, out, task=task, data=images, quiet=True)
    assert trees(out) == before


def test_other_backbone_in_the_same_directory_is_refused(begun, data, random_backbone):
    config, out = begun
    before = trees(out)
    other = make_task("layer-skip", random_backbone(seed=1))
    with pytest.raises(ValueError, match="begun with something else.*backbone"):
        compare(config, out, task=other, data=data, quiet=True)
    assert trees(out) == before


def test_directory_of_something_else_is_refused_and_untouched(task, data, tiny_config, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(FileExistsError, match="in use"):
            compare(tiny_config(), out, task=task, data=data, quiet=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("mine.txt", "precious")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"targets": (0.5, 0.01)}, "everything left out"),  # the stem and the head cost more
        ({"targets": (1.1,)}, "everything left out"),
        ({"agents": ("ppo", "ppo")}, "got ppo twice"),
        ({"agents": ("threshold",)}, "exits"),
        ({"agents": ("full",)}, "always compared"),
        ({"reward": "confidence-gain"}, "reward confidence-gain: expected a task with exits"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_is_written(wrong, message, task, data, tiny_config, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare(tiny_config(**wrong), tmp_path / "out", task=task, data=data, quiet=True)
    assert not (tmp_path / "out").exists()


# --- killed ---


@pytest.mark.slow
def test_killed_comparison_goes_on_and_leaves_no_worker_behind(tmp_path, capsys):
    weights, out = tmp_path / "random.safetensors", tmp_path / "out"
    save_file(make_backbone("resnet8-w4", num_classes=10, input_shape=(1, 8, 8)).network.state_dict(), weights)
    options = ["--agents", "reinforce", "gumbel", "--targets", "0.5", "--seeds", "1", "--images", "1000"]
    options += ["--oracle-images", "0", "--backbone", "resnet8-w4", "--weights", str(weights), "--out", str(out)]
    command = [sys.executable, "-m", "skipgym", "compare", *options]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while first.poll() is None and len(list(out.glob("runs/*/cell.json"))) < 1:
        time.sleep(0.02)
    first.kill()
    first.communicate(timeout=30)  # returns when nobody holds the other end: the workers have gone too
    assert first.returncode == -9, "it was done before it could be killed"
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/cell.json")}
    assert 1 <= len(finished) < 5
    assert main(["compare", *options, "--workers", "1"]) == 0
    assert f"5 cells, {len(finished)} of them finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(list(out.glob("runs/*/cell.json"))) == len(list(out.glob("runs/*"))) == 5


def test_jointly_finetuned_method_is_named_and_has_no_part_in_the_verdicts(task, data, tiny_config, tmp_path):
    config = replace(tiny_config(agents=("gumbel", "gumbel+joint", "ppo")), joint_images=64)
    content = compare(config, tmp_path / "out", task=task, data=data, quiet=True)
    joint = [row for row in content["rows"] if row["joint"]]
    assert {row["method"] for row in joint} == {"gumbel+joint"}
    assert any("gumbel+joint" in note or "NAME+joint" in note for note in content["meta"]["notes"])
    assert "joint" not in str(content["meta"]["verdicts"])
    controller = Controller.load(tmp_path / "out" / joint[0]["controller"])
    assert controller.task.backbone.fingerprint() != task.backbone.fingerprint()
    frozen = next(row for row in content["rows"] if row["method"] == "gumbel" and row["seed"] == joint[0]["seed"])
    assert joint[0]["train_backbone_macs"] > frozen["train_backbone_macs"]


def test_method_that_cannot_be_finetuned_jointly_is_told_before_work(task, data, tiny_config, tmp_path):
    with pytest.raises(ValueError, match="gate gives probabilities, got path-table[+]joint"):
        compare(tiny_config(agents=("path-table+joint",)), tmp_path / "out", task=task, data=data, quiet=True)
    assert not (tmp_path / "out").exists()
