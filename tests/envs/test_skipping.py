"""Tasks whose pieces are the backbone's blocks: what is executed, and what it costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skipgym.backbones import wrap
from skipgym.envs import Hard, Masked, Soft, make_task, one_hot

from .conftest import World, follow


def weights_of(world, seed):
    """Return soft decisions as weights to execute. Shape (N, blocks)."""
    return torch.rand((7, len(world.task.pieces)), generator=torch.Generator().manual_seed(seed))


def soft_run(world, execute):
    """Run soft decisions, given the weight of executing each block (N, blocks)."""
    parts = len(world.task.decisions)

    def decide(state):
        mine = execute[state.rows, state.position * parts : (state.position + 1) * parts]
        return Soft([torch.stack([1 - w, w], 1) for w in mine.unbind(1)])

    return follow(world.task, world.inputs, decide)


def test_all_execute_equals_the_untouched_network(skipping_world):
    world = skipping_world
    run = world.follow(torch.ones_like(world.actions(0)))
    with torch.no_grad():
        untouched = world.task.backbone.network(world.inputs)
    assert (run.logits - untouched).abs().max() <= 1e-4 * untouched.abs().max()
    assert run.macs.tolist() == [world.task.full_macs] * 7


@given(seed=st.integers(0, 10**6))
def test_cost_is_stem_and_head_and_what_was_chosen(skipping_world, seed):
    world, net = skipping_world, skipping_world.task.backbone
    actions = world.actions(seed)
    for row, macs in zip(actions.flatten(1).tolist(), world.follow(actions).macs.tolist(), strict=True):
        chosen = [b.macs if kept else b.bypass_macs for b, kept in zip(net.blocks, row, strict=True)]
        assert macs == net.stem_macs + sum(chosen) + net.head_macs


def test_all_skip_costs_the_least(skipping_world):
    world = skipping_world
    run = world.follow(torch.zeros_like(world.actions(0)))
    assert run.macs.tolist() == [world.task.backbone.least_macs] * 7


@given(seed=st.integers(0, 10**6))
def test_answer_is_that_of_chaining_what_was_chosen(skipping_world, seed):
    world, net = skipping_world, skipping_world.task.backbone
    actions = world.actions(seed)
    logits = world.follow(actions).logits
    for i, row in enumerate(actions.flatten(1).tolist()):
        with torch.no_grad():
            x = net.stem(world.inputs[i : i + 1])
            for block, kept in zip(net.blocks, row, strict=True):
                x = block.run(x) if kept else block.bypass(x)
            expected = net.head(x)[0]
        assert (logits[i] - expected).abs().max() <= 1e-4 * expected.abs().max()


@given(seed=st.integers(0, 10**6))
def test_skipped_blocks_are_not_executed(skipping_world, seed):
    world, rows = skipping_world, {}

    def count(module, inputs, output):
        rows[module] = rows.get(module, 0) + len(inputs[0])

    blocks = world.task.backbone.blocks
    hooks = [block.body.register_forward_hook(count) for block in blocks]
    try:
        actions = world.actions(seed)
        world.follow(actions)
    finally:
        for hook in hooks:
            hook.remove()
    assert [rows.get(block.body, 0) for block in blocks] == actions.flatten(1).sum(0).tolist()


@given(seed=st.integers(0, 10**6))
def test_soft_cost_is_linear_in_the_weights(skipping_world, seed):
    world, net = skipping_world, skipping_world.task.backbone
    execute = weights_of(world, seed)
    with torch.no_grad():
        macs = soft_run(world, execute).macs
    costs = torch.tensor([[b.bypass_macs, b.macs] for b in net.blocks], dtype=torch.float64)
    expected = net.stem_macs + net.head_macs + ((1 - execute) * costs[:, 0] + execute * costs[:, 1]).sum(1)
    assert torch.allclose(macs, expected, rtol=1e-6)


def test_gradient_of_the_cost_is_what_executing_a_block_adds(skipping_world):
    world = skipping_world
    execute = weights_of(world, 0).requires_grad_()
    soft_run(world, execute).macs.sum().backward()
    added = [block.macs - block.bypass_macs for block in world.task.backbone.blocks]
    assert torch.allclose(execute.grad, torch.tensor(added).float().expand(7, -1))


class TestShortcutsThatCost:
    """On torchvision's ResNets a skipped downsampling block still pays for its projection."""

    @pytest.mark.parametrize("name", ["layer-skip", "block-drop"])
    def test_projection_is_charged_when_its_block_is_skipped(self, random_backbone, name):
        task = make_task(name, random_backbone("resnet18", input_shape=(3, 32, 32)))
        x = torch.randn(1, 3, 32, 32)
        zeros = torch.zeros(1, 1 if name == "layer-skip" else 8, dtype=torch.long)
        decide = (lambda s: Hard(zeros[:, 0])) if name == "layer-skip" else (lambda s: Hard(zeros))
        with torch.no_grad():
            macs = follow(task, x, decide).macs
        stem, projection, head = 3 * 64 * 49 * 16 * 16, 64 * 128 * 4 * 4, 512 * 4
        assert macs.tolist() == [stem + 3 * projection + head]


@pytest.mark.parametrize("name", ["layer-skip", "block-drop"])
def test_hard_equals_masked_equals_soft_on_a_users_network_with_in_place_glue(randomise, name):
    torch.manual_seed(0)
    glue = [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)]
    blocks = [nn.Conv2d(4, 4, 3, padding=1), glue[0], nn.Conv2d(4, 4, 1), glue[1], nn.Conv2d(4, 4, 1)]
    network = randomise(nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), *blocks, nn.Flatten(), nn.Linear(256, 3)))
    task = make_task(name, wrap(network, ["2", "4", "6"], input_shape=(1, 8, 8)))
    world = World(task, 3 * torch.randn(7, 1, 8, 8))
    actions = world.actions(0)
    hard, masked, soft = (world.follow(actions, kind) for kind in (Hard, Masked, lambda a: one_hot(a, task.decisions)))
    assert torch.allclose(masked.logits, hard.logits, atol=1e-4)
    assert torch.allclose(soft.logits, hard.logits, atol=1e-4)
    with torch.no_grad():
        untouched = network(world.inputs.clone())
    assert torch.allclose(world.follow(torch.ones_like(actions)).logits, untouched, atol=1e-4)


class TestLayerSkip:
    def test_observation_is_the_mean_of_each_channel_then_zeros(self, tiny_backbone):
        task = make_task("layer-skip", tiny_backbone)
        state = task.begin(torch.randn(2, 1, 8, 8))
        assert task.observation_shape == (8,)  # before the third block there are 8 channels
        observed = task.observe(state)
        assert torch.allclose(observed[:, :4], state.features.mean((2, 3)), atol=1e-6)
        assert observed[:, 4:].eq(0).all()

    def test_grid_observes_each_cell(self, tiny_backbone):
        task = make_task("layer-skip", tiny_backbone, grid=2)
        state = task.begin(torch.randn(2, 1, 8, 8))
        assert task.observation_shape == (8 * 4,)
        corner = state.features[:, 1, :4, 4:].mean((1, 2))  # second channel, upper right
        assert torch.allclose(task.observe(state)[:, 5], corner, atol=1e-6)

    def test_tokens_are_observed_by_the_class_token(self, random_backbone):
        task = make_task("layer-skip", random_backbone("vit_tiny", input_shape=(3, 8, 8)))
        state = task.begin(torch.randn(2, 3, 8, 8))
        assert torch.equal(task.observe(state), state.features[:, 0])

    def test_blocks_are_decided_in_turn(self, tiny_backbone):
        task = make_task("layer-skip", tiny_backbone)
        assert (task.horizon, task.decisions, task.pieces) == (3, (2,), ["layer1.0", "layer2.0", "layer3.0"])

    @pytest.mark.parametrize("grid", [0, 9, -1])
    def test_grid_out_of_range_is_refused(self, tiny_backbone, grid):
        with pytest.raises(ValueError, match=f"grid: expected 1 … 8, got {grid}"):
            make_task("layer-skip", tiny_backbone, grid=grid)


class TestBlockDrop:
    def test_observation_is_the_image_averaged_down(self, tiny_backbone):
        task = make_task("block-drop", tiny_backbone, thumbnail=4)
        images = torch.randn(2, 1, 8, 8)
        observed = task.observe(task.begin(images))
        assert observed.shape == (2, *task.observation_shape) == (2, 1, 4, 4)
        assert torch.allclose(observed[:, :, 1, 3], images[:, :, 2:4, 6:8].mean((2, 3)), atol=1e-6)

    def test_small_images_are_not_blown_up(self, tiny_backbone):
        assert make_task("block-drop", tiny_backbone, thumbnail=32).observation_shape == (1, 8, 8)

    def test_oblong_images_keep_their_form(self, random_backbone):
        task = make_task("block-drop", random_backbone(input_shape=(1, 8, 16)), thumbnail=8)
        assert task.observation_shape == (1, 4, 8)

    def test_all_blocks_are_decided_at_once(self, tiny_backbone):
        task = make_task("block-drop", tiny_backbone)
        assert (task.horizon, task.decisions) == (1, (2, 2, 2))

    @pytest.mark.parametrize("thumbnail", [3, 0, -5])
    def test_thumbnail_out_of_range_is_refused(self, tiny_backbone, thumbnail):
        with pytest.raises(ValueError, match=f"thumbnail: expected at least 4 pixels, got {thumbnail}"):
            make_task("block-drop", tiny_backbone, thumbnail=thumbnail)
