import pytest
import torch
from torch import nn

from skipgym.backbones import wrap

CASES = [("resnet14-w4", (1, 8, 8)), ("resnet18", (3, 32, 32)), ("vit_tiny", (3, 16, 16))]
CASES += [("se-resnet8-w4", (1, 8, 8)), ("deform-resnet8-w4", (1, 8, 8))]


def close(got, expected):
    return (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.fixture(params=CASES, ids=lambda case: case[0])
def backbone(request, random_backbone):
    name, shape = request.param
    return random_backbone(name, input_shape=shape)


def test_folded_pieces_equal_the_untouched_network(backbone):
    frozen = backbone.frozen()
    x = torch.randn(3, *backbone.input_shape)
    with torch.no_grad():
        assert close(frozen(x), backbone.network(x))
        for before, block in zip(backbone.blocks, frozen.blocks, strict=True):
            x = torch.randn(3, *block.in_shape)
            assert close(block.run(x), before.body(x))
            assert close(block.bypass(x), before.shortcut(x))


@pytest.mark.parametrize(("name", "shape"), [("resnet18", (3, 32, 32)), *CASES[3:]])
def test_no_batchnorm_is_left_in_the_folded_pieces(random_backbone, name, shape):
    frozen = random_backbone(name, input_shape=shape).frozen()
    pieces = [frozen.stem, frozen.head, *(block.body for block in frozen.blocks)]
    pieces += [block.shortcut for block in frozen.blocks]
    assert not any(isinstance(module, nn.BatchNorm2d) for piece in pieces for module in piece.modules())


def test_freezing_and_training_a_policy_change_no_weight_and_no_buffer(backbone):
    before = {key: value.clone() for key, value in backbone.network.state_dict().items()}
    fingerprint = backbone.fingerprint()
    frozen = backbone.frozen()
    frozen.train()
    gate = nn.Parameter(torch.tensor(0.5))
    optimiser = torch.optim.SGD([gate, *(p for p in frozen.parameters() if p.requires_grad)], lr=1.0)
    (gate * frozen(torch.randn(4, *backbone.input_shape))).square().sum().backward()
    optimiser.step()
    assert gate != 0.5
    for network in (backbone.network, frozen.network):
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert frozen.fingerprint() == backbone.fingerprint() == fingerprint


def test_frozen_copy_stays_in_evaluation(backbone):
    frozen = backbone.frozen()
    holder = nn.Sequential(frozen).train()
    assert holder.training
    assert frozen.train() is frozen
    assert not any(module.training for module in frozen.modules())


def test_no_gradient_is_asked_for_anywhere(backbone):
    assert not any(parameter.requires_grad for parameter in backbone.frozen().parameters())


def test_gradients_pass_through_to_the_input(tiny_backbone):
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    tiny_backbone.frozen()(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0


def test_the_original_stays_trainable(random_backbone):
    backbone = random_backbone()
    frozen = backbone.frozen()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.train().training
    assert not backbone.is_frozen
    assert {p.data_ptr() for p in backbone.parameters()}.isdisjoint(p.data_ptr() for p in frozen.parameters())


def test_freezing_twice_is_freezing_once(tiny_backbone):
    frozen = tiny_backbone.frozen()
    assert frozen.is_frozen
    assert frozen.frozen() is frozen


class SharedConvolution(nn.Module):
    """One convolution with two BatchNorms, which torch's folding would fold into it one after the other."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return x + self.bn2(self.conv(self.bn1(self.conv(x)).relu()))


class Untraceable(nn.Module):
    """A block that torch.fx cannot follow: `float` of a size, as attention scales are often written."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return x + self.bn(self.conv(x)) / float(x.shape[1]) ** 0.5


@pytest.mark.parametrize("block", [SharedConvolution, Untraceable])
def test_block_that_cannot_be_folded_is_kept_as_it_is(randomise, block):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), block(), nn.Flatten(), nn.Linear(4 * 64, 3))
    backbone = wrap(randomise(network), ["1"], input_shape=(1, 8, 8))
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert close(backbone.frozen()(x), network(x))
    assert any(isinstance(module, nn.BatchNorm2d) for module in backbone.frozen().blocks[0].modules())
