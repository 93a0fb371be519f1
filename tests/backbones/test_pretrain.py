import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from skipgym.backbones import embedded, load_backbone, make_backbone
from skipgym.backbones import pretrain as module
from skipgym.backbones.backbone import Backbone
from skipgym.backbones.embedded import embedded_recipe, pretrained
from skipgym.backbones.pretrain import pretrain
from skipgym.backbones.recipe import PretrainConfig, Recipe
from skipgym.backbones.registry import held_out
from skipgym.backbones.trainer import Trainer, accuracy, random_half
from skipgym.data import ImageData, Part, load

BACKBONE = "resnet8-w4"  # 3 blocks
BLOCKS = 3


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(
        backbone=BACKBONE, data="squares", out=tmp_path / "run", epochs=4, batch_size=16, lr=0.05, device="cpu"
    )


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in backbone.network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def stop_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training be interrupted when an epoch more than these begins."""
    run_epoch = Trainer.run_epoch

    def interrupted(self: Trainer, **options: bool) -> dict[str, float]:
        if self.epochs_done == epochs:
            raise KeyboardInterrupt
        return run_epoch(self, **options)

    monkeypatch.setattr(Trainer, "run_epoch", interrupted)


def interrupt(config: PretrainConfig, data: ImageData, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a run and interrupt it after some epochs."""
    with monkeypatch.context() as patch:
        stop_after(epochs, patch)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, data=data, quiet=True)


class TestDirectory:
    def test_policy_and_test_parts_are_not_read_before_the_end(self, data, config, monkeypatch):
        read: list[str] = []
        names = {id(data.part(name)): name for name in ("train", "policy", "val", "test")}
        batches = Part.batches
        monkeypatch.setattr(Part, "batches", lambda self, size: read.append(names[id(self)]) or batches(self, size))
        pretrain(config, data=data, quiet=True)
        assert read == ["val"] * config.epochs + ["val", "test"]

    def test_resumed_run_ends_with_the_same_weights(self, data, config, tmp_path, monkeypatch):
        config = replace(config, stochastic_depth=0.5, keep="best")
        whole = pretrain(config, data=data, quiet=True)
        parted = replace(config, out=tmp_path / "parted")
        interrupt(parted, data, 2, monkeypatch)
        assert not (parted.out / "backbone.json").exists()
        resumed = pretrain(parted, data=data, quiet=True)
        assert same(weights(resumed), weights(whole))
        assert (parted.out / "backbone.safetensors").read_bytes() == (config.out / "backbone.safetensors").read_bytes()

    def test_run_stopped_before_its_card_is_finished_without_training(self, data, config, monkeypatch):
        whole = pretrain(config, data=data, quiet=True)
        (config.out / "backbone.json").unlink()
        stop_after(config.epochs, monkeypatch)  # an epoch more would raise
        assert same(weights(pretrain(config, data=data, quiet=True)), weights(whole))
        assert (config.out / "backbone.json").is_file()

    def test_finished_run_is_not_trained_again(self, data, config, monkeypatch, capsys):
        first = pretrain(config, data=data, quiet=True)
        assert capsys.readouterr().out == ""
        stop_after(0, monkeypatch)
        again = pretrain(config, data=data)
        assert "finished before, not trained again" in capsys.readouterr().out
        assert same(weights(again), weights(first))

    def test_other_settings_are_named_and_nothing_is_overwritten(self, data, config):
        pretrain(config, data=data, quiet=True)
        before = {path.name: path.read_bytes() for path in config.out.iterdir()}
        with pytest.raises(ValueError, match=r"expected epochs 4, got 5; lr 0.05, got 0.1. Nothing was overwritten"):
            pretrain(replace(config, lr=0.1, epochs=5), data=data, quiet=True)
        with pytest.raises(ValueError, match=r"data_fingerprint 'f+', got 'e+'"):
            pretrain(config, data=replace(data, fingerprint="e" * 16), quiet=True)
        assert {path.name: path.read_bytes() for path in config.out.iterdir()} == before

    def test_directory_of_someone_else_is_refused(self, data, config):
        config.out.mkdir()
        (config.out / "thesis.tex").write_text("dear")
        with pytest.raises(FileExistsError, match=r"expected a new directory.*thesis.tex.*another --out"):
            pretrain(config, data=data, quiet=True)
        assert [path.name for path in config.out.iterdir()] == ["thesis.tex"]

    def test_out_that_is_a_file_is_refused(self, data, config):
        config.out.write_text("dear")
        with pytest.raises(FileExistsError, match="a file of that name"):
            pretrain(config, data=data, quiet=True)

    def test_damaged_checkpoint_is_told(self, data, config, monkeypatch):
        interrupt(config, data, 1, monkeypatch)
        (config.out / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut off")
        with pytest.raises(ValueError, match=r"checkpoint .*: expected a whole one"):
            pretrain(config, data=data, quiet=True)

    def test_saved_weights_load_to_the_same_logits(self, data, config):
        trained = pretrain(replace(config, stochastic_depth=0.3), data=data, quiet=True)
        loaded = load_backbone(BACKBONE, config.out / "backbone.safetensors", num_classes=2, input_shape=(1, 8, 8))
        x = trained.prepare(data.test.images)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(loaded.prepare(data.test.images)), trained(x))
        assert (loaded.mean, loaded.std) == ((0.4,), (0.3,))

    def test_card_holds_what_was_done(self, data, config):
        config = replace(config, stochastic_depth=0.3)
        trained = pretrain(config, data=data, quiet=True)
        card = json.loads((config.out / "backbone.json").read_text())
        assert card["backbone"] == trained.config
        assert card["fingerprint"] == trained.fingerprint()
        assert card["data"]["fingerprint"] == data.fingerprint
        assert card["pretrain"] == config.as_json()
        assert card["accuracy"]["test"] == {
            "full": accuracy(trained, data.test),
            "half": accuracy(trained, data.test, random_half(16, BLOCKS, seed=0)),
            "n": 16,
        }
        assert card["versions"]["torch"] == torch.__version__

    def test_page_holds_what_people_ask(self, data, config):
        config = replace(config, stochastic_depth=0.3)
        trained = pretrain(config, data=data, quiet=True)
        page = (config.out / "README.md").read_text()
        for claim in (config.command(), f"{trained.full_macs:,} MACs", data.fingerprint, "| test | full network |"):
            assert claim in page
        assert re.search(r"Skip-robust: .* probability 0.3", page)
        assert sum(parameter.numel() for parameter in trained.network.parameters()) == int(
            re.search(r"([\d,]+) parameters", page)[1].replace(",", "")
        )

    def test_plain_backbone_is_not_called_skip_robust(self, data, config):
        pretrain(config, data=data, quiet=True)
        assert "Not skip-robust" in (config.out / "README.md").read_text()

    def test_events_are_written_for_each_epoch_once(self, data, config, monkeypatch):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        interrupt(config, data, 2, monkeypatch)
        pretrain(config, data=data, quiet=True)
        events = EventAccumulator(str(config.out)).Reload()
        assert {"pretrain/loss", "pretrain/lr", "pretrain/val_full", "pretrain/images_per_s"} <= set(
            events.Tags()["scalars"]
        )
        assert [event.step for event in events.Scalars("pretrain/loss")] == [1, 2, 3, 4]

    def test_training_starts_from_given_weights(self, data, config, tmp_path):
        first = pretrain(config, data=data, quiet=True)
        published = tmp_path / "published.pt"
        torch.save(first.network.state_dict(), published)
        tuned = pretrain(
            replace(config, out=tmp_path / "tuned", init=published, lr=1e-9, epochs=1, weight_decay=0.0),
            data=data,
            quiet=True,
        )
        before, after = (backbone.network.get_parameter("linear.weight") for backbone in (first, tuned))
        assert torch.allclose(before, after)
        assert tuned.mean == make_backbone(BACKBONE, input_shape=(1, 8, 8)).mean  # no card: not the data's
        assert "published.pt" in (tmp_path / "tuned" / "README.md").read_text()

    def test_training_starts_from_a_deeper_backbone(self, data, config, tmp_path):
        deeper = pretrain(replace(config, backbone="resnet20-w4", epochs=1), data=data, quiet=True)
        shallower = replace(config, backbone="resnet14-w4", out=tmp_path / "shallower", epochs=1)
        tuned = pretrain(
            replace(shallower, init=config.out / "backbone.safetensors", lr=1e-9, weight_decay=0.0),
            data=data,
            quiet=True,
        )
        for own, source in (
            ("conv1", "conv1"),
            ("layer2.0.conv1", "layer2.0.conv1"),
            ("layer2.1.conv2", "layer2.2.conv2"),
        ):
            before, after = (
                deeper.network.get_parameter(f"{source}.weight"),
                tuned.network.get_parameter(f"{own}.weight"),
            )
            assert torch.allclose(before, after)
        assert (tuned.name, tuned.mean) == ("resnet14-w4", data.mean)

    def test_weights_count_as_held_out_unless_they_started_from_others(self, data, config, tmp_path):
        pretrain(replace(config, epochs=1), data=data, quiet=True)
        first = config.out / "backbone.safetensors"
        assert held_out(first, data.fingerprint)
        assert not held_out(first, "another")
        assert not held_out(tmp_path / "published.pt", data.fingerprint)  # no card
        pretrain(replace(config, epochs=1, init=first, out=tmp_path / "tuned"), data=data, quiet=True)
        assert not held_out(tmp_path / "tuned" / "backbone.safetensors", data.fingerprint)

    def test_colour_backbone_takes_grey_data(self, data):
        assert module.random_start("vit_tiny", data, 0).mean == (0.4, 0.4, 0.4)


class TestMistakes:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("epochs", 0, "epochs: expected at least 1, got 0. Change --epochs."),
            ("batch_size", 1, "batch_size: expected at least 2, got 1"),
            ("lr", 0.0, "lr: expected a number above 0"),
            ("lr", float("nan"), "lr: expected a number above 0"),
            ("stochastic_depth", 1.0, "stochastic_depth: expected a number from 0 to below 1"),
            ("stochastic_depth", -0.1, "stochastic_depth: expected"),
            ("token_dropout", 1.0, "token_dropout: expected a number from 0 to below 1"),
            ("distill", 1.0, "distill: expected 0 without --stochastic-depth"),
            ("spare_hard", 1.0, "spare_hard: expected 0 without --stochastic-depth"),
            ("spare_hard", -1.0, "spare_hard: expected 0 or above"),
            ("schedule", "step", "schedule: expected one of one-cycle, cosine, got 'step'"),
            ("image_size", 0, "image_size: expected at least 1 pixel"),
            ("seed", -1, "seed: expected at least 0"),
        ],
    )
    def test_settings_out_of_range(self, config, field, value, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            replace(config, **{field: value})

    def test_unknown_backbone(self, data, config):
        with pytest.raises(ValueError, match="Did you mean resnet20"):
            pretrain(replace(config, backbone="resnt20"), data=data, quiet=True)
        assert not config.out.exists()

    def test_unknown_data(self, config):
        with pytest.raises(ValueError, match="Unknown data"):
            pretrain(replace(config, data="digitz"), quiet=True)
        assert not config.out.exists()

    def test_unknown_device(self, data, config):
        with pytest.raises(ValueError, match="device: expected one that works, got 'abacus'"):
            pretrain(replace(config, device="abacus"), data=data, quiet=True)

    def test_fewer_images_than_a_batch(self, data, config):
        with pytest.raises(ValueError, match=r"at most the 48 training images of squares, got 64. Change --batch-size"):
            pretrain(replace(config, batch_size=64), data=data, quiet=True)
        assert not config.out.exists()

    def test_images_too_small_for_the_backbone(self, data, config):
        with pytest.raises(ValueError, match=r"vit_b_32 on 8 x 8 images: .* multiple of its patch size .*--image-size"):
            pretrain(replace(config, backbone="vit_b_32"), data=data, quiet=True)
        assert not config.out.exists()

    def test_joined_policy_part_is_refused(self, data, config):
        with pytest.raises(ValueError, match="policy_from='held-out'"):
            pretrain(config, data=replace(data, seen=True), quiet=True)


@pytest.mark.slow
def test_digits_are_learned_and_a_random_half_is_not_enough(run_cache):
    digits = load("digits")
    pretrained("resnet20", digits)
    kept = f"resnet20-{digits.fingerprint}-{embedded_recipe('resnet20', digits).digest()}"
    measured = json.loads((run_cache / "backbones" / kept / "backbone.json").read_text())["accuracy"]["val"]
    assert measured["full"] >= 0.97
    assert 0.3 < measured["half"] < 0.8


class TestEmbedded:
    @pytest.fixture(autouse=True)
    def quick(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SKIPGYM_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(embedded, "EMBEDDED", {"squares": Recipe(epochs=1, batch_size=16)})

    def kept(self, tmp_path: Path) -> Path:
        (directory,) = (tmp_path / "cache" / "backbones").iterdir()
        return directory

    def test_second_use_reads_the_cache(self, data, tmp_path, monkeypatch):
        first = pretrained(BACKBONE, data)
        stop_after(0, monkeypatch)
        second = pretrained(BACKBONE, data)
        assert same(weights(first), weights(second))
        x = first.prepare(data.val.images)
        with torch.no_grad():
            assert torch.equal(first(x), second(x))
        assert not first.training
        assert self.kept(tmp_path).name.startswith(f"{BACKBONE}-{data.fingerprint}-")

    @pytest.mark.parametrize("name", ["backbone.safetensors", "backbone.json"])
    def test_damaged_cache_is_trained_again(self, data, tmp_path, name):
        first = pretrained(BACKBONE, data)
        damaged = self.kept(tmp_path) / name
        damaged.write_bytes(damaged.read_bytes()[:-40])
        assert same(weights(pretrained(BACKBONE, data)), weights(first))
        assert module.read_result(self.kept(tmp_path), BACKBONE, data)

    def test_changed_weights_are_noticed(self, data, tmp_path):
        first = pretrained(BACKBONE, data)
        path = self.kept(tmp_path) / "backbone.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # still a sound file
        path.write_bytes(content)
        with pytest.raises(ValueError, match="They were changed"):
            module.read_result(self.kept(tmp_path), BACKBONE, data)
        assert same(weights(pretrained(BACKBONE, data)), weights(first))

    def test_the_first_of_two_processes_wins(self, data, tmp_path):
        first = pretrained(BACKBONE, data)
        card = self.kept(tmp_path) / "backbone.json"
        before = card.stat().st_mtime_ns
        embedded._train_embedded(
            BACKBONE, data, embedded.EMBEDDED["squares"], self.kept(tmp_path)
        )  # began before the first was done
        assert card.stat().st_mtime_ns == before
        assert same(weights(pretrained(BACKBONE, data)), weights(first))

    def test_cache_that_cannot_be_written_costs_a_warning(self, data, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("SKIPGYM_CACHE", str(tmp_path / "file"))
        with pytest.warns(UserWarning, match="Set SKIPGYM_CACHE"):
            assert pretrained(BACKBONE, data).num_classes == 2

    def test_other_data_wants_weights(self, data):
        other = replace(data, name="cats")
        with pytest.raises(
            ValueError, match=r"expected a file.*--weights FILE.*pretrain --backbone resnet8-w4 --data cats"
        ):
            pretrained(BACKBONE, other)

    def test_unknown_name_is_told_before_weights_are_asked_for(self, data):
        with pytest.raises(ValueError, match=r"unknown backbone: .*got 'resnet2O'\. Did you mean"):
            pretrained("resnet2O", replace(data, name="cats"))

    def test_joined_policy_part_is_refused(self, data):
        with pytest.raises(ValueError, match="policy_from='held-out'"):
            pretrained(BACKBONE, replace(data, seen=True))
