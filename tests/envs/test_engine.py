import gymnasium as gym
import numpy as np
import pytest
import torch

from skipgym.data import Augment
from skipgym.envs import SkipEnv, make_task
from skipgym.envs.engine import AHEAD


@pytest.fixture
def task(tiny_backbone):
    return make_task("layer-skip", tiny_backbone)


def play(engine, steps, seed=0):
    """Return observations, rewards, image numbers and prices over some steps of random actions."""
    rng, seen = np.random.default_rng(seed), []
    first = engine.reset()
    for _ in range(steps):
        transition = engine.step(torch.as_tensor(rng.integers(0, 2, engine.num_envs)))
        seen.append((transition.observation, transition.reward, engine.indices.clone(), engine.price.clone()))
    return [first, *(torch.stack(values) for values in zip(*seen, strict=True))]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class TestSeeds:
    def test_same_seed_repeats_images_augmentation_and_prices(self, task, make_engine):
        engine = make_engine(task, num_envs=3, price=(0.0, 1.0), augment=True)
        engine.seed(7)
        first = play(engine, 9)
        engine.seed(7)
        assert same(play(engine, 9), first)

    def test_different_seeds_differ(self, task, make_engine):
        engine = make_engine(task, num_envs=3, price=(0.0, 1.0))
        engine.seed(7)
        first = play(engine, 9)
        engine.seed(8)
        assert not same(play(engine, 9)[3:], first[3:])

    def test_slots_draw_different_images(self, task, make_engine):
        engine = make_engine(task, num_envs=3)
        engine.seed(7)
        assert len({tuple(column) for column in play(engine, 12)[3].T.tolist()}) == 3

    def test_without_a_seed_the_sequence_goes_on(self, task, make_engine):
        engine = make_engine(task, num_envs=8)
        engine.seed(7)
        first = engine.reset(), engine.indices.tolist()
        assert (engine.reset(), engine.indices.tolist())[1] != first[1]

    def test_numbers_drawn_ahead_are_those_that_each_slot_would_draw_one_by_one(self, task, make_engine):
        engine = make_engine(task, num_envs=2, price=(0.0, 1.0))
        engine.seed(7)
        prices = [(engine.reset(), engine.price.tolist())[1] for _ in range(AHEAD + 3)]
        slots = [np.random.default_rng(7 + i) for i in range(2)]
        expected = [[slot.random(2 + Augment.draws)[1] for slot in slots] for _ in range(AHEAD + 3)]
        assert np.allclose(prices, expected, atol=1e-6)

    def test_each_slot_can_have_its_own(self, task, make_engine):
        engine = make_engine(task, num_envs=2, price=(0.0, 1.0))
        engine.seed([4, 9])
        engine.reset()
        prices = engine.price.tolist()
        for seed, price in zip((4, 9), prices, strict=True):
            alone = make_engine(task, price=(0.0, 1.0))
            alone.seed(seed)
            alone.reset()
            assert alone.price.tolist() == [price]

    def test_another_number_of_seeds_is_refused(self, task, make_engine):
        with pytest.raises(ValueError, match=r"seed: expected one number, or one for each of 3 slots, got \[1, 2\]"):
            make_engine(task, num_envs=3).seed([1, 2])

    def test_all_images_are_dealt(self, task, make_engine):
        engine = make_engine(task, num_envs=64)
        engine.seed(0)
        seen = set()
        for _ in range(8):
            engine.reset()
            seen |= set(engine.indices.tolist())
        assert seen == set(range(40))


class TestPrice:
    def test_price_is_drawn_in_range_and_shown_last(self, task, make_engine):
        engine = make_engine(task, num_envs=50, price=(0.2, 0.6))
        engine.seed(0)
        observation = engine.reset()
        assert torch.equal(observation[:, -1], engine.price)
        assert engine.price.min() >= 0.2
        assert engine.price.max() <= 0.6
        assert engine.price.max() - engine.price.min() > 0.3  # 50 draws fill the range

    def test_prices_of_a_range_above_zero_are_even_by_ratio(self, task, make_engine):
        """Half of the draws are below the geometric mean, 0.1; evenly by difference it would be 9 %."""
        engine = make_engine(task, num_envs=2000, price=(0.01, 1.0))
        engine.seed(0)
        engine.reset()
        assert (engine.price < 0.1).float().mean().item() == pytest.approx(0.5, abs=0.04)

    def test_price_is_constant_within_an_episode_and_new_in_the_next(self, task, make_engine):
        engine = make_engine(task, num_envs=4, price=(0.0, 1.0))
        engine.seed(0)
        shown = [engine.reset()[:, -1]]
        shown += [engine.step(torch.zeros(4, dtype=torch.long)).observation[:, -1] for _ in range(3)]
        assert torch.equal(shown[0], shown[1])
        assert torch.equal(shown[0], shown[2])
        assert (shown[3] != shown[0]).all()

    def test_each_slot_is_charged_its_own_price(self, task, make_engine):
        engine = make_engine(task, num_envs=4, price=(0.1, 1.0))
        engine.seed(0)
        engine.reset()
        price, net = engine.price.clone(), task.backbone
        reward = engine.step(torch.ones(4, dtype=torch.long)).reward
        assert torch.allclose(reward, -price * (net.stem_macs + net.blocks[0].macs) / net.full_macs)

    def test_fixed_price_is_not_shown(self, task, make_engine):
        engine = make_engine(task, price=0.3)
        assert engine.reset().shape == (1, 8 + 3)

    def test_list_is_a_range_too(self, task, make_engine):
        """As a range becomes in JSON, of which gym's specs are made."""
        engine = make_engine(task, price=[0.2, 0.6])
        assert (engine.layout.priced, engine.low, engine.high) == (True, 0.2, 0.6)

    def test_set_price_counts_at_once_and_from_then_on(self, task, make_engine):
        engine, net = make_engine(task, price=0.3), task.backbone
        engine.reset()
        engine.set_price(0.8)
        reward = engine.step(torch.ones(1, dtype=torch.long)).reward
        assert float(reward) == pytest.approx(-0.8 * (net.stem_macs + net.blocks[0].macs) / net.full_macs)
        engine.reset()
        assert engine.price.tolist() == pytest.approx([0.8])

    @pytest.mark.parametrize("price", [-0.1, (0.5, 0.2), (-1, 1), float("nan"), float("inf"), (0.1,), (0.1, 0.2, 0.3)])
    def test_impossible_prices_are_refused(self, task, make_engine, price):
        with pytest.raises(ValueError, match="price: expected a number >= 0, or a range"):
            make_engine(task, price=price)

    def test_impossible_prices_cannot_be_set(self, task, make_engine):
        with pytest.raises(ValueError, match="price: expected a number >= 0"):
            make_engine(task).set_price(-0.1)


class TestBookkeeping:
    def test_tally_counts_episodes_since_the_last_look(self, task, make_engine):
        engine, net = make_engine(task, num_envs=2, policy_macs=100), task.backbone
        engine.reset()
        for actions in ([1, 0], [0, 0], [1, 0], [0, 1]):  # one episode each, then one decision
            engine.step(torch.tensor(actions))
        tally = engine.drain()
        macs = [net.stem_macs + net.head_macs + net.blocks[0].macs + net.blocks[2].macs, net.least_macs]
        assert tally.episodes == 2
        assert tally.backbone_macs == sum(macs)
        assert tally.means()["compute"] == pytest.approx((sum(macs) + 2 * 300) / 2 / net.full_macs)
        assert tally.execution() == [0.5, 0.0, 0.5]  # of the first block 2 of 4, of the others 0 and 1 of 2
        assert engine.drain().episodes == 0

    def test_first_state_can_be_dealt_to_a_learner(self, task, make_engine):
        engine = make_engine(task, num_envs=5, price=(0.0, 1.0))
        engine.seed(0)
        state, labels, prices = engine.deal()
        assert (len(state), state.position) == (5, 0)
        assert torch.equal(labels, engine.labels[engine.indices])
        assert torch.equal(prices, engine.price)

    def test_nothing_of_an_engine_carries_gradients(self, task, make_engine):
        engine = make_engine(task)
        observation = engine.reset()
        transition = engine.step(torch.ones(1, dtype=torch.long))
        assert not observation.requires_grad
        assert not transition.reward.requires_grad
        assert not transition.observation.requires_grad


class TestMistakes:
    @pytest.mark.parametrize("count", [0, -3])
    def test_no_slots(self, task, make_engine, count):
        with pytest.raises(ValueError, match=f"num_envs: expected at least 1, got {count}"):
            make_engine(task, num_envs=count)

    def test_step_before_reset(self, task, make_engine):
        with pytest.raises(gym.error.ResetNeeded, match="No episode is under way"):
            make_engine(task).step(torch.tensor([0]))

    def test_step_after_the_end(self, task, make_engine):
        env = SkipEnv(engine=make_engine(task))
        env.reset()
        assert [env.step(1)[2] for _ in range(3)] == [False, False, True]
        with pytest.raises(gym.error.ResetNeeded, match=r"expected reset\(\), got step\(\)"):
            env.step(1)
