import re

import pytest
import torch
from torch import nn

from skipgym.backbones import backbone_names, count_macs, make_backbone, register_backbone, registry


@pytest.mark.parametrize(
    ("name", "close"),
    [("resnt20", "resnet20"), ("vit_b16", "vit_b_16"), ("vittiny", "vit_tiny")],
)
def test_unknown_name_is_told_with_close_matches(name, close):
    with pytest.raises(
        ValueError, match=rf"unknown backbone: .*; got '{name}'\. Did you mean .*{close}.*skipgym\.wrap"
    ):
        make_backbone(name)


def test_names_have_descriptions():
    names = backbone_names()
    assert names["resnet20"] == "CIFAR ResNet of 20 layers, 9 blocks"
    assert names["resnet50"] == "torchvision ResNet-50"
    assert all(names.values())


def test_suffix_sets_the_width():
    network = make_backbone("resnet20-w8").network
    assert network.get_parameter("conv1.weight").shape == (8, 3, 3, 3)
    assert network.get_parameter("linear.weight").shape == (10, 32)


def test_cifar_resnet_of_50_layers_has_a_name_of_its_own():
    assert len(make_backbone("cifar-resnet50").blocks) == 24


@pytest.mark.parametrize("name", ["resnet21-w8", "resnet2-w8"])
def test_width_of_an_impossible_depth_is_refused(name):
    with pytest.raises(ValueError, match=r"expected 6n\+2"):
        make_backbone(name)


def test_name_can_be_registered_once():
    before = backbone_names()
    with pytest.raises(ValueError, match="expected a new one, got 'resnet20', which is taken"):
        register_backbone("resnet20", "mine")(lambda classes, shape: (nn.Identity(), []))
    assert backbone_names() == before


def test_registered_builder_is_used(monkeypatch):
    monkeypatch.setattr(registry.REGISTRY, "registered", dict(registry.REGISTRY.registered))

    @register_backbone("plain", "one block", colour_only=True)
    def build(classes, shape):
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3 * shape[1] * shape[2], classes)), ["0"]

    backbone = make_backbone("plain", num_classes=3, input_shape=(1, 4, 4))
    assert (backbone.full_macs, backbone.num_classes) == (9 * 16 + 48 * 3, 3)
    assert backbone_names()["plain"] == "one block"
    with pytest.raises(ValueError, match="'plain', which is taken"):
        register_backbone("plain", "another")(build)


def test_colour_only_backbones_take_three_channels():
    assert make_backbone("vit_tiny", input_shape=(1, 16, 16)).input_shape == (3, 16, 16)
    assert make_backbone("resnet8-w4", input_shape=(1, 16, 16)).input_shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("small-kernels", (3, 2, 2), "small-kernels on 2 x 2 images: .*Kernel size.* Use larger images"),
        ("vit_tiny", (3, 16, 24), "vit_tiny: expected square images, got 16 x 24"),
        ("vit_b_16", (3, 8, 8), "vit_b_16 on 8 x 8 images: .*patch size.* a multiple of its patch size .*--image-size"),
        ("vit_b_32", (1, 48, 48), "vit_b_32 on 48 x 48 images: .* or another backbone"),
    ],
)
def test_images_that_do_not_suit_are_refused(monkeypatch, name, shape, message):
    monkeypatch.setattr(registry.REGISTRY, "registered", dict(registry.REGISTRY.registered))
    register_backbone("small-kernels", "a kernel of 3 without padding")(
        lambda classes, _: (nn.Sequential(nn.Conv2d(3, 3, 3), nn.AvgPool2d(1), nn.Linear(3, classes)), ["0"])
    )
    with pytest.raises(ValueError, match=message):
        make_backbone(name, input_shape=shape)


def test_class_names_are_numbers_where_not_given():
    assert make_backbone("resnet8-w4", num_classes=3).class_names == ("0", "1", "2")
    assert make_backbone("resnet8-w4", num_classes=2, class_names=["cat", "dog"]).class_names == ("cat", "dog")


def test_class_names_of_another_number_are_refused():
    with pytest.raises(ValueError, match=re.escape("class_names: expected 3, one for each output, got 2")):
        make_backbone("resnet8-w4", num_classes=3, class_names=("cat", "dog"))


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("squeezenet1_0", ["features.4", "features.7", "features.9", "features.12"]),
        ("squeezenet1_1", ["features.4", "features.7", "features.10", "features.12"]),
    ],
)
def test_squeezenets_blocks_are_the_fire_modules_that_keep_the_shape(name, blocks):
    backbone = make_backbone(name, num_classes=5, input_shape=(1, 48, 48)).eval()
    assert [block.name for block in backbone.blocks] == blocks
    fires = [backbone.network.get_submodule(name) for name in blocks]
    for block, fire in zip(backbone.blocks, fires, strict=True):
        x = torch.zeros(1, *block.in_shape)
        assert fire(x).shape == x.shape  # so that the identity can take its place
        assert block.macs - block.bypass_macs == count_macs(fire, x)  # what follows it always runs
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(backbone(x), backbone.network(x))
