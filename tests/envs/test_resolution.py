"""Resolution: cost by formula at each size, batches of each size apart, sizes that a network cannot take."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skipgym import Controller, wrap
from skipgym.agents.baselines import random_policy
from skipgym.agents.gate import Gate
from skipgym.agents.oracle import bounds
from skipgym.agents.path_policy import PathPolicy
from skipgym.agents.policy import GatePolicy, full_policy
from skipgym.agents.training import TrainConfig, train
from skipgym.backbones import make_backbone
from skipgym.backbones.scaling import scaled, scaled_size
from skipgym.data import load
from skipgym.envs import Hard, Layout, Masked, Resolution, Soft, make_task, rollout
from skipgym.envs.build import find_backbone, find_task
from skipgym.envs.outcomes import outcomes
from skipgym.envs.rollout import relax

IMAGES = torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(0))
choices = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def task(tiny_backbone):
    return make_task("resolution", tiny_backbone)


def resnet8_macs(side: int, width: int = 4, classes: int = 4) -> int:
    """Return the cost of a ResNet-8 on grey images: first convolution, three blocks of two, one linear layer."""
    half, quarter = -(-side // 2), -(-side // 4)
    first = 9 * width * side**2
    blocks = [2 * 9 * width**2 * side**2]
    blocks += [9 * (width * 2 * width + (2 * width) ** 2) * half**2]
    blocks += [9 * (2 * width * 4 * width + (4 * width) ** 2) * quarter**2]
    return first + sum(blocks) + 4 * width * classes


def run(task, actions, kind=Hard):
    actions = torch.tensor(actions)
    with torch.no_grad():
        return rollout(task, task.prepare(IMAGES[: len(actions)]), lambda s: kind(actions[s.rows]))


class TestExecution:
    def test_sizes_cost_what_the_formula_says(self, task):
        assert task.scales == (4, 6, 8)
        assert task.scale_macs == [resnet8_macs(side) for side in (4, 6, 8)]
        assert (task.least_macs, task.full_macs) == (resnet8_macs(4), resnet8_macs(8))

    @given(actions=choices)
    def test_answer_and_cost_are_those_of_the_network_on_the_scaled_image(self, task, actions):
        found = run(task, actions)
        for row, option in enumerate(actions):
            image = scaled(task.prepare(IMAGES[row : row + 1]), task.scales[option])
            assert image.shape[2:] == (task.scales[option],) * 2
            torch.testing.assert_close(found.logits[row], task.backbone(image)[0], rtol=1e-3, atol=1e-4)
            assert found.macs[row] == task.scale_macs[option]

    def test_rows_of_each_size_are_one_batch_of_their_own(self, task):
        seen = []
        handle = task.backbone.stem.register_forward_hook(lambda _m, x, _o: seen.append(tuple(x[0].shape)))
        run(task, [2, 0, 2, 0, 0])
        handle.remove()
        assert seen == [(3, 1, 4, 4), (2, 1, 8, 8)]

    @given(actions=choices)
    def test_routed_is_masked(self, task, actions):
        routed, masked = run(task, actions), run(task, actions, Masked)
        torch.testing.assert_close(routed.logits, masked.logits, rtol=1e-3, atol=1e-4)
        assert torch.equal(routed.macs, masked.macs)

    def test_own_size_is_the_untouched_network(self, task, tiny_backbone):
        x = task.prepare(IMAGES)
        torch.testing.assert_close(run(task, [2] * 6).logits, tiny_backbone.eval().network(x), rtol=1e-3, atol=1e-4)

    def test_mixtures_are_of_answers_and_cost_carries_gradients(self, task):
        weights = torch.tensor([[0.5, 0.25, 0.25]]).repeat(6, 1).requires_grad_()
        found = relax(task, task.begin(task.prepare(IMAGES)), lambda _: Soft(weights))
        ends = [run(task, [option] * 6).logits for option in range(3)]
        expected = 0.5 * ends[0] + 0.25 * ends[1] + 0.25 * ends[2]
        torch.testing.assert_close(found.logits, expected, rtol=1e-3, atol=1e-4)
        found.macs.sum().backward()
        assert weights.grad[0].tolist() == pytest.approx(task.scale_macs)

    def test_table_of_sizes_is_exact(self, task):
        table = outcomes(task, IMAGES, torch.zeros(6, dtype=torch.long), [(0,), (1,), (2,)])
        for option in range(3):
            assert table.answers[:, option].tolist() == run(task, [option] * 6).logits.argmax(1).tolist()
        assert table.macs.tolist() == task.scale_macs
        assert table.spent == 6 * sum(task.scale_macs)

    def test_oracle_is_exact(self, task, tiny_images):
        (bound, _) = bounds(task, tiny_images.policy, [1.0])
        assert (bound.exact, bound.paths) == (True, 3)


class TestObservation:
    def test_thumbnail_is_the_image_scaled_down(self, tiny_backbone):
        task = make_task("resolution", tiny_backbone, thumbnail=4)
        x = task.prepare(IMAGES)
        assert task.observation_shape == (1, 4, 4)
        assert torch.equal(task.observe(task.begin(x)), scaled(x, 4))

    def test_images_are_not_scaled_up(self, task):
        assert task.observation_shape == (1, 8, 8)

    @pytest.mark.parametrize("thumbnail", [3, 0])
    def test_too_small_a_thumbnail_is_refused(self, tiny_backbone, thumbnail):
        with pytest.raises(ValueError, match=f"thumbnail: expected at least 4 pixels, got {thumbnail}"):
            make_task("resolution", tiny_backbone, thumbnail=thumbnail)

    def test_longer_side_counts_and_the_shape_is_kept(self, random_backbone):
        task = make_task("resolution", random_backbone(input_shape=(1, 8, 16)), scales="8 16")
        assert scaled_size((8, 16), 8) == (4, 8)
        assert scaled(torch.rand(1, 1, 8, 16), 8).shape == (1, 1, 4, 8)
        assert task.scales == (8, 16)


class TestScales:
    @pytest.mark.parametrize("scales", ["4 8", "4,8", (4, 8), [4, 8]])
    def test_forms(self, tiny_backbone, scales):
        assert make_task("resolution", tiny_backbone, scales=scales).decisions == (2,)

    @pytest.mark.parametrize(
        ("scales", "match"),
        [
            ("8 4", "two or more rising numbers of pixels from 1 on, each once, got 8 4"),
            ("4 4 8", "each once, got 4 4 8"),
            ("8", "two or more rising numbers of pixels from 1 on, each once, got 8"),
            ("0 8", "from 1 on, each once, got 0 8"),
            ("", "got none"),
            ("4 8 16", "expected the last to be 8, the longer side of the images, got 16, more than there is"),
            ("4 6", "expected the last to be 8, the longer side of the images, got 6, less"),
            ("4.5 8", 'expected whole numbers of pixels, as in "64 96 128", got .4.5 8'),
            ([4.0, 8], "expected whole numbers"),
            ("four 8", "expected whole numbers"),
            (8, "expected whole numbers"),
        ],
    )
    def test_bad_ones_are_refused(self, tiny_backbone, scales, match):
        with pytest.raises(ValueError, match=match):
            make_task("resolution", tiny_backbone, scales=scales)

    def test_networks_smallest_size_is_told(self):
        net = make_backbone("squeezenet1_1", input_shape=(3, 32, 32))  # its pools run out of pixels
        with pytest.raises(
            ValueError, match=r"expected sizes at which squeezenet1_1 runs, got 8 \(.*\)\. Use 17 or more"
        ):
            make_task("resolution", net, scales="8 32")
        assert make_task("resolution", net, scales="17 32").scales == (17, 32)

    @pytest.mark.parametrize("name", ["vit_tiny"])
    def test_fixed_positions_are_told(self, random_backbone, name):
        with pytest.raises(ValueError, match=f"sizes at which {name} runs, got 4 .*It runs at its own size only"):
            make_task("resolution", random_backbone(name))

    def test_sizes_that_save_nothing_are_refused(self):
        net = wrap(
            nn.Sequential(nn.Conv2d(1, 2, 2, 2), nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)),
            ["1"],
            input_shape=(1, 7, 7),
        )
        with pytest.raises(ValueError, match="expected each to cost more than the one before, got 76 at 6, 76 at 7"):
            make_task("resolution", net, scales="6 7")


@pytest.fixture
def gate_controller(task):
    torch.manual_seed(0)
    gate = Gate(Layout.of(task, priced=False), task.decisions, hidden=8)
    nn.init.normal_(gate.head.weight, std=20.0)  # so that images differ in what is chosen
    return Controller(task, GatePolicy(gate.eval()))


def test_controller_is_the_same_when_loaded(gate_controller, tmp_path):
    loaded = Controller.load(gate_controller.save(tmp_path / "c"))
    first, again = gate_controller(IMAGES), loaded(IMAGES)
    torch.testing.assert_close(first.logits, again.logits)
    assert torch.equal(first.macs, again.macs)
    assert torch.equal(first.actions, again.actions)
    scale_macs = torch.tensor(loaded.task.scale_macs, dtype=torch.double)
    assert torch.equal(first.macs, scale_macs[first.actions[:, 0]] + loaded.policy.macs)


def test_full_policy_takes_the_own_size(task):
    assert Controller(task, full_policy(task))(IMAGES).compute.tolist() == [1.0] * 6


def test_random_policy_reaches_every_compute(task):
    images = IMAGES.repeat(100, 1, 1, 1)
    for compute in (0.3, 0.6, 0.9):
        found = Controller(task, random_policy(task, compute))(images)
        assert found.compute.mean().item() == pytest.approx(compute, abs=0.04)
        assert set(found.actions.unique().tolist()) == {0, 1, 2}


class TestFirstUse:
    def test_embedded_backbone_is_trained_at_the_tasks_sizes(self, monkeypatch):
        asked = {}
        monkeypatch.setattr(
            "skipgym.backbones.embedded.pretrained", lambda name, data, **changes: asked.update(changes) or name
        )
        data = load("digits")
        find_backbone("resnet20", data, None, recipe=Resolution.recipe(data))
        assert (asked["scales"], asked["stochastic_depth"]) == ((4, 6, 8), 0.0)
        find_backbone("resnet20", data, None, recipe=Resolution.recipe(data, scales="5 8"))
        assert asked["scales"] == (5, 8)

    def test_class_indices_without_weights_are_told(self):
        with pytest.raises(ValueError, match="class_indices: expected them with weights"):
            find_backbone("resnet20", load("digits"), None, classes=[1])


@pytest.fixture(scope="module")
def digits_task():
    """Return the default environment's task with a thin network, trained once and then cached."""
    data = load("digits")
    net = find_backbone("resnet8-w8", data, None, recipe=Resolution.recipe(data))
    return find_task("resolution", net, data), data


@pytest.mark.parametrize("agent", ["gumbel", "ppo", "imitate", "path-table"])
def test_learners_take_the_task(agent, digits_task):
    task, data = digits_task
    config = TrainConfig(task="resolution", agent=agent, price=0.3, images=200, num_envs=64, hidden=8)
    trained = train(config, task, data, quiet=True)
    assert isinstance(trained.controller.policy, PathPolicy if agent == "path-table" else GatePolicy)
    assert task.least_macs <= trained.val.macs - trained.val.policy_macs <= task.full_macs


def test_accuracy_rises_with_the_size(digits_task):
    task, data = digits_task
    right = outcomes(task, data.val.images, data.val.labels, [(0,), (1,), (2,)]).correct.double().mean(0).tolist()
    assert right[0] + 0.02 < right[2]
