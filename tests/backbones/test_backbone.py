import re

import pytest
import torch

from skipgym.backbones import make_backbone
from skipgym.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD

CASES = [("resnet14-w4", (1, 8, 8)), ("resnet18", (3, 32, 32)), ("vit_tiny", (3, 16, 16))]


def images(backbone, count=3):
    shape = (count, *backbone.input_shape)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_pieces_chained_equal_the_untouched_network_bit_for_bit(random_backbone, name, shape):
    backbone = random_backbone(name, input_shape=shape)
    x = backbone.prepare(images(backbone))
    with torch.no_grad():
        untouched = backbone.network(x)
        chained = backbone.stem(x)
        for block in backbone.blocks:
            chained = block.body(chained)
        assert torch.equal(backbone.head(chained), untouched)
        assert torch.equal(backbone(x), untouched)
    assert untouched.std(0).min() > 0  # the network tells images apart


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_declared_shapes_are_the_real_ones(random_backbone, name, shape):
    backbone = random_backbone(name, input_shape=shape)
    seen = {}
    for block in backbone.blocks:
        module = backbone.network.get_submodule(block.name)
        module.register_forward_hook(
            lambda _, inputs, output, name=block.name: seen.update({name: (inputs[0].shape[1:], output.shape[1:])})
        )
    with torch.no_grad():
        logits = backbone.network(backbone.prepare(images(backbone)))
    assert seen == {block.name: (block.in_shape, block.out_shape) for block in backbone.blocks}
    assert backbone.num_classes == logits.shape[1] == 4


def test_bypass_of_a_downsampling_block_is_its_projection_and_relu(random_backbone):
    backbone = random_backbone("resnet18", input_shape=(3, 32, 32))
    block = next(block for block in backbone.blocks if block.name == "layer2.0")
    x = torch.rand(2, *block.in_shape)
    downsample = backbone.network.get_submodule("layer2.0.downsample")
    with torch.no_grad():
        assert torch.equal(block.bypass(x), downsample(x).clamp(min=0))


def test_bypass_of_any_other_residual_block_is_the_identity(random_backbone):
    for block in random_backbone("vit_tiny", input_shape=(3, 8, 8)).blocks:
        x = torch.randn(2, *block.in_shape)
        assert torch.equal(block.bypass(x), x)


def test_building_leaves_mode_and_weights_of_the_network(random_backbone):
    backbone = random_backbone()
    network, before = backbone.network.train(), {k: v.clone() for k, v in backbone.network.state_dict().items()}
    rebuilt = type(backbone)(network, [block.name for block in backbone.blocks], name="again", input_shape=(1, 8, 8))
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in rebuilt.network.state_dict().items())


class TestPrepare:
    def test_values_are_normalised_as_by_hand(self):
        backbone = make_backbone("resnet8-w4", input_shape=(1, 8, 8), mean=(0.2,), std=(0.5,))
        x = backbone.prepare(torch.full((2, 1, 8, 8), 51, dtype=torch.uint8))  # 51 / 255 = 0.2
        assert torch.allclose(x, torch.zeros(2, 1, 8, 8), atol=1e-6)
        assert torch.allclose(backbone.prepare(torch.ones(1, 1, 8, 8)), torch.tensor(1.6))  # (1 - 0.2) / 0.5

    def test_bytes_and_floats_agree(self, random_backbone):
        backbone = random_backbone(input_shape=(3, 8, 8))
        pixels = images(backbone)
        assert torch.allclose(backbone.prepare(pixels), backbone.prepare(pixels.float() / 255), atol=1e-5)

    def test_half_precision_becomes_single(self, tiny_backbone):
        assert tiny_backbone.prepare(torch.zeros(1, 1, 8, 8, dtype=torch.float16)).dtype == torch.float32

    def test_grey_images_are_repeated_for_a_colour_backbone(self):
        backbone = make_backbone("resnet8-w4", input_shape=(3, 8, 8))
        x = backbone.prepare(torch.ones(2, 1, 8, 8))
        expected = [(1 - mean) / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
        assert x.shape == (2, 3, 8, 8)
        assert torch.allclose(x[1, :, 4, 5], torch.tensor(expected))

    def test_images_are_left_as_they_are(self, tiny_backbone):
        pixels = torch.full((1, 1, 8, 8), 0.25)
        tiny_backbone.prepare(pixels)
        assert torch.equal(pixels, torch.full((1, 1, 8, 8), 0.25))


class TestCheckImages:
    @pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 8, 8)])
    def test_colour_and_grey_images_of_the_size_pass(self, random_backbone, shape):
        backbone = random_backbone(input_shape=(3, 8, 8))
        backbone.check_images(torch.zeros(shape, dtype=torch.uint8))
        backbone.check_images(torch.zeros(shape))

    @pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 2, 8, 8), (3, 8, 8), (0, 3, 8, 8), (2, 8, 8, 3)])
    def test_other_shapes_and_empty_batches_are_refused(self, random_backbone, shape):
        with pytest.raises(ValueError, match=re.escape(f"C x H x W = 3 x 8 x 8, got {shape}. Resize them")):
            random_backbone(input_shape=(3, 8, 8)).check_images(torch.zeros(shape))

    def test_colour_images_are_refused_by_a_grey_backbone(self, tiny_backbone):
        with pytest.raises(ValueError, match=r"1 x 8 x 8, got \(2, 3, 8, 8\)"):
            tiny_backbone.check_images(torch.zeros(2, 3, 8, 8))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int8])
    def test_other_types_are_refused(self, tiny_backbone, dtype):
        with pytest.raises(ValueError, match=f"expected uint8 or finite floats in 0…1, got {dtype}"):
            tiny_backbone.check_images(torch.zeros(2, 1, 8, 8, dtype=dtype))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_numbers_that_are_not_finite_are_refused(self, tiny_backbone, value):
        pixels = torch.zeros(2, 1, 8, 8)
        pixels[1, 0, 3, 3] = value
        with pytest.raises(ValueError, match="finite floats"):
            tiny_backbone.check_images(pixels)


class TestFingerprint:
    def test_any_weight_or_buffer_changes_it(self, random_backbone):
        backbone = random_backbone()
        state = backbone.network.state_dict()
        seen = {backbone.fingerprint()}
        for value in state.values():
            value.view(-1)[0] += 1
            seen.add(backbone.fingerprint())
        assert len(seen) == len(state) + 1

    def test_same_weights_have_the_same(self, random_backbone):
        assert random_backbone(seed=3).fingerprint() == random_backbone(seed=3).fingerprint()
        assert random_backbone(seed=3).fingerprint() != random_backbone(seed=4).fingerprint()

    def test_it_survives_another_memory_layout(self, random_backbone):
        backbone = random_backbone()
        before = backbone.fingerprint()
        backbone.network.to(memory_format=torch.channels_last)
        assert backbone.fingerprint() == before
