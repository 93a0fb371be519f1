"""MSDNet and RANet: packing is exact, the cut network answers as the untouched one, cost follows from the shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from skipgym.backbones import make_backbone
from skipgym.backbones.msdnet import Layer, MSDNet
from skipgym.backbones.ranet import Fusion, RANet
from skipgym.backbones.registry import REGISTRY
from skipgym.backbones.stepped import Packing

TINY = ["msdnet3-s2-w4", "ranet4-s2-w4"]
IMAGES = torch.rand((5, 1, 8, 8), generator=torch.Generator().manual_seed(0))
maps = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4)


@pytest.fixture(scope="module", params=[*TINY, "ranet3-s3-w4"])
def backbone(request, randomise):
    shape = (1, 12, 12) if "s3" in request.param else (1, 8, 8)
    torch.manual_seed(0)
    made = make_backbone(request.param, num_classes=4, input_shape=shape)
    randomise(made.network)
    return made.eval()


def untouched(network, x):
    """Return every answer by the network's own modules, without packing or cutting."""
    maps, answers = network.start.body(x), dict(zip(network.after, network.answers, strict=True))
    found = []
    for count, step in enumerate(network.steps, 1):
        maps = step.body(maps)
        if count in answers:
            found.append(answers[count].classifier(maps[-1]))
    return found


def images_for(backbone):
    shape = (5, *backbone.input_shape)
    return backbone.prepare(torch.rand(shape, generator=torch.Generator().manual_seed(1)))


@given(shapes=maps)
def test_packing_is_exact(shapes):
    packing, given = Packing(shapes), [torch.rand((2, *shape)) for shape in shapes]
    packed = packing.pack(given)
    assert packed.shape == (2, sum(c * h * w for c, h, w in shapes))
    assert all(torch.equal(one, back) for one, back in zip(given, packing.unpack(packed), strict=True))
    assert torch.equal(packing.last(packed), given[-1])


@torch.no_grad()
def test_every_answer_is_that_of_the_untouched_network(backbone):
    x = images_for(backbone)
    expected = untouched(backbone.network, x)
    for answers in (backbone.answers(x), backbone.frozen().answers(x)):
        assert len(answers) == len(expected) == len(backbone.exits) + 1
        for found, wanted in zip(answers, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(backbone.network(x), expected[-1])


def test_nothing_of_batch_norm_is_left_when_frozen(backbone):
    frozen = backbone.frozen()
    pieces = [frozen.stem, *(block.body for block in frozen.blocks), *(one.head for one in frozen.exits), frozen.head]
    assert not [m for piece in pieces for m in piece.modules() if isinstance(m, nn.BatchNorm2d)]


def test_freezing_leaves_the_identity(backbone):
    assert backbone.identity() == backbone.frozen().identity() == backbone.fingerprint()


def conv(pixels, kernel, before, after):
    """Return the cost of a convolution that gives so many pixels."""
    return pixels * kernel**2 * before * after


def answer(channels):
    """Return the cost of a classifier of 16 channels, twice the coarser scale's, for 4 classes on 4 x 4 pixels."""
    return conv(4, 3, channels, 16) + conv(1, 3, 16, 16) + 16 * 4


def test_cost_of_msdnet_is_that_of_its_shapes():
    """Two scales of 8 x 8 and 4 x 4 pixels, 4 and 8 channels more for each layer; layers 0 1 | 2 3, a step 01, 2, 3."""
    net = make_backbone("msdnet3-s2-w4", num_classes=4, input_shape=(1, 8, 8))
    assert net.stem_macs == conv(64, 3, 1, 4) + conv(16, 3, 4, 8)
    layer_0 = conv(64, 3, 4, 4) + conv(16, 3, 8, 4) + conv(16, 3, 4, 4)  # same, same, finer: no bottleneck narrows
    fine, finer = conv(64, 1, 8, 4) + conv(64, 3, 4, 4), conv(64, 1, 8, 4) + conv(16, 3, 4, 4)
    layer_1 = fine + conv(16, 1, 16, 8) + conv(16, 3, 8, 4) + finer
    layer_2 = conv(16, 1, 24, 8) + conv(16, 3, 8, 4) + conv(64, 1, 12, 4) + conv(16, 3, 4, 4)  # the finest is left out
    layer_3 = conv(16, 3, 16, 8)
    assert net.block_macs == [layer_0 + layer_1, layer_2 + conv(16, 1, 32, 16), layer_3]
    assert [one.macs for one in net.exits] == [answer(24), answer(16)]
    assert net.head_macs == answer(24)


def test_cost_of_ranet_is_that_of_its_shapes():
    """Two sub-networks of 4 x 4 and 8 x 8 pixels; two layers in a block."""
    net = make_backbone("ranet4-s2-w4", num_classes=4, input_shape=(1, 8, 8))
    assert net.stem_macs == conv(64, 3, 1, 4) + conv(16, 3, 4, 8)
    first = conv(16, 3, 8, 8) + conv(16, 3, 16, 8)
    second = conv(16, 1, 24, 16) + conv(16, 1, 32, 16) + 2 * conv(16, 3, 16, 8)
    lower = conv(16, 1, 40, 4) + conv(16, 3, 4, 2)  # of the 40 channels that the first sub-network found
    own = conv(64, 3, 4, 2) + conv(64, 1, 8, 4) + conv(64, 3, 4, 2)
    down = conv(64, 1, 12, 8) + conv(16, 3, 8, 4) + conv(16, 1, 40, 8) + conv(16, 3, 8, 4)
    assert net.block_macs == [first, second, own + 2 * lower + down, first, second]
    assert [(one.after, one.macs) for one in net.exits] == [(1, answer(24)), (2, answer(40)), (4, answer(24))]
    assert net.head_macs == answer(40)


def test_answers_cost_what_ran_until_then(backbone):
    macs, blocks = backbone.answer_macs, backbone.block_macs
    assert macs[0] == backbone.stem_macs + sum(blocks[: backbone.exits[0].after]) + backbone.exits[0].macs
    assert macs[-1] == backbone.full_macs + sum(one.macs for one in backbone.exits)
    assert macs == sorted(macs)


@pytest.mark.parametrize("drop", [False, True])
def test_msdnet_layer_is_dense_and_takes_from_the_finer_scale(drop):
    layer = Layer([4, 8, 16], [4, 8, 16], drop=drop).eval()
    given = [torch.rand(2, 4 << s, 8 >> s, 8 >> s) for s in range(3)]
    out = layer(given)
    assert [one.shape[1] for one in out] == layer.out_channels == [8, 16, 32][drop:]
    assert all(torch.equal(one[:, : was.shape[1]], was) for one, was in zip(out, given[drop:], strict=True))
    other = layer([torch.rand_like(given[0]), *given[1:]])
    assert [not torch.equal(*pair) for pair in zip(out, other, strict=True)] == [True, True, False][drop:]


def test_ranet_fuses_what_the_lower_resolution_found():
    torch.manual_seed(0)
    fusion = Fusion(1, 4, 6, 4, 2, keep=True).eval()
    base, low, x = torch.rand(2, 8, 16, 16), torch.rand(2, 6, 4, 4), torch.rand(2, 4, 8, 8)
    passed, kept, down = fusion([base, low, x])
    assert passed is base
    assert (kept.shape[1:], down.shape[1:]) == ((12, 8, 8), (fusion.out_channels, 4, 4))
    assert torch.equal(kept[:, :4], x)
    _, other, below = fusion([base, torch.rand_like(low), x])
    assert not torch.equal(kept, other)
    assert not torch.equal(down, below)


@pytest.mark.parametrize(("name", "exits"), [("msdnet", 7), ("ranet", 6)])
def test_default_is_what_its_description_says(name, exits):
    net = make_backbone(name)
    assert (len(net.exits) + 1, net.num_classes, net.has_own_exits) == (exits, 10, True)
    assert 20e6 < net.full_macs < net.answer_macs[-1] < 40e6
    assert [block.shortcut for block in net.blocks] == [None] * len(net.blocks)
    entry = REGISTRY.find(name)
    assert entry is not None
    assert not entry.skippable


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "size", "match"),
        [
            ("msdnet", 4, r"at least 8 x 8 pixels for 3 scales, got 4 x 4.*-s2"),
            ("ranet4-s2-w4", 3, r"at least 4 x 4 pixels for 2 scales, got 3 x 3"),
            ("msdnet1", 32, "expected 2 or more exits and channels, got 1 and 8"),
            ("msdnet3-s0", 32, "expected images of at least 1 x 1 pixels for 0 scales"),
            ("ranet5", 32, "multiple of its 3 scales.*got 5 exits"),
        ],
    )
    def test_what_does_not_fit_is_told(self, name, size, match):
        with pytest.raises(ValueError, match=match):
            make_backbone(name, input_shape=(1, size, size))

    @pytest.mark.parametrize("name", TINY)
    def test_blocks_cannot_be_left_out(self, name):
        net = make_backbone(name, input_shape=(1, 8, 8))
        for attempt in (
            lambda: net.least_macs,
            lambda: net.blocks[0].bypass(IMAGES),
            lambda: net.blocks[0].bypass_macs,
        ):
            with pytest.raises(ValueError, match=r"block steps\.0: expected one that can be left out.*early-exit"):
                attempt()

    def test_other_exits_are_refused(self, tiny_backbone):
        net = make_backbone(TINY[0], num_classes=4, input_shape=(1, 8, 8))
        with pytest.raises(ValueError, match=r"expected a network without, got msdnet3-s2-w4, whose own"):
            net.with_exits(tiny_backbone.added_exits)

    def test_numbers_out_of_range_in_python(self):
        with pytest.raises(ValueError, match="got 3 and 1"):
            MSDNet(exits=3, width=1)
        with pytest.raises(ValueError, match="got 3 exits and 1 channels"):
            RANet(exits=3, width=1)
