from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from skipgym.backbones import make_backbone
from skipgym.backbones.backbone import Backbone
from skipgym.backbones.recipe import Recipe
from skipgym.backbones.scaling import scaled
from skipgym.backbones.trainer import (
    Trainer,
    accuracy,
    at_least_two,
    derived_seed,
    draw_keep,
    forward_kept,
    hold_statistics,
    keeps_shape,
    random_half,
    soft_label_loss,
    spare_hard,
)
from skipgym.data import Augment, ImageData, Part

BACKBONE = "resnet8-w4"  # 3 blocks
BLOCKS = 3


def untrained(seed: int) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_backbone(BACKBONE, num_classes=2, input_shape=(1, 8, 8))


def trainer(data: ImageData, recipe: Recipe) -> Trainer:
    return Trainer(untrained(recipe.seed), data, recipe)


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in backbone.network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def count_rows(backbone: Backbone) -> Tensor:
    """Return a tensor that counts the rows which each block executes from now on."""
    rows = torch.zeros(len(backbone.blocks), dtype=torch.int64)

    def hook(i: int):
        def count(_: torch.nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
            rows[i] += len(inputs[0])

        return count

    for i, block in enumerate(backbone.blocks):
        block.body.register_forward_hook(hook(i))
    return rows


class TestTraining:
    def test_loss_falls_and_the_task_is_learned(self, data):
        learner = trainer(data, Recipe(epochs=8, batch_size=16, lr=0.05))
        losses = [learner.run_epoch()["loss"] for _ in range(8)]
        assert losses[-1] < losses[0] / 2
        assert accuracy(learner.finish(), data.val) > 0.9

    def test_without_stochastic_depth_it_is_plain_sgd(self, data):
        recipe = Recipe(epochs=2, batch_size=16, lr=0.05, channels_last=False)
        learner, plain = trainer(data, recipe), untrained(0)
        options = {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
        optimizer = torch.optim.SGD(plain.network.parameters(), lr=1.0, **options)
        for epoch in range(2):
            for step, batch in enumerate(learner.batches(epoch)):
                assert bool((batch.keep == 1).all())
                optimizer.param_groups[0]["lr"] = recipe.lr_at((3 * epoch + step) / 6)
                optimizer.zero_grad()
                F.cross_entropy(plain.network.train()(batch.x), batch.labels).backward()
                optimizer.step()
        learner.run_epoch()
        learner.run_epoch()
        assert same(weights(learner.backbone), weights(plain))

    def test_only_the_train_part_moves_weights(self, data):
        def poisoned(part: Part) -> Part:
            return Part(255 - part.images, 1 - part.labels)

        other = replace(data, policy=poisoned(data.policy), val=poisoned(data.val), test=poisoned(data.test))
        recipe = Recipe(epochs=2, batch_size=16, stochastic_depth=0.5)
        first, second = trainer(data, recipe), trainer(other, recipe)
        for learner in (first, second):
            learner.run_epoch()
            learner.run_epoch()
        assert same(weights(first.backbone), weights(second.backbone))

    def test_an_epoch_depends_on_seed_and_epoch_only(self, data):
        recipe = Recipe(epochs=3, batch_size=16, stochastic_depth=0.5)
        fresh, used = trainer(data, recipe), trainer(data, recipe)
        used.run_epoch()
        torch.rand(5)
        for first, second in zip(fresh.batches(2), used.batches(2), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        other = next(fresh.batches(1))
        assert not torch.equal(next(fresh.batches(2)).x, other.x)

    def test_global_random_state_is_left_alone(self, data):
        before = torch.random.get_rng_state()
        trainer(data, Recipe(epochs=1, batch_size=16, stochastic_depth=0.5)).run_epoch()
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_best_epoch_is_kept_on_val(self, data):
        recipe = Recipe(epochs=3, batch_size=16, lr=0.05, keep="best")
        learner, after = trainer(data, recipe), []
        for _ in range(3):
            learner.run_epoch()
            after.append(weights(learner.backbone))
        scores = [metrics["val_full"] for metrics in learner.history]
        best = max(epoch for epoch in range(3) if scores[epoch] == max(scores))
        assert same(weights(learner.finish()), after[best])

    def test_divergence_is_told(self, data):
        learner = trainer(data, Recipe(epochs=1, batch_size=16, lr=1e30))
        with pytest.raises(ValueError, match=r"diverged: expected a finite loss, got \w+ in epoch 1. Lower --lr"):
            learner.run_epoch()


class TestStochasticDepth:
    def test_a_block_runs_on_the_rows_that_keep_it_only(self, data):
        backbone = make_backbone(BACKBONE, num_classes=2, input_shape=(1, 8, 8)).eval()
        rows = count_rows(backbone)
        keep = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 1]])
        with torch.no_grad():
            forward_kept(backbone, torch.zeros(4, 1, 8, 8), keep)
        assert rows.tolist() == [3, 0, 3]

    def test_training_runs_as_many_rows_as_were_drawn(self, data):
        learner = trainer(data, Recipe(epochs=1, batch_size=16, stochastic_depth=0.7))
        expected = sum(at_least_two(batch.keep).sum(0) for batch in learner.batches(0))
        rows = count_rows(learner.backbone)
        learner._train_epoch(0, quiet=True)
        assert torch.equal(rows, expected)
        assert rows[2] < 48 / 2 < rows[0] < 48

    def test_all_kept_equals_the_whole_network(self, data):
        backbone = make_backbone(BACKBONE, num_classes=2, input_shape=(1, 8, 8)).eval()
        x = torch.randn(5, 1, 8, 8)
        assert torch.equal(forward_kept(backbone, x, torch.ones(5, BLOCKS, dtype=torch.int64)), backbone.network(x))

    def test_none_kept_is_all_bypasses(self, data):
        backbone = make_backbone(BACKBONE, num_classes=2, input_shape=(1, 8, 8)).eval()
        x = torch.randn(5, 1, 8, 8)
        expected = backbone.stem(x)
        for block in backbone.blocks:
            expected = block.bypass(expected)
        none = torch.zeros(5, BLOCKS, dtype=torch.int64)
        assert torch.equal(forward_kept(backbone, x, none), backbone.head(expected))

    def test_linear_and_uniform_schedules(self):
        linear = Recipe(stochastic_depth=0.5).skip_probabilities([True, True, False, True])
        assert linear.tolist() == [0.125, 0.25, 0.375, 0.5]
        uniform = Recipe(stochastic_depth=0.5, depth_schedule="uniform").skip_probabilities([True, False])
        assert uniform.tolist() == [0.5, 0.5]

    def test_inner_schedule_spares_blocks_that_change_the_shape(self):
        inner = Recipe(stochastic_depth=0.25, depth_schedule="inner").skip_probabilities([True, False, True, False])
        assert inner.tolist() == [0.25, 0.0, 0.25, 0.0]

    def test_inner_schedule_never_leaves_out_the_first_block_of_a_later_stage(self, data):
        backbone = make_backbone("resnet14-w4", num_classes=2, input_shape=(1, 8, 8))
        assert keeps_shape(backbone) == [True, True, False, True, False, True]
        recipe = Recipe(epochs=1, batch_size=16, stochastic_depth=0.9, depth_schedule="inner")
        keep = torch.cat([batch.keep for batch in Trainer(backbone, data, recipe).batches(0)]).double().mean(0)
        assert keep[[2, 4]].tolist() == [1, 1]
        assert bool((keep[[0, 1, 3, 5]] < 0.5).all())

    def test_blocks_are_left_out_as_often_as_asked(self):
        keep = draw_keep(torch.tensor([0.0, 0.25, 0.9]), 20_000, torch.Generator().manual_seed(0))
        skipped = 1 - keep.double().mean(0)
        assert skipped[0] == 0
        assert skipped[1:].tolist() == pytest.approx([0.25, 0.9], abs=0.01)

    def test_a_block_never_trains_on_a_single_row(self):
        keep = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 0]])
        assert at_least_two(keep).tolist() == [[1, 0, 1], [1, 0, 1], [1, 0, 0]]

    def test_random_half_keeps_half_of_each_image(self):
        keep = random_half(100, 9, seed=0)
        assert bool((keep.sum(1) == 4).all())
        assert bool((keep.sum(0) > 20).all())

    def test_distillation_trains_full_and_skipped_paths(self, data):
        learner = trainer(data, Recipe(epochs=1, batch_size=16, stochastic_depth=0.9, distill=2.0))
        batch = next(learner.batches(0))
        learner.backbone.train()
        full, skipped = learner.backbone(batch.x), forward_kept(learner.backbone, batch.x, at_least_two(batch.keep))
        expected = F.cross_entropy(full, batch.labels) + 2 * soft_label_loss(skipped, full)
        assert learner._loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_soft_label_loss_is_kl_from_the_teacher_and_does_not_teach_it(self):
        teacher, student = torch.tensor([[0.0, 0.0]], requires_grad=True), torch.tensor([[3.0, 0.0]]).log()
        student.requires_grad_()
        student.data = torch.log(torch.tensor([[0.75, 0.25]]))
        loss = soft_label_loss(student, teacher)
        expected = 0.5 * torch.log(torch.tensor(0.5 / 0.75)) + 0.5 * torch.log(torch.tensor(0.5 / 0.25))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        loss.backward()
        assert teacher.grad is None


class TestSparingHardImages:
    logits = torch.tensor([[0.8, 0.2], [0.5, 0.5]]).log()
    skipped = torch.zeros(2, 3, dtype=torch.int64)

    def test_an_image_is_skipped_in_where_its_coin_is_below_the_labels_probability_to_the_power(self):
        coin = torch.tensor([0.63, 0.26])  # 0.8² = 0.64, 0.5² = 0.25
        keep = spare_hard(self.skipped, self.logits, torch.tensor([0, 0]), coin, power=2)
        assert keep.tolist() == [[0, 0, 0], [1, 1, 1]]

    def test_what_was_kept_stays_kept(self):
        drawn = torch.tensor([[1, 0, 1], [0, 1, 0]])
        keep = spare_hard(drawn, self.logits, torch.tensor([0, 0]), torch.zeros(2), power=3)
        assert torch.equal(keep, drawn)

    def test_an_image_of_which_the_network_is_surely_wrong_runs_in_full(self):
        sure = torch.tensor([[100.0, 0.0]])
        keep = spare_hard(self.skipped[:1], sure, torch.tensor([1]), torch.tensor([1e-6]), power=1)
        assert keep.tolist() == [[1, 1, 1]]

    @pytest.mark.parametrize("distill", [0.0, 1.0])
    def test_training_runs_more_blocks_of_hard_images(self, data, distill):
        recipe = Recipe(epochs=1, batch_size=16, stochastic_depth=0.9, depth_schedule="uniform", distill=distill)
        even, sparing = trainer(data, recipe), trainer(data, replace(recipe, spare_hard=50.0))
        counts = [count_rows(learner.backbone) for learner in (even, sparing)]
        for learner in (even, sparing):
            learner._train_epoch(0, quiet=True)
        glance = 0 if distill else 48  # the look at the full path, in evaluation mode
        assert bool((counts[1] > counts[0] + glance).all())

    def test_looking_at_the_full_path_leaves_the_statistics_of_batchnorm_alone(self, data):
        learner = trainer(data, Recipe(epochs=1, batch_size=16, stochastic_depth=0.5, spare_hard=3.0))
        before = weights(learner.backbone)
        learner.backbone.train()
        learner._glance(next(learner.batches(0)).x)
        assert same(weights(learner.backbone), before)
        assert learner.backbone.training


class TestSchedule:
    def test_one_cycle(self):
        recipe = Recipe(lr=1.0)
        points = [recipe.lr_at(progress) for progress in (0, 0.15, 0.3, 0.65, 1)]
        assert points == pytest.approx([0.04, 0.52, 1.0, 0.5, 0.0])

    def test_cosine(self):
        recipe = Recipe(lr=1.0, schedule="cosine")
        assert [recipe.lr_at(progress) for progress in (0, 0.5, 1)] == pytest.approx([1.0, 0.5, 0.0])


class TestScales:
    recipe = Recipe(epochs=5, batch_size=16, lr=0.05, scales=(4, 6, 8))

    def test_each_step_is_at_the_scale_that_the_epochs_generator_draws_last(self, data):
        learner = trainer(data, self.recipe)
        generator = torch.Generator().manual_seed(derived_seed(0, 2))
        torch.randperm(48, generator=generator)
        torch.rand((48, Augment.draws), generator=generator)
        torch.rand((48, BLOCKS), generator=generator)  # who keeps which block
        torch.rand(48, generator=generator)  # coins
        drawn = [(4, 6, 8)[i] for i in torch.randint(3, (3,), generator=generator).tolist()]
        assert [batch.x.shape[2] for batch in learner.batches(2)] == drawn
        sizes = {batch.x.shape[2] for epoch in range(5) for batch in learner.batches(epoch)}
        assert sizes == {4, 6, 8}

    def test_images_of_a_step_are_those_of_the_plain_recipe_scaled(self, data):
        plain = trainer(data, replace(self.recipe, scales=()))
        for of, whole in zip(trainer(data, self.recipe).batches(1), plain.batches(1), strict=True):
            assert torch.equal(of.labels, whole.labels)
            assert torch.equal(of.x, scaled(whole.x, of.x.shape[2]))

    def test_statistics_stay_in_the_last_fifth(self, data):
        learner, means = trainer(data, self.recipe), []
        for _ in range(5):
            learner.run_epoch()
            means.append(learner.backbone.network.get_buffer("bn1.running_mean").clone())
        assert [torch.equal(a, b) for a, b in pairwise(means)] == [False, False, False, True]
        assert [self.recipe.settled(epoch) for epoch in range(5)] == [False] * 4 + [True]
        assert not replace(self.recipe, scales=()).settled(4)

    def test_glance_at_the_full_path_leaves_held_statistics_held(self, data):
        learner = trainer(data, self.recipe)
        learner.backbone.train()
        hold_statistics(learner.backbone)
        learner._glance(torch.zeros(2, 1, 8, 8))
        norms = [one for one in learner.backbone.modules() if isinstance(one, torch.nn.BatchNorm2d)]
        assert not any(one.training for one in norms)
        assert learner.backbone.blocks[0].training

    def test_resumed_training_ends_with_the_same_weights(self, data):
        whole, first = trainer(data, self.recipe), trainer(data, self.recipe)
        for _ in range(5):
            whole.run_epoch()
        for _ in range(2):
            first.run_epoch()
        second = trainer(data, self.recipe)
        second.load_state_dict(first.state_dict())
        for _ in range(3):
            second.run_epoch()
        assert same(weights(whole.backbone), weights(second.backbone))

    def test_accuracy_is_told_at_each_scale(self, data):
        learner = trainer(data, self.recipe)
        metrics = learner.run_epoch()
        assert metrics["val_at_4"] == accuracy(learner.backbone, data.val, scale=4)
        assert metrics["val_full"] == accuracy(learner.backbone, data.val, scale=8)
        assert list(learner.measure(data.test)) == ["full", "at_4", "at_6"]

    @pytest.mark.parametrize(
        ("scales", "match"),
        [((4, 6), "expected the last to be 8"), ((4, 8, 16), "got 16, more than there is")],
    )
    def test_scales_that_do_not_end_with_the_images_are_refused(self, data, scales, match):
        with pytest.raises(ValueError, match=match):
            trainer(data, replace(self.recipe, scales=scales))

    def test_recipe_without_scales_keeps_its_digits(self):
        assert Recipe().digest() == "875089c3ec2c887b"  # from before there were scales, widths and weights of exits
        assert Recipe(scales=(4, 8)).digest() != Recipe(scales=(6, 8)).digest() != Recipe().digest()
