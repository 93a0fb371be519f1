import re

import pytest
import torch
import torchvision
from torch import nn

import skipgym
from skipgym.backbones import wrap


class Residual(nn.Module):
    def __init__(self, channels, *, stride=1, out=None):
        super().__init__()
        self.conv = nn.Conv2d(channels, out or channels, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(out or channels)
        self.add = stride == 1

    def forward(self, x):
        out = self.bn(self.conv(x))
        return x + out if self.add else out


class Untraceable(Residual):
    def forward(self, x):
        return super().forward(x) if x.mean() < 100 else x  # control flow that torch.fx cannot follow


class Jump(nn.Module):
    """A connection jumps over the second block."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = Residual(1), Residual(1), nn.Linear(64, 3)

    def forward(self, x):
        x = self.first(x)
        return self.head((x + self.second(x)).flatten(1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = Residual(1), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.block(self.block(x)).flatten(1))


def tail(size=4 * 64, classes=3):
    return [nn.Flatten(), nn.Linear(size, classes)]


@pytest.fixture
def sequential(randomise):
    """Return a user's network with in-place glue after each of its two blocks ("2" and "4")."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)]
    glue = [nn.ReLU(inplace=True), nn.Hardtanh(-1, 1, inplace=True)]
    return randomise(nn.Sequential(*stem, Residual(4), glue[0], Residual(4), glue[1], *tail()))


def plain(*blocks, size=4 * 64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *blocks, *tail(size)).eval()


class TestNetworkOfOnesOwn:
    def test_pieces_chained_equal_the_network_bit_for_bit(self, sequential):
        x = torch.randn(3, 1, 8, 8)
        with torch.no_grad():
            assert torch.equal(wrap(sequential, ["2", "4"], input_shape=(1, 8, 8))(x), sequential(x))

    def test_blocks_themselves_need_not_be_traceable(self):
        network = plain(Untraceable(4), nn.ReLU(), Untraceable(4))
        backbone, x = wrap(network, ["1", "3"], input_shape=(1, 8, 8)), torch.randn(3, 1, 8, 8)
        with torch.no_grad():
            assert torch.equal(backbone(x), network(x))
            assert torch.allclose(backbone.frozen()(x), network(x), atol=1e-5)

    def test_costs_and_shapes_are_told(self, sequential):
        backbone = wrap(sequential, ["2", "4"], input_shape=(1, 8, 8))
        assert (backbone.stem_macs, backbone.block_macs, backbone.head_macs) == (4 * 9 * 64, [16 * 9 * 64] * 2, 256 * 3)
        assert backbone.least_macs == 4 * 9 * 64 + 256 * 3
        assert [(block.in_shape, block.out_shape) for block in backbone.blocks] == [((4, 8, 8), (4, 8, 8))] * 2
        assert (backbone.name, backbone.num_classes, backbone.class_names) == ("wrapped", 3, ("0", "1", "2"))

    def test_glue_is_executed_when_its_block_is_left_out(self, sequential):
        net = wrap(sequential, ["2", "4"], input_shape=(1, 8, 8))
        first, second = net.blocks
        x = 3 * torch.randn(3, 4, 8, 8)
        assert torch.equal(first.bypass(x.clone()), x.clamp(min=0))
        assert torch.equal(second.bypass(x.clone()), x)  # what follows the last block belongs to the head
        with torch.no_grad():
            assert torch.equal(net.head(x.clone()), sequential[7](x.clamp(-1, 1).flatten(1)))

    def test_no_piece_writes_to_its_input(self, sequential):
        """In-place glue would otherwise change what the other branch, or another run, is given."""
        backbone = wrap(sequential, ["2", "4"], input_shape=(1, 8, 8))
        for block in [*backbone.blocks, *backbone.frozen().blocks]:
            for piece in (block.run, block.bypass):
                x = 3 * torch.randn(3, 4, 8, 8)
                before = x.clone()
                piece(x)
                assert torch.equal(x, before)

    def test_stem_and_head_do_not_write_to_their_inputs(self):
        network = nn.Sequential(
            nn.ReLU(inplace=True), nn.Conv2d(1, 1, 1), Residual(1), nn.ReLU(inplace=True), *tail(64)
        )
        network.append(nn.ReLU(inplace=True))
        backbone = wrap(network.eval(), ["1", "2"], input_shape=(1, 8, 8)).frozen()
        x = torch.randn(2, 1, 8, 8)
        before = x.clone()
        backbone.stem(x)
        assert torch.equal(x, before)
        backbone.head(x)
        assert torch.equal(x, before)

    def test_first_block_may_take_the_image_and_the_last_give_the_logits(self):
        network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        backbone = wrap(nn.Sequential(nn.Flatten(2), *network), ["1", "2"], input_shape=(1, 2, 3))
        assert backbone.block_macs == [36, 36]
        flat = wrap(network, ["0", "1"], input_shape=(1, 2, 6)).frozen()
        x = torch.randn(2, 1, 2, 6)
        assert (flat.stem_macs, flat.head_macs) == (0, 0)
        assert torch.allclose(flat(x), network(x))

    def test_given_facts_are_kept(self, sequential):
        options = {"mean": (0.1,), "std": (0.2,), "class_names": ["a", "b", "c"], "name": "mine"}
        backbone = skipgym.wrap(sequential, ["2"], input_shape=[1, 8, 8], **options)
        assert isinstance(backbone, skipgym.Backbone)
        assert (backbone.mean, backbone.std) == ((0.1,), (0.2,))
        assert (backbone.class_names, backbone.name) == (("a", "b", "c"), "mine")
        backbone.check_images(torch.zeros(1, 1, 8, 8))

    def test_class_names_of_another_number_are_refused(self, sequential):
        with pytest.raises(ValueError, match="class_names: expected 3, one for each output, got 2"):
            wrap(sequential, ["2"], input_shape=(1, 8, 8), class_names=["a", "b"])


class TestBypass:
    def test_block_that_changes_the_shape_needs_one(self):
        network = plain(Residual(4), Residual(4, stride=2, out=8), size=8 * 16)
        message = (
            "bypass of block 2: expected shape (8, 4, 4) as the block gives, got (4, 8, 8). Pass bypass={'2': module}"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            wrap(network, ["1", "2"], input_shape=(1, 8, 8))

    def test_given_one_takes_the_place_of_the_block(self):
        network, pool = plain(Residual(4, stride=2, out=8), size=8 * 16), nn.Conv2d(4, 8, 2, 2, bias=False)
        backbone = wrap(network, ["1"], input_shape=(1, 8, 8), bypass={"1": pool})
        x = torch.randn(2, 4, 8, 8)
        assert torch.equal(backbone.blocks[0].bypass(x), pool(x))
        assert backbone.blocks[0].bypass_macs == 4 * 8 * 4 * 16
        assert backbone.least_macs == 4 * 9 * 64 + 4 * 8 * 4 * 16 + 8 * 16 * 3

    def test_one_that_cannot_take_the_input_is_refused(self):
        with pytest.raises(ValueError, match=r"bypass of block 1: expected a module that takes shape \(4, 8, 8\)"):
            wrap(plain(Residual(4)), ["1"], input_shape=(1, 8, 8), bypass={"1": nn.Conv2d(5, 4, 1)})

    def test_one_for_no_block_is_refused(self):
        with pytest.raises(ValueError, match=r"bypass: expected names of blocks, got \['3'\]. The blocks are \['1'\]"):
            wrap(plain(Residual(4)), ["1"], input_shape=(1, 8, 8), bypass={"3": nn.Identity()})


class TestRefused:
    def refuse(self, network, blocks, message, shape=(1, 8, 8)):
        with pytest.raises(ValueError, match=message):
            wrap(network, blocks, input_shape=shape)

    def test_connection_over_a_block(self):
        self.refuse(Jump(), ["second"], r"got \w+ as well\. A connection jumps over a block; name a larger")

    def test_densenet_layers_which_take_everything_before(self):
        network = torchvision.models.DenseNet(4, (2, 2), 8, num_classes=3)
        blocks = [f"features.denseblock1.denselayer{i}" for i in (1, 2)]
        self.refuse(network, blocks, r"denselayer1: expected one input tensor, .* Name a larger block", (3, 32, 32))

    def test_densenet_can_be_cut_at_larger_blocks(self):
        network = torchvision.models.DenseNet(4, (2, 2), 8, num_classes=3).eval()
        bypass = {"features.denseblock1": nn.Conv2d(8, 16, 1)}
        backbone = wrap(network, ["features.denseblock1"], input_shape=(3, 32, 32), bypass=bypass)
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(backbone(x), network(x))

    def test_unknown_block(self, sequential):
        sequential.add_module("block_last", nn.Identity())
        self.refuse(
            sequential, ["blok_last"], "unknown block of this network: .*got 'blok_last'. Did you mean block_last"
        )

    def test_wrong_order(self, sequential):
        message = r"in the order of execution, got \['4', '2'\] for a network that calls \['2', '4'\]"
        self.refuse(sequential, ["4", "2"], message)

    def test_block_named_twice(self, sequential):
        self.refuse(sequential, ["2", "2"], r"expected different names, got \['2', '2'\]")

    def test_no_blocks(self, sequential):
        self.refuse(sequential, [], "expected at least one module name, got none")

    def test_block_within_a_block(self, sequential):
        self.refuse(sequential, ["2", "2.conv"], "expected each to be called once")

    def test_block_that_is_called_twice(self):
        self.refuse(
            Twice(), ["block"], r"called once, .* got \['block'\] for a network that calls \['block', 'block'\]"
        )

    def test_block_that_is_never_called(self, sequential):
        sequential[2].unused = nn.Identity()
        self.refuse(sequential, ["2.unused", "4"], r"called once, .* for a network that calls \['4'\]")

    def test_network_that_cannot_be_traced(self):
        self.refuse(plain(Residual(4), Untraceable(4)), ["1"], "expected torch.fx to trace")

    def test_network_of_several_outputs(self):
        class Pair(Twice):
            def forward(self, x):
                return self.block(x), x

        self.refuse(Pair(), ["block"], "network: expected it to return logits only")
