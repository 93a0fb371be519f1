"""What is special about pixel-mask: places, halo, cost, mixtures, bad input. The contract is tested with all tasks."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from skipgym.agents.baselines import random_policy, static_frontier, way_compute
from skipgym.agents.controller import Controller
from skipgym.agents.export import export_onnx
from skipgym.agents.mask_pictures import draw_masks
from skipgym.agents.policy import StaticPolicy, full_policy
from skipgym.backbones.block import Block, residual_shortcut
from skipgym.backbones.cifar_resnet import CifarBlock
from skipgym.backbones.cost import count_macs
from skipgym.backbones.sparse import SparseBlock, SparseConvolution
from skipgym.data import Part
from skipgym.envs import Hard, Masked, PixelMask, Soft, make_task, one_hot


@pytest.fixture(scope="module")
def task(random_backbone):
    """Return one of 3 blocks on maps of 8, 4 and 2 places a side, each of 2 x 2 tiles."""
    return PixelMask(random_backbone())


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def halving(kind, channels, planes):
    """Return a residual block that halves the map, and so has a convolution as its shortcut."""
    shortcut = nn.Sequential(nn.Conv2d(channels, planes * kind.expansion, 1, 2, bias=False), nn.BatchNorm2d(8))
    return kind(channels, planes, stride=2, downsample=shortcut)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CifarBlock(4, 4, 1),
        lambda: CifarBlock(4, 8, 2),
        lambda: halving(BasicBlock, 4, 8),
        lambda: halving(Bottleneck, 4, 2),
    ],
)
def test_kept_places_are_those_of_the_whole_block(make, randomise):
    torch.manual_seed(0)
    source, x = randomise(make()), torch.rand(2, 4, 8, 8)
    block = Block("one", source, residual_shortcut(source), x)
    sparse, mask = SparseBlock(block, source), (torch.rand(2, *block.out_shape[1:]) < 0.4).float()
    with torch.inference_mode():
        expected = torch.where(mask.unsqueeze(1) > 0, block.run(x), block.bypass(x))
        torch.testing.assert_close(sparse(x, mask), expected, rtol=1e-3, atol=1e-4)
        assert float(sparse.cost(torch.ones_like(mask).double())[0]) == block.macs
        assert float(sparse.cost(torch.zeros_like(mask).double())[0]) == block.bypass_macs
        ran = count_macs(lambda inputs: sparse(inputs, mask), x) * 2
        assert ran == pytest.approx(float(sparse.cost(mask.double()).sum()), abs=1)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_at_places_is_that_of_torch(stride):
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 5, 3, stride, 1)
    maps = torch.randn(2, 3, 6, 6)
    expected = convolution(maps).permute(0, 2, 3, 1)
    places = torch.ones(expected.shape[:3]).nonzero(as_tuple=True)
    found = SparseConvolution(convolution, (6, 6))(maps.permute(0, 2, 3, 1), places)
    torch.testing.assert_close(found, expected.flatten(0, 2), rtol=1e-4, atol=1e-5)


def test_halo_is_one_place_around_the_tiles(task):
    mask = torch.zeros(1, 8, 8, dtype=torch.double)
    mask[:, :4, :4] = 1  # one tile in a corner: 16 places, and 5 x 5 that the second convolution reaches
    block = task.sparse[0]
    assert [int(needed.sum()) for needed in block.needed(mask)] == [25, 16]
    assert float(block.cost(mask)[0]) == (25 + 16) * 9 * 4 * 4
    mask[:, 4:, 4:] = 1  # the opposite corner: what both reach, 2 x 2 places, is computed once
    assert int(block.needed(mask)[0].sum()) == 25 + 25 - 4


def test_one_row_costs_the_formula(task, images):
    actions = [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    controller = Controller(task, StaticPolicy([one for row in actions for one in row], 4))
    net = task.backbone
    expected = net.stem_macs + (25 + 16) * 9 * 4 * 4 + 0 + net.blocks[2].macs + net.head_macs
    assert controller(images).macs.tolist() == [expected] * 5


@pytest.mark.parametrize("kind", [Masked, lambda actions: one_hot(actions, (2,) * 4)])
def test_rows_of_different_masks_answer_as_under_masks(task, images, kind):
    inputs = task.prepare(images)
    actions = torch.randint(2, (5, 3, 4), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        states = [task.begin(inputs), task.begin(inputs)]
        for position in range(3):
            states[0] = task.step(states[0], Hard(actions[:, position]))
            states[1] = task.step(states[1], kind(actions[:, position]))
    torch.testing.assert_close(states[0].answer, states[1].answer, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(states[0].macs, states[1].macs)


def test_gradients_reach_every_tile(task, images):
    logits = torch.zeros(5, 8, requires_grad=True)
    after = task.step(task.begin(task.prepare(images)), Soft([one.softmax(1) for one in logits.split(2, 1)]))
    after.features.square().sum().backward(retain_graph=True)
    assert (logits.grad != 0).all()
    logits.grad = None
    after.macs.sum().backward()
    assert (logits.grad[:, 1::2] > 0).all()


def test_rule_rises_and_stands_for_static_subsets(task, random_backbone, images):
    costs = [way_compute(task, way) for way in task.rules["centre"]]
    assert costs == sorted(costs)
    assert (costs[0], costs[-1]) == (task.least_macs / task.full_macs, 1)
    many = PixelMask(random_backbone("resnet38-w4"))  # 18 blocks of 4 tiles
    part = Part((255 * images).to(torch.uint8), torch.arange(5) % 4)
    ways = set(many.rules["centre"])
    assert {point.path for point in static_frontier(many, part)} <= ways


def test_random_policy_spends_what_it_is_asked_to(task, images):
    policy = random_policy(task, 0.7, seed=3)
    spent = Controller(task, policy)(images[:1].expand(1000, -1, -1, -1)).compute.mean()
    assert float(spent) == pytest.approx(0.7, abs=0.03)


def test_controller_comes_back_the_same(task, images, tmp_path):
    controller = Controller(task, StaticPolicy((1, 0, 0, 1) * 3, 4))
    controller.save(tmp_path / "controller")
    again = Controller.load(tmp_path / "controller")
    for name in ("logits", "macs", "actions"):
        torch.testing.assert_close(getattr(again(images), name), getattr(controller(images), name))


def test_picture_has_a_panel_for_each_block(task, images):
    titles = [
        axes.get_title() for axes in draw_masks(Controller(task, StaticPolicy((1, 0, 0, 0) * 3, 4)), images[0]).axes
    ]
    assert titles == ["image", "layer1.0: 25%", "layer2.0: 25%", "layer3.0: 25%", ""][: len(titles)]


@pytest.mark.parametrize(
    ("tile", "message"), [(3, "tile: expected one that fills"), (2, "whole places on the 2 x 2 map")]
)
def test_tiles_that_do_not_fit_are_told(random_backbone, tile, message):
    with pytest.raises(ValueError, match=message):
        PixelMask(random_backbone(), tile=tile)


def test_other_networks_are_refused(random_backbone):
    with pytest.raises(ValueError, match="expected a residual block .* Use a backbone such as resnet20"):
        make_task("pixel-mask", random_backbone("vit3-w16-p2"))


def test_export_is_refused(task, tmp_path):
    with pytest.raises(ValueError, match="got pixel-mask, which leaves out places within it"):
        export_onnx(Controller(task, full_policy(task)), tmp_path / "file.onnx")
