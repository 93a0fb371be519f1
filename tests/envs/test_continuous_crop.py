"""What is special about patch-crop with continuous places; the contract is tested with all tasks."""

import pytest
import torch
from stable_baselines3.common.env_checker import check_env
from torch.autograd import gradcheck

from skipgym import Controller
from skipgym.agents.baselines import random_policy, static_frontier
from skipgym.agents.export import export_onnx
from skipgym.agents.gate import Gate
from skipgym.agents.learner import make_learner
from skipgym.agents.oracle import bounds
from skipgym.agents.policy import GatePolicy, full_policy
from skipgym.agents.threshold import threshold_policy
from skipgym.backbones.glimpses import crop
from skipgym.envs import Engine, Hard, Layout, PatchCrop, SkipEnv, Soft, make_reward, rollout
from skipgym.envs.table import tabulate
from skipgym.referee.plan import CompareConfig, cells

LOOK = torch.ones(3, dtype=torch.long)


@pytest.fixture
def task(random_backbone):
    """Two looks; crops of 4 out of 8 pixels."""
    return PatchCrop(random_backbone(), looks=2, places="continuous")


@pytest.fixture
def inputs():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def looked(task, inputs, place):
    """Return the state after a first look at a place."""
    return task.step(task.begin(inputs), Hard(LOOK).placed(torch.tensor(place).expand(3, -1)))


class TestPlaces:
    def test_place_of_the_grid_gives_what_its_option_gives(self, task, inputs, random_backbone):
        grid = PatchCrop(random_backbone(), looks=2)
        for index in range(9):
            option = grid.step(grid.begin(inputs), Hard(LOOK * (1 + index)))
            there = looked(task, inputs, task.place_of(index))
            torch.testing.assert_close(task.answer_now(there), grid.answer_now(option), rtol=1e-4, atol=1e-4)
            assert there.macs.tolist() == option.macs.tolist()

    def test_numbers_reach_from_edge_to_edge(self, task):
        centres = task.centres(torch.tensor([[-1.0, -1.0], [0.0, 1.0], [0.5, 0.0]]))
        assert centres.tolist() == [[2, 2], [4, 6], [5, 4]]  # of crops of 4 out of 8 pixels

    def test_choice_that_says_no_place_looks_at_the_centre_then_at_a_corner(self, task, inputs):
        start = task.begin(inputs)
        for place in ((0.0, 0.0), (-1.0, -1.0)):
            told = task.step(start, Hard(LOOK).placed(torch.tensor([place] * 3)))
            start = task.step(start, Hard(LOOK))
            assert torch.equal(start.features, told.features)

    def test_policy_sees_where_the_last_look_was(self, task, inputs):
        seen = task.observe(looked(task, inputs, (0.25, -0.5)))
        assert seen[:, 4 + 8 : 4 + 8 + 2].tolist() == [[0.25, -0.5]] * 3

    def test_regions_are_the_squares_that_were_looked_at(self, task):
        places = torch.tensor([[0.0, 1.0], [float("nan")] * 2])
        assert task.regions([1, 1], places) == [(0, 2, 8, 8), (-2, -2, 8, 8)]  # two scales; then the upper left corner
        assert task.regions([0, -1], places) == []
        assert task.regions([1, 1]) == [(0, 0, 8, 8), (-2, -2, 8, 8)]


class TestGradient:
    def test_crop_agrees_with_finite_differences(self):
        images = torch.rand((2, 1, 9, 9), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        centres = torch.tensor([[3.31, 4.13], [6.27, 2.71]], dtype=torch.float64, requires_grad=True)  # off the kinks
        assert gradcheck(lambda where: crop(images, where, 4, scales=2), centres)

    def test_answer_and_what_is_seen_next_agree_with_finite_differences(self, task, inputs):
        task, inputs = task.double(), inputs.double()
        weights = torch.tensor([[0.0, 1.0], [0.3, 0.7], [0.9, 0.1]], dtype=torch.float64)

        def after(place):
            state = task.step(task.begin(inputs), Soft(weights).placed(place))
            return task.answer_now(state), task.observe(state)

        place = torch.tensor([[0.13, -0.37], [0.62, 0.41], [-0.83, 0.29]], dtype=torch.float64, requires_grad=True)
        assert gradcheck(after, place, atol=1e-4)

    def test_stopping_softly_does_not_dim_what_is_seen(self, task, inputs):
        start, place = task.begin(inputs), torch.tensor([[0.3, -0.6]] * 3)
        after = task.step(start, Soft(torch.tensor([[0.75, 0.25]] * 3)).placed(place))
        alone = task.step(start, Hard(LOOK).placed(place))
        torch.testing.assert_close(task.answer_now(after), task.answer_now(alone), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after.macs, start.macs + 0.25 * task.look_macs)


def test_looks_cost_what_those_at_a_grid_cost(task, inputs, random_backbone):
    grid = PatchCrop(random_backbone(), looks=2)
    same = ("least_macs", "look_macs", "most_macs", "full_macs")
    assert [getattr(task, name) for name in same] == [getattr(grid, name) for name in same]
    actions = torch.tensor([[[1, 0.1, 0.2], [1, -1, 1]], [[1, 0, 0], [-1, 0, 0]], [[-0.1, 0, 0], [1, 0, 0]]])
    run = rollout(task, inputs, lambda state: task.choice(actions[state.rows, state.position]))
    assert run.macs.tolist() == [task.least_macs + looks * task.look_macs for looks in (2, 1, 0)]
    assert run.actions.tolist() == [[1, 1], [1, 0], [0, -1]]
    torch.testing.assert_close(run.places[0], actions[0, :, 1:])
    assert run.places[2, 1].isnan().all()


def test_environment_passes_stable_baselines_own_check(task, tiny_images):
    engine = Engine(task, tiny_images.policy, reward=make_reward("accuracy"), price=0.3, num_envs=1)
    check_env(SkipEnv(engine=engine))


def test_saved_controller_looks_at_the_same_places(task, tmp_path):
    torch.manual_seed(0)
    gate = Gate(Layout.of(task, priced=False), task.decisions, hidden=8, alike=True, coordinates=2)
    torch.nn.init.normal_(gate.head.weight)
    images = torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(2))
    controller = Controller(task, GatePolicy(gate))
    controller.save(tmp_path / "controller")
    before, after = controller(images, batch_size=4), Controller.load(tmp_path / "controller")(images)
    assert torch.equal(before.actions, after.actions)
    torch.testing.assert_close(before.places, after.places, equal_nan=True)
    torch.testing.assert_close(before.logits, after.logits)
    said = after.places[after.actions >= 0]
    assert len(said) == 6 + int((after.actions[:, 0] > 0).sum())
    assert len(said.unique(dim=0)) == len(said)
    assert said.abs().max() <= 1


class TestBaselines:
    def test_chance_looks_everywhere_alike(self, task):
        policy = random_policy(task, task.most_macs / task.full_macs)
        images = torch.zeros((400, 1, 8, 8))
        places = Controller(task, policy)(images).places.flatten(0, 1)
        assert places.mean(0).tolist() == pytest.approx([0, 0], abs=0.1)
        assert places.square().mean(0).tolist() == pytest.approx([1 / 3, 1 / 3], abs=0.05)  # of an even draw

    def test_fixed_ways_are_so_many_looks_in_the_fixed_order(self, task, tiny_images):
        assert task.paths == [(0, 0), (1, 0), (1, 1)]
        assert {point.path for point in static_frontier(task, tiny_images.val)} <= set(task.paths)
        assert Controller(task, full_policy(task))(tiny_images.val.images).actions.min() == 1

    def test_threshold_stops_in_the_fixed_order(self, task, tiny_images):
        policy = threshold_policy(task, tiny_images.val, 0.9 * task.most_macs / task.full_macs)
        assert Controller(task, policy)(tiny_images.val.images).places.isnan().all()

    def test_gain_over_a_random_crop_draws_places(self, task, tiny_images):
        engine = Engine(task, tiny_images.policy, reward=make_reward("gain-over-random"), price=0.0, num_envs=4)
        engine.seed(0)
        engine.reset()
        first = engine.step(torch.tensor([[1.0, 0.0, 0.0]] * 4)).reward
        assert first.abs().max() > 1e-4  # were the random crop in the centre too, nothing would be gained


class TestRefused:
    def test_other_places_are_told(self, random_backbone):
        with pytest.raises(ValueError, match="places: expected grid or continuous, got 'anywhere'"):
            PatchCrop(random_backbone(), places="anywhere")

    def test_oracle_says_what_to_take(self, task, tiny_images):
        with pytest.raises(ValueError, match="got patch-crop whose places are numbers. Take places of a grid"):
            bounds(task, tiny_images.val, [1.0])
        config = CompareConfig(task="patch-crop", agents=("ppo",), targets=(1.0,))
        names = {cell.method for cell in cells(config, countable=False)}
        assert "oracle" not in names
        assert "random" in names

    @pytest.mark.parametrize("agent", ["imitate", "path-table", "dqn"])
    def test_learners_by_option_say_what_to_take(self, task, agent):
        with pytest.raises(ValueError, match="got patch-crop .*ppo"):
            make_learner(agent).check(task, {})

    def test_table_says_what_to_take(self, task, tiny_images):
        with pytest.raises(ValueError, match="table: expected places that can be counted, got continuous ones"):
            tabulate(task, tiny_images, versions=1, augment=tiny_images.augment, quiet=True)

    def test_export_says_what_to_take(self, task, tmp_path):
        pytest.importorskip("onnxscript")
        with pytest.raises(ValueError, match=r"export: expected .* among options, got patch-crop whose places"):
            export_onnx(Controller(task, full_policy(task)), tmp_path / "file.onnx")
