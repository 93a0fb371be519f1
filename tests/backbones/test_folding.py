import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

from skipgym.backbones import make_backbone
from skipgym.backbones.folding import fold, overwrites
from skipgym.backbones.routing import unchanged

X = torch.rand((2, 4, 6, 6), generator=torch.Generator().manual_seed(0)) - 0.5


class Twice(nn.Module):
    """Uses a convolution's result before and after ReLU, and the block's input last."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return F.relu(y) + y + F.relu(x)


class Doubled(nn.Module):
    """Adds a convolution's result to itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return y + y


class Late(nn.Module):
    """Adds its input, and needs it once more."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return (self.conv(x) + x) * x


class Deformed(nn.Module):
    """A deformable convolution before BatchNorm; what it gives may be needed once more."""

    def __init__(self, *, again):
        super().__init__()
        self.offset, self.conv = nn.Conv2d(4, 18, 3, padding=1), DeformConv2d(4, 4, 3, padding=1)
        self.bn, self.again = nn.BatchNorm2d(4), again

    def forward(self, x):
        y = self.conv(x, self.offset(x))
        return self.bn(y) * y if self.again else self.bn(y)


@pytest.mark.parametrize("again", [False, True])
def test_batchnorm_is_folded_into_a_deformable_convolution_that_nothing_else_uses(randomise, again):
    torch.manual_seed(0)
    piece = randomise(Deformed(again=again))
    folded = fold(piece, (4, 6, 6))
    assert any(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == again
    with torch.no_grad():
        assert torch.allclose(folded(X), piece(X), atol=1e-6)


@pytest.mark.parametrize("kind", [Twice, Doubled, Late])
def test_result_that_others_use_is_not_written_over(kind):
    torch.manual_seed(0)
    piece, x = kind().eval(), X.clone()
    with torch.no_grad():
        assert torch.allclose(fold(piece, (4, 6, 6))(x), piece(x), atol=1e-6)
    assert torch.equal(x, X)


def test_residual_block_writes_over_its_own_results_only():
    block = make_backbone("resnet8-w4", input_shape=(4, 6, 6)).eval().blocks[0]
    folded, x = fold(block.body, (4, 6, 6)), X.clone()
    assert isinstance(folded, fx.GraphModule)
    code = folded.code
    assert code.count("inplace = True") == 2
    assert "add_over(conv2, shortcut, overwrite)" in code
    with torch.no_grad():
        assert torch.allclose(folded(x), block.body(x), atol=1e-5)
    assert torch.equal(x, X)


def test_gradients_pass_a_folded_block():
    block = make_backbone("resnet8-w4", input_shape=(4, 6, 6)).eval().blocks[0]
    slopes = []
    for piece in (block.body, fold(block.body, (4, 6, 6))):
        x = X.clone().requires_grad_()
        piece(x).square().sum().backward()
        slopes.append(x.grad)
    assert torch.allclose(slopes[0], slopes[1], atol=1e-4)


def test_identity_in_a_blocks_place_is_known_frozen_or_not():
    net = make_backbone("resnet8-w4", input_shape=(1, 8, 8))
    for backbone in (net, net.frozen()):
        assert [block.bypass is unchanged for block in backbone.blocks] == [True, False, False]


def test_block_whose_input_is_last_needed_in_its_sum_may_write_over_it():
    net = make_backbone("resnet8-w4", input_shape=(1, 8, 8)).frozen()
    assert [block.overwrites for block in net.blocks] == [True, False, False]  # the others change the shape
    x = torch.rand(3, 4, 8, 8).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = net.blocks[0].run(x)
        assert net.blocks[0].overwrite(x) is x
    assert torch.equal(x, expected)


def test_block_that_cannot_leaves_its_input():
    net = make_backbone("resnet8-w4", input_shape=(1, 8, 8)).frozen()
    x = torch.rand(3, 4, 8, 8)
    before = x.clone()
    with torch.no_grad():
        assert torch.equal(net.blocks[1].overwrite(x), net.blocks[1].run(x))
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", [Twice, Late])
def test_input_that_is_needed_later_is_never_written_over(kind):
    assert not overwrites(fold(kind().eval(), (4, 6, 6)))
