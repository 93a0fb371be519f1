"""Inner channels: which layers they lie between, smaller copies of blocks, training that leaves some out."""

import pytest
import torch
from torchvision.models.resnet import Bottleneck

from skipgym.backbones import make_backbone
from skipgym.backbones.channels import drop_channels, gated_blocks, inner_layers, kept
from skipgym.backbones.cifar_resnet import CifarBlock
from skipgym.backbones.recipe import PretrainConfig, Recipe
from skipgym.backbones.trainer import Trainer
from skipgym.data import load

X = torch.randn((3, 4, 6, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def block(randomise):
    torch.manual_seed(0)
    return randomise(CifarBlock(4, 8, 2))


@pytest.mark.parametrize("channels", [range(3), range(8), (1, 6)])
def test_a_kept_channel_counts_and_others_are_as_if_zero(block, channels):
    mask = torch.zeros(8)
    mask[list(channels)] = 1
    with torch.no_grad():
        found = kept(block, channels)(X)
        block.conv2.register_forward_pre_hook(lambda _, x: x[0] * mask.view(-1, 1, 1))
        torch.testing.assert_close(found, block(X), rtol=1e-4, atol=1e-4)


def test_copies_are_smaller_and_the_block_stays(block):
    before = {key: value.clone() for key, value in block.state_dict().items()}
    one = kept(block, range(2))
    assert (one.conv1.weight.shape, one.conv2.weight.shape) == ((2, 4, 3, 3), (8, 2, 3, 3))
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())


def test_neurons_of_a_transformer_lie_between_its_connected_layers(random_backbone):
    block = random_backbone("vit_tiny").network.get_submodule("encoder.layers.encoder_layer_0")
    assert inner_layers(block).channels == 128
    tokens = torch.randn(2, 5, 64)
    with torch.no_grad():
        found = kept(block, range(32))(tokens)
        block.mlp[3].register_forward_pre_hook(lambda _, x: x[0] * (torch.arange(128) < 32))
        torch.testing.assert_close(found, block(tokens), rtol=1e-4, atol=1e-4)


def test_bottlenecks_have_inner_channels_and_fire_modules_none():
    assert inner_layers(Bottleneck(8, 4)).channels == 4
    with pytest.raises(ValueError, match="two layers with channels between them, got features"):
        gated_blocks(make_backbone("squeezenet1_1", input_shape=(3, 64, 64)), 4)


class TestTraining:
    def test_leaves_channels_out_in_training_only(self, random_backbone):
        backbone, x = random_backbone("resnet8-w4"), torch.randn(64, 1, 8, 8)
        hooks, seen = drop_channels(backbone, 4), []
        handle = backbone.network.layer1[0].conv2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        backbone.train()(x)
        backbone.eval()(x)
        empty = [(one == 0).all(dim=(0, 2, 3)).sum() for one in seen[0].split(1)]
        assert {int(count) for count in empty} >= {0, 1, 2, 3}
        assert not (seen[0][:, 0] == 0).all(dim=(1, 2)).all()
        for hook in (*hooks, handle):
            hook.remove()
        assert not backbone.network.layer1[0].conv2._forward_pre_hooks

    def test_is_another_training_and_leaves_no_trace(self):
        data, found = load("digits"), []
        for groups in (0, 4, 4):
            torch.manual_seed(0)
            backbone = make_backbone("resnet8-w4", **data.shape)
            trainer = Trainer(backbone, data, Recipe(epochs=1, batch_size=256, channel_groups=groups))
            trainer.run_epoch()
            found.append(trainer.finish().fingerprint())
            assert not any(module._forward_pre_hooks for module in backbone.modules())
        assert found[0] != found[1] == found[2]

    def test_recipes_without_it_keep_their_digits(self, tmp_path):
        assert Recipe().digest() != Recipe(channel_groups=4).digest()
        assert "channel_groups" not in PretrainConfig(out=tmp_path).as_json()
        assert "--channel-groups 4" in PretrainConfig(out=tmp_path, channel_groups=4).command()

    def test_one_group_and_groups_that_do_not_fit_are_refused(self, random_backbone):
        with pytest.raises(ValueError, match="channel_groups: expected 0, or 2"):
            Recipe(channel_groups=1)
        with pytest.raises(ValueError, match=r"divides the channels, got 3 for the 4 of layer1\.0"):
            drop_channels(random_backbone("resnet8-w4"), 3)
