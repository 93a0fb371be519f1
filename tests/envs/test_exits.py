"""Early exits and cascades: cost by formula, batches that really shrink, answers mixed by the share that gives them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipgym.agents.controller import Controller
from skipgym.agents.threshold import ThresholdPolicy
from skipgym.backbones import make_backbone
from skipgym.envs import Cascade, EarlyExit, Hard, Soft, make_task, rollout
from skipgym.envs.build import find_task
from skipgym.envs.cascade import default_small
from skipgym.envs.exit_task import signs
from skipgym.envs.outcomes import outcomes
from skipgym.envs.rollout import relax

IMAGES = torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(0))
plans = st.lists(st.integers(0, 2), min_size=1, max_size=6)  # the exit at which each row leaves; 2 is the end


@pytest.fixture(scope="module", params=["early-exit", "cascade"])
def task(request, tiny_backbone):
    return make_task(request.param, tiny_backbone)


def actions_of(plan):
    return torch.tensor([[int(where > position) for position in range(2)] for where in plan])


def run(task, plan):
    actions = actions_of(plan)
    with torch.no_grad():
        return rollout(task, task.prepare(IMAGES[: len(plan)]), lambda s: Hard(actions[s.rows, s.position]))


def by_hand(task, row, where):
    """Return logits and MACs of one image that leaves at an exit, from the network's own pieces."""
    net, image = task.backbone, IMAGES[row : row + 1]
    if isinstance(task, Cascade):
        nets = [*net.smaller, net]
        return nets[where](nets[where].prepare(image))[0], sum(one.full_macs for one in nets[: where + 1])
    x, macs = net.stem(net.prepare(image)), net.stem_macs
    ends = [1, 2, 3]
    for block in net.blocks[: ends[where]]:
        x, macs = block.run(x), macs + block.macs
    heads = [*net.exits, net.head]
    costs = [*(one.macs for one in net.exits), net.head_macs]
    return heads[where](x)[0], macs + sum(costs[: where + 1])


@given(plan=plans)
def test_answer_and_cost_are_those_by_hand(task, plan):
    found = run(task, plan)
    for row, where in enumerate(plan):
        logits, macs = by_hand(task, row, where)
        torch.testing.assert_close(found.logits[row], logits, rtol=1e-3, atol=1e-4)
        assert found.macs[row] == macs


def test_declared_costs_are_those_of_the_ends(task):
    least, most = by_hand(task, 0, 0)[1], by_hand(task, 0, 2)[1]
    assert (task.least_macs, task.most_macs) == (least, most)
    assert task.least_macs < task.full_macs == task.backbone.full_macs < task.most_macs


class Count:
    """Counts the rows that reach each module."""

    def __init__(self, modules):
        self.rows = [0] * len(modules)
        self.handles = [m.register_forward_hook(self._hook(i)) for i, m in enumerate(modules)]

    def _hook(self, index):
        def count(_module, inputs, _output):
            self.rows[index] += len(inputs[0])

        return count

    def __enter__(self):
        return self.rows

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def pieces_of(task):
    """Return what runs in each stage: a block, an exit's head, or a whole network's stem."""
    net = task.backbone
    if isinstance(task, Cascade):
        return [[one.stem] for one in (*net.smaller, net)]
    heads = [*net.exits, net.head]
    return [[block.body, head] for block, head in zip(net.blocks, heads, strict=True)]


@given(plan=plans)
def test_rows_that_left_reach_nothing_further(task, plan):
    stages = pieces_of(task)
    with Count([piece for stage in stages for piece in stage]) as rows:
        run(task, plan)
    assert rows == [sum(where >= stage for where in plan) for stage, of in enumerate(stages) for _ in of]


def test_controller_runs_survivors_only(task):
    scores = torch.stack([by_hand(task, row, 0)[0].softmax(0).amax() for row in range(6)])
    policy = ThresholdPolicy("max-softmax", [float(scores.median()), 0.0])
    stages = pieces_of(task)
    with Count([stage[0] for stage in stages]) as rows:
        decision = Controller(task, policy)(IMAGES)
    left = int((scores >= scores.median()).sum())
    assert rows == [6, 6 - left, 0]
    assert (decision.actions[:, 0] == 0).sum() == left


def test_engine_runs_survivors_only(task, make_engine):
    engine = make_engine(task, num_envs=4)
    engine.seed(0)
    engine.reset()
    with Count([stage[0] for stage in pieces_of(task)]) as rows:
        engine.step(torch.tensor([0, 1, 0, 1]), deal=False)
        engine.step(torch.tensor([0, 1, 0, 0]), deal=False)
    assert rows == [0, 2, 1]


def test_mixtures_are_of_answers_and_cost_is_expected(task):
    leave = [0.25, 0.5]
    with torch.no_grad():
        found = relax(
            task,
            task.begin(task.prepare(IMAGES)),
            lambda s: Soft(torch.tensor([leave[s.position], 1 - leave[s.position]]).expand(len(s), 2)),
        )
    shares = [0.25, 0.75 * 0.5, 0.75 * 0.5]
    for row in range(6):
        ends = [by_hand(task, row, where) for where in range(3)]
        logits = sum(share * end[0] for share, end in zip(shares, ends, strict=True))
        torch.testing.assert_close(found.logits[row], logits, rtol=1e-3, atol=1e-4)
        assert found.macs[row].item() == pytest.approx(sum(s * end[1] for s, end in zip(shares, ends, strict=True)))


def test_table_of_all_ways_is_exact_and_shares_their_beginnings(task):
    assert task.paths == [(0, 0), (1, 0), (1, 1)]
    labels = torch.zeros(6, dtype=torch.long)
    table = outcomes(task, IMAGES, labels, task.paths)
    for where in range(3):
        alone = run(task, [where] * 6)
        assert table.answers[:, where].tolist() == alone.logits.argmax(1).tolist()
        assert table.macs[where] == alone.macs[0]
    assert table.spent == 6 * task.most_macs


class TestObservation:
    def test_signs_by_hand(self):
        logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]).clamp(min=1e-30).log()
        votes = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0]])
        half = 1.5 * torch.tensor(2.0).log() / torch.tensor(3.0).log()
        expected = [[0.5, float(half), 0.25, 0.5], [1, 0, 1, 0], [1 / 3, 1, 0, 1]]
        torch.testing.assert_close(signs(logits, votes, 2), torch.tensor(expected), rtol=1e-4, atol=1e-5)
        assert signs(logits, 0 * votes, 0)[:, 3].tolist() == [0, 0, 0]

    def test_agreement_counts_the_exits_passed(self, task):
        state = task.begin(task.prepare(IMAGES))
        first = task.answer_now(state).argmax(1)
        state = task.step(state, Hard(torch.ones(6, dtype=torch.long)))
        assert task.observe(state)[:, 3].tolist() == (task.answer_now(state).argmax(1) == first).float().tolist()

    def test_features_are_shown_on_request(self, tiny_backbone):
        task = make_task("early-exit", tiny_backbone, pooled=1)
        assert task.observation_shape == (4 + 8,)  # padded to the wider exit, of 8 channels
        state = task.begin(task.prepare(IMAGES))
        assert torch.equal(task.observe(state)[:, 4:8], state.features.mean((2, 3)))
        with pytest.raises(ValueError, match="pooled: expected 0 or 1, got 2"):
            make_task("early-exit", tiny_backbone, pooled=2)


class TestEarlyExitOptions:
    @pytest.mark.parametrize("exits", ["2", 2, [2], (2,)])
    def test_some_of_the_exits_can_be_used(self, tiny_backbone, exits):
        task = make_task("early-exit", tiny_backbone, exits=exits)
        net = task.backbone
        assert (task.horizon, task.pieces) == (1, ["beyond layer2.0"])
        assert task.least_macs == net.stem_macs + sum(net.block_macs[:2]) + net.exits[1].macs

    @pytest.mark.parametrize(
        ("exits", "match"),
        [
            ("2 1", "expected one or more rising numbers of blocks from 1 to 2, got 2 1"),
            ([], "rising numbers of blocks from 1 to 2, got none"),
            ([3], "from 1 to 2, got 3"),
            ("two", "exits: expected numbers of blocks, as in"),
        ],
    )
    def test_bad_places_are_refused(self, tiny_backbone, exits, match):
        with pytest.raises(ValueError, match=match):
            make_task("early-exit", tiny_backbone, exits=exits)

    def test_exits_that_are_not_there_are_refused(self, random_backbone):
        net = random_backbone()
        with pytest.raises(ValueError, match="expected some of those that resnet8-w4 carries, after blocks 1, got 2"):
            make_task("early-exit", net.with_exits(net.exits[:1]), exits="2")

    def test_backbone_without_exits_is_refused(self):
        net = make_backbone("resnet8-w4", num_classes=4, input_shape=(1, 8, 8))
        with pytest.raises(ValueError, match="expected a backbone with exits, got resnet8-w4 with none. Train them"):
            EarlyExit(net)


class TestCascadeOptions:
    def test_backbone_without_smaller_networks_is_refused(self):
        net = make_backbone("resnet8-w4", num_classes=4, input_shape=(1, 8, 8))
        with pytest.raises(ValueError, match="carries smaller networks, got resnet8-w4 with none"):
            Cascade(net)

    def test_networks_out_of_order_are_refused(self, tiny_backbone):
        with pytest.raises(ValueError, match="expected one or more that rise in cost up to resnet8-w4's"):
            tiny_backbone.with_smaller(list(tiny_backbone.smaller)[::-1])
        with pytest.raises(ValueError, match="rise in cost.*got none"):
            tiny_backbone.with_smaller([])

    def test_networks_of_other_images_are_refused(self, tiny_backbone):
        other = make_backbone("resnet8-w2", num_classes=4, input_shape=(1, 4, 4))
        with pytest.raises(ValueError, match=r"smaller network resnet8-w2: expected images of \(1, 8, 8\)"):
            tiny_backbone.with_smaller([other])

    def test_names_must_be_those_carried(self, tiny_backbone):
        assert make_task("cascade", tiny_backbone, small="resnet8-w2 resnet8-w3").horizon == 2
        with pytest.raises(ValueError, match="small: expected resnet8-w2 resnet8-w3, the networks that"):
            make_task("cascade", tiny_backbone, small="resnet8-w2")

    def test_default_networks_lie_between(self):
        assert default_small("resnet20-w8") == ["resnet8-w8", "resnet14-w8"]
        assert default_small("resnet56") == ["resnet8", "resnet20"]
        for name in ("resnet8", "resnet50", "vit_tiny"):
            with pytest.raises(ValueError, match=f"networks smaller than {name}, got none"):
                default_small(name)

    def test_weights_must_be_as_many_as_networks_and_fresh_to_the_policys_images(self, tiny_images, tmp_path):
        net = make_backbone("resnet8-w4", num_classes=4, input_shape=(1, 8, 8))
        with pytest.raises(ValueError, match="small_weights: expected one file for each of resnet8-w2, got 2"):
            find_task("cascade", net, tiny_images, small="resnet8-w2", small_weights="a b")
        with pytest.raises(
            ValueError, match="small_weights a: expected weights that have not seen the policy's images"
        ):
            find_task("cascade", net, tiny_images, small="resnet8-w2", small_weights="a")


def test_controller_holds_all_that_it_needs(task, tmp_path):
    controller = Controller(task, ThresholdPolicy("entropy", [-0.9, -0.5]))
    loaded = Controller.load(controller.save(tmp_path / "c"))
    assert loaded.task.backbone.identity() == task.backbone.identity()
    first, again = controller(IMAGES), loaded(IMAGES)
    torch.testing.assert_close(first.logits, again.logits)
    assert torch.equal(first.macs, again.macs)
    assert torch.equal(first.actions, again.actions)


def test_changed_exits_are_noticed(task, tmp_path):
    path = Controller(task, ThresholdPolicy("patience", 1)).save(tmp_path / "c")
    with (path / "exits.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ValueError, match="its hash differs"):
        Controller.load(path)
