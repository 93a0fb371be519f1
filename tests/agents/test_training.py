"""A run leaves what it promises, checks before it works, and overwrites nothing."""

import json
from dataclasses import asdict

import pytest
import torch

from skipgym import Controller
from skipgym.agents.evaluate import measure
from skipgym.agents.training import TrainConfig, train
from skipgym.data import Augment
from skipgym.envs.begun import Prefix
from skipgym.envs.table import keep, tabulate

ROW = {
    "task", "backbone", "data", "split", "method", "price", "seed", "accuracy", "macs", "policy_macs", "full_macs",
    "full_accuracy", "compute", "train_backbone_macs", "train_seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_backbone, dark_or_bright):
    from skipgym.envs import make_task

    out = tmp_path_factory.mktemp("runs") / "run"
    config = TrainConfig(agent="ppo", images=1_500, num_envs=32, hidden=8, price=0.2)
    return train(config, make_task("layer-skip", small_backbone), dark_or_bright, out=out, quiet=True), out


def test_run_directory_holds_configuration_events_controller_and_figures(run):
    trained, out = run
    assert json.loads((out / "config.json").read_text())["agent"] == "ppo"
    assert list(out.glob("events.out.tfevents.*"))
    (row,) = json.loads((out / "results.json").read_text())["rows"]
    assert row.keys() >= ROW
    assert row["accuracy"] == trained.val.accuracy
    assert row["compute"] == pytest.approx(row["macs"] / row["full_macs"])


def test_saved_controller_is_the_one_that_was_measured(run, dark_or_bright):
    trained, out = run
    loaded = measure(Controller.load(out / "controller"), dark_or_bright.val)
    assert (loaded.accuracy, loaded.macs) == (trained.val.accuracy, trained.val.macs)


def test_backbone_macs_of_training_are_counted(run, small_backbone):
    trained, _ = run
    played = trained.history[-1]["images"]
    assert played >= 1_500
    assert played * small_backbone.least_macs < trained.backbone_macs <= played * small_backbone.full_macs


def test_tensorboard_shows_what_the_page_promises(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, out = run
    scalars, images = set(), set()
    for file in out.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        scalars |= set(events.Tags()["scalars"])
        images |= set(events.Tags()["images"])
    expected = {"train/reward", "train/accuracy", "train/compute", "train/entropy_loss", "execution/layer1.0"}
    assert expected | {"val/accuracy", "val/compute"} <= scalars
    assert "decisions" in images


def test_directory_in_use_is_refused(tell, dark_or_bright, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="new or empty"):
        train(TrainConfig(images=64), tell, dark_or_bright, out=tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "layer-skpi"}, "Did you mean layer-skip"),
        ({"agent": "pp0"}, "Did you mean ppo"),
        ({"reward": "acuracy"}, "Did you mean accuracy"),
        ({"images": 0}, "images: expected at least 1"),
        ({"num_envs": 0}, "num_envs: expected at least 1"),
        ({"minutes": 0}, "minutes: expected more than 0"),
        ({"train_macs": 0}, "train_macs: expected more than 0, got 0"),
        ({"train_macs": -1e9}, "train_macs: expected more than 0"),
        ({"target_compute": 0.5, "price": (0.0, 1.0)}, "single price"),
        ({"target_compute": 0.5, "price": [0.0, 1.0]}, "single price"),
    ],
)
def test_wrong_configuration_is_told_at_once(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)


def test_range_of_prices_survives_json(tell, dark_or_bright):
    config = TrainConfig(agent="reinforce", price=(0.1, 0.5), images=64, num_envs=32, hidden=8)
    read = TrainConfig(**json.loads(json.dumps(asdict(config))))
    for given in (config, read):
        controller = train(given, tell, dark_or_bright, quiet=True).controller
        assert controller.policy.priced
        assert controller.price == pytest.approx(0.3)


def test_target_below_the_cheapest_way_is_told_before_work(small_backbone, dark_or_bright, tmp_path):
    from skipgym.envs import make_task

    task = make_task("layer-skip", small_backbone)
    with pytest.raises(ValueError, match="everything left out"):
        train(TrainConfig(target_compute=0.01, price=0.0), task, dark_or_bright, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("agent", ["ppo", "gumbel", "reinforce"])
def test_training_from_a_table_leaves_a_controller_for_images(agent, enough, dark_or_bright, tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPGYM_CACHE", str(tmp_path / "cache"))
    table, ticketed = tabulate(enough, dark_or_bright, versions=1, augment=Augment(), quiet=True)
    config = TrainConfig(agent=agent, images=2_000, num_envs=32, hidden=8, price=0.2)
    trained = train(config, table, ticketed, quiet=True)
    live = measure(Controller(enough, trained.controller.policy), dark_or_bright.val)
    assert (live.accuracy, live.macs) == (trained.val.accuracy, trained.val.macs)
    assert torch.equal(live.actions, trained.val.actions)


@pytest.mark.parametrize("agent", ["ppo", "gumbel", "skipnet", "reinforce"])
def test_training_from_stored_features_leaves_a_controller_for_images(
    agent, small_backbone, dark_or_bright, tmp_path, monkeypatch
):
    from skipgym.envs import make_task

    monkeypatch.setenv("SKIPGYM_CACHE", str(tmp_path / "cache"))
    task = make_task("layer-skip", small_backbone)
    begun, ticketed = keep(Prefix(task), dark_or_bright, versions=1, augment=Augment(), quiet=True)
    ran = []
    task.backbone.stem.register_forward_pre_hook(lambda *_: ran.append(1))
    config = TrainConfig(agent=agent, images=300, num_envs=32, hidden=8, price=0.2)
    trained = train(config, begun, ticketed, out=tmp_path / "run", quiet=True)
    assert not ran
    assert trained.backbone_macs > 300 * task.backbone.least_macs  # as it would have spent live
    live = measure(Controller.load(tmp_path / "run" / "controller"), dark_or_bright.val)
    assert (live.accuracy, live.macs) == (trained.val.accuracy, trained.val.macs)
    assert torch.equal(live.actions, trained.val.actions)


@pytest.mark.parametrize("name", ["table", "prefix"])
def test_negative_number_of_versions_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected 0, or how many versions of each image, got -1"):
        TrainConfig(**{name: -1})


def test_table_and_stored_features_at_once_are_refused():
    with pytest.raises(ValueError, match="prefix: expected no table, .* got both. Use --prefix 0"):
        TrainConfig(table=1, prefix=1)


def test_backbone_and_data_are_the_task_s_own_where_none_is_named():
    assert (TrainConfig().backbone, TrainConfig().data) == ("resnet20", "digits")
    texts = TrainConfig(task="time-skip")
    assert (texts.backbone, texts.data) == ("words", "key-phrases")
    assert TrainConfig(task="time-skip", data="digit-clips").data == "digit-clips"
