"""Exits that are part of a network: trained in sum with it, resumed bit by bit, told on its card, loaded with it."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from skipgym.backbones import embedded, load_backbone, make_backbone
from skipgym.backbones.embedded import embedded_recipe, pretrained
from skipgym.backbones.exit_training import exit_accuracy
from skipgym.backbones.pretrain import pretrain
from skipgym.backbones.recipe import PretrainConfig, Recipe
from skipgym.backbones.trainer import Trainer, weighted_sum

TINY = ["msdnet3-s2-w2", "ranet4-s2-w2"]
WEIGHTS = {"msdnet3-s2-w2": (0.5, 1.0, 2.0), "ranet4-s2-w2": (0.5, 1.0, 2.0, 3.0)}


@pytest.fixture(params=TINY)
def config(request, tmp_path):
    options = {"epochs": 2, "batch_size": 16, "lr": 0.05, "device": "cpu"}
    return PretrainConfig(backbone=request.param, data="squares", out=tmp_path / "run", **options)


def untrained(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_backbone(name, num_classes=2, input_shape=(1, 8, 8))


def weights(backbone):
    return {key: value.clone() for key, value in backbone.network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_sum_by_hand():
    losses = [torch.tensor(value) for value in (1.0, 2.0, 3.0)]
    assert weighted_sum(losses, ()) == 6
    assert weighted_sum(losses, (0.5, 1.0, 2.0)) == 8.5


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("weighted", [False, True])
def test_step_follows_the_gradient_of_the_weighted_sum(name, weighted, data):
    """One step of plain SGD from the exits' cross entropies, each by the network's own modules."""
    given = WEIGHTS[name] if weighted else ()
    recipe = Recipe(epochs=1, batch_size=16, lr=0.05, momentum=0, weight_decay=0, exit_weights=given)
    learner, plain = Trainer(untrained(name), data, recipe), untrained(name).train()
    batch = next(learner.batches(0))
    network: Any = plain.network
    maps, losses = network.start.body(batch.x), []
    for count, step in enumerate(network.steps, 1):
        maps = step.body(maps)
        at = [one for after, one in zip(network.after, network.answers, strict=True) if after == count]
        losses += [F.cross_entropy(one.classifier(maps[-1]), batch.labels) for one in at]
    loss = sum(weight * one for weight, one in zip(given or (1.0,) * len(losses), losses, strict=True))
    loss.backward()
    learner.backbone.train()
    torch.testing.assert_close(learner._step(batch, 0.3), loss)  # the rate is at its height after 0.3
    for ours, other in zip(learner.backbone.network.parameters(), network.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(ours, other - recipe.lr * other.grad, rtol=1e-4, atol=1e-6)


def test_all_exits_learn(data):
    learner = Trainer(untrained(TINY[0]), data, Recipe(epochs=6, batch_size=16, lr=0.05))
    first = learner.run_epoch()
    for _ in range(5):
        metrics = learner.run_epoch()
    assert metrics["loss"] < first["loss"] / 2
    assert min(exit_accuracy(learner.finish(), data.val)) > 0.9
    assert [metrics[f"val_{key}"] for key in ("exit1", "exit2", "full")] == exit_accuracy(learner.backbone, data.val)


def test_resumed_run_ends_with_the_same_weights(config, data, tmp_path, monkeypatch):
    whole = pretrain(replace(config, out=tmp_path / "whole"), data=data, quiet=True)
    run_epoch = Trainer.run_epoch

    def interrupted(self, **options):
        if self.epochs_done == 1:
            raise KeyboardInterrupt
        return run_epoch(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, data=data, quiet=True)
    assert same(weights(whole), weights(pretrain(config, data=data, quiet=True)))


def test_weights_load_with_their_exits_and_the_card_tells_each(config, data):
    config = replace(config, exit_weights=WEIGHTS[config.backbone])
    trained = pretrain(config, data=data, quiet=True)
    loaded = load_backbone(config.backbone, config.out / "backbone.safetensors", num_classes=2, input_shape=(1, 8, 8))
    assert loaded.identity() == trained.identity()
    x = trained.prepare(data.val.images)
    with torch.no_grad():
        pairs = zip(trained.answers(x), loaded.eval().answers(x), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    card, page = json.loads((config.out / "backbone.json").read_text()), (config.out / "README.md").read_text()
    told = card["accuracy"]["test"]
    found = [*(told[f"exit{index}"] for index in range(1, len(trained.exits) + 1)), told["full"]]
    assert found == exit_accuracy(trained, data.test)
    assert card["exits"]["macs"] == trained.answer_macs
    assert card["pretrain"]["exit_weights"] == list(config.exit_weights)
    assert f"| 1 | {trained.answer_macs[0]:,} |" in page
    assert "minimised in sum, weighted 0.5 1 2" in page
    assert "## Skipping" not in page
    assert "--exit-weights 0.5 1.0 2.0" in page
    with pytest.raises(ValueError, match="exit_weights"):
        pretrain(replace(config, exit_weights=()), data=data, quiet=True)


def test_embedded_data_is_learned_without_leaving_blocks_out(data, tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPGYM_CACHE", str(tmp_path))
    monkeypatch.setitem(
        embedded.EMBEDDED, data.name, Recipe(epochs=1, batch_size=16, stochastic_depth=0.5, spare_hard=1)
    )
    first = pretrained(TINY[0], data)
    assert embedded_recipe(TINY[0], data) == Recipe(epochs=1, batch_size=16)
    assert pretrained(TINY[0], data).identity() == first.identity()


def test_recipes_without_exit_weights_keep_their_results():
    assert Recipe().digest() != Recipe(exit_weights=(1.0, 2.0)).digest()
    assert Recipe().digest() == "875089c3ec2c887b"


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"stochastic_depth": 0.5}, r"stochastic_depth: expected 0 for .*cannot be left out.*--stochastic-depth"),
            ({"exit_weights": (1.0, 2.0)}, r"exit_weights: expected \d, one for each .*got 2"),
            ({"exits": (1,)}, r"exits: expected a network without, got .*Leave --exits out"),
        ],
    )
    def test_what_does_not_suit_is_told_before_anything_is_written(self, config, options, match, data):
        with pytest.raises(ValueError, match=match):
            pretrain(replace(config, **options), data=data, quiet=True)
        assert not config.out.exists()

    def test_weights_of_no_exits(self, config, data):
        with pytest.raises(ValueError, match="exit_weights: expected none for resnet8-w4 without exits"):
            pretrain(replace(config, backbone="resnet8-w4", exit_weights=(1.0,)), data=data, quiet=True)

    def test_weights_out_of_range(self, config):
        with pytest.raises(ValueError, match="exit_weights: expected numbers above 0"):
            replace(config, exit_weights=(0.0, 1.0, 1.0))
