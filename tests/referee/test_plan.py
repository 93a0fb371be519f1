"""A comparison is checked when it is described, and falls into cells that are known by what they compute."""

from dataclasses import replace

import pytest

from skipgym.referee.methods import METHODS, check_methods, is_learned, written_out
from skipgym.referee.plan import Budget, Cell, CompareConfig, cells

IDENTITY = {"backbone": "b" * 16, "data": "d" * 16}


def keys(config, identity=IDENTITY):
    return [cell.key(config, identity) for cell in cells(config)]


# --- what is refused ---


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 0}, "seeds: expected at least 1, got 0. Change --seeds"),
        ({"images": 0}, "images: expected at least 1, got 0"),
        ({"num_envs": -1}, "num_envs: expected at least 1, got -1. Change --num-envs"),
        ({"hidden": 0}, "hidden: expected at least 1, got 0"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"oracle_paths": 0}, "oracle_paths: expected at least 1, got 0"),
        ({"oracle_images": -1}, "oracle_images: expected 0 or more, got -1"),
        ({"targets": ()}, "targets: expected one or more, or --prices, got none of both"),
        ({"targets": (0.5, 0.4, 0.5)}, "targets: expected each once"),
        ({"prices": (0.1, 0.1)}, "prices: expected each once"),
        ({"prices": (0.1, -0.2)}, "prices: expected finite numbers of 0 or more, got -0.2"),
        ({"prices": (float("nan"),)}, "prices: expected finite numbers of 0 or more, got nan"),
        ({"agents": ("ppo", "gumble")}, "got 'gumble'. Did you mean gumbel"),
    ],
)
def test_wrong_configuration_is_told_at_once(wrong, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**wrong)


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        (("ppo", "a2c", "ppo"), "agents: expected each once, got ppo twice"),
        (("ppo", "threshold"), "threshold: expected a task whose backbone has exits, got layer-skip"),
        (("full",), "agents: expected learners, got full, which is always compared"),
        (("ppo", "oracle"), "agents: expected learners, got oracle, which is always compared"),
        (("gumble",), "Did you mean gumbel"),
    ],
)
def test_wrong_method_is_told(agents, message, task):
    with pytest.raises(ValueError, match=message):
        check_methods(agents, task)


def test_method_that_cannot_take_the_task_is_told(backbone):
    from skipgym.envs import make_task

    with pytest.raises(ValueError, match="one part"):
        check_methods(["dqn"], make_task("block-drop", backbone))


def test_what_is_always_compared_is_told_when_the_task_is_known(task):
    for name in ("full", "threshold"):
        config = CompareConfig(agents=(name,))
        with pytest.raises(ValueError, match=name):
            check_methods(config.agents, task)


def test_by_default_all_methods_train_on_layer_skip(task):
    assert written_out(CompareConfig().agents, task) == (tuple(METHODS), {})


def test_only_trying_every_way_is_left_out_on_nine_blocks(random_backbone):
    from skipgym.envs import make_task

    names, refused = written_out(["all"], make_task("layer-skip", random_backbone("resnet20-w4")))
    assert set(METHODS) - set(names) == set(refused) == {"ds-gate-cheapest"}


def test_methods_that_cannot_take_the_task_are_left_out_of_all(backbone):
    from skipgym.envs import make_task

    names, refused = written_out(["all"], make_task("block-drop", backbone))
    assert names == tuple(name for name in METHODS if name not in refused)
    assert "one part" in refused["dqn"]
    assert {"ppo", "gumbel", "path-table"} <= set(names)


def test_all_stands_beside_methods_that_are_named(task, backbone):
    from skipgym.envs import make_task

    assert written_out(["ppo+joint", "all", "ppo"], task)[0] == (*METHODS, "ppo+joint")
    with pytest.raises(ValueError, match="one part"):
        written_out(["all", "dqn"], make_task("block-drop", backbone))


# --- the cells ---


def test_cells_are_counted_by_formula():
    config = CompareConfig(agents=("ppo", "gumbel", "ppo-priced", "path-table"), targets=(0.4, 0.5, 0.6), seeds=2)
    untrained = 1 + 1 + 2 + 1  # full, static, random of each seed, oracle
    assert len(cells(config)) == untrained + 2 * (2 * 3 + 2 * 1)
    assert len(cells(replace(config, oracle_images=0))) == len(cells(config)) - 1


def test_thresholds_are_compared_where_the_task_has_exits():
    config = CompareConfig(agents=("ppo",), targets=(0.4, 0.5), seeds=2)
    more = {(cell.method, len(cell.budgets)) for cell in set(cells(config, exits=True)) - set(cells(config))}
    assert more == {("threshold", 2), ("threshold-entropy", 2), ("threshold-patience", 2)}


def test_fixed_rules_of_the_task_are_compared_once_and_not_as_learned():
    config = CompareConfig(agents=("ppo",), targets=(0.4, 0.7), seeds=2)
    found = [cell for cell in cells(config, rules=("uniform",)) if cell.method == "fixed-uniform"]
    assert [(cell.seed, len(cell.budgets)) for cell in found] == [(0, 2)]
    assert not is_learned("fixed-uniform")


def test_threshold_is_always_compared_and_not_asked_for(backbone):
    from skipgym.envs import make_task

    with pytest.raises(ValueError, match="agents: expected learners, got threshold, which is always compared"):
        check_methods(["threshold"], make_task("early-exit", backbone))


def test_method_that_serves_every_budget_is_trained_once_for_each_seed():
    config = CompareConfig(agents=("ppo-priced", "path-table"), targets=(0.6, 0.4), seeds=2)
    trained = [(cell.method, cell.seed, cell.budgets) for cell in cells(config) if cell.method in config.agents]
    both = (Budget(target=0.4), Budget(target=0.6))
    assert trained == [
        ("ppo-priced", 0, both),
        ("path-table", 0, both),
        ("ppo-priced", 1, both),
        ("path-table", 1, both),
    ]


def test_order_is_balanced_over_seeds():
    config = CompareConfig(agents=("ppo", "gumbel"), targets=(0.5,), seeds=3)
    order = [(cell.method, cell.seed) for cell in cells(config)]
    assert order[:2] == [("full", 0), ("static", 0)]
    assert order[-6:] == [("ppo", 0), ("gumbel", 0), ("ppo", 1), ("gumbel", 1), ("ppo", 2), ("gumbel", 2)]


def test_prices_replace_targets():
    config = CompareConfig(agents=("ppo",), targets=(), prices=(0.1, 0.3), seeds=1)
    assert [(cell.method, [str(b) for b in cell.budgets]) for cell in cells(config)] == [
        ("full", ["compute1"]),
        ("static", ["price0.1", "price0.3"]),
        ("ppo", ["price0.1"]),
        ("ppo", ["price0.3"]),
    ]


# --- how a cell is trained ---


def test_every_training_has_the_same_budget_of_macs():
    config = CompareConfig(agents=tuple(METHODS), images=500, seeds=2)
    found = {cell.train_config(config, 1000).train_macs for cell in cells(config) if cell.method in config.agents}
    assert found == {500_000.0}


def test_target_or_price_reaches_the_training():
    config = CompareConfig()
    at_target = Cell(method="ppo", seed=1, budgets=(Budget(target=0.4),)).train_config(config, 1)
    assert (at_target.target_compute, at_target.price, at_target.seed) == (0.4, 0.0, 1)
    at_price = Cell(method="gumbel", seed=0, budgets=(Budget(price=0.3),)).train_config(config, 1)
    assert (at_price.target_compute, at_price.price, at_price.agent) == (None, 0.3, "gumbel")
    priced = Cell(method="ppo-priced", seed=0, budgets=(Budget(target=0.4),)).train_config(config, 1)
    assert (priced.target_compute, priced.price, priced.agent) == (None, METHODS["ppo-priced"].priced, "ppo")
    recurrent = Cell(method="skipnet-recurrent", seed=0, budgets=(Budget(target=0.4),)).train_config(config, 1)
    assert (recurrent.agent, recurrent.agent_options) == ("skipnet", {"recurrent": 1})


def test_reward_reaches_the_training():
    cell = Cell(method="ppo", seed=0, budgets=(Budget(target=0.4),))
    assert cell.train_config(CompareConfig(), 1).reward == "accuracy"
    assert cell.train_config(CompareConfig(reward="confidence-gain"), 1).reward == "confidence-gain"


# --- the keys ---

BASE = CompareConfig(agents=("ppo", "path-table"), targets=(0.4, 0.6), seeds=2)


def test_keys_are_legible_and_different():
    found = keys(BASE)
    assert len(set(found)) == len(found)
    assert [key.rsplit("-", 1)[0] for key in found][-3:] == [
        "ppo-compute0.4-seed1",
        "ppo-compute0.6-seed1",
        "path-table-all-seed1",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"images": 19_999},
        {"num_envs": 128},
        {"hidden": 32},
        {"reward": "cross-entropy"},
        {"task": "block-drop"},
        {"backbone": "resnet32"},
        {"data": "noisy-digits"},
        {"weights": "w.safetensors"},
        {"task_options": {"groups": 2}},
        {"prefix": 1},
    ],
)
def test_training_has_another_key_when_what_matters_differs(change):
    trained = {key for key in keys(BASE) if key.startswith(BASE.agents)}
    assert len(trained) == 6
    assert trained.isdisjoint(keys(replace(BASE, **change)))


@pytest.mark.parametrize("name", ["backbone", "data"])
def test_every_cell_has_another_key_on_other_weights_or_images(name):
    assert set(keys(BASE)).isdisjoint(keys(BASE, IDENTITY | {name: "e" * 16}))


def test_bounds_have_another_key_when_the_oracle_looks_at_other_things():
    oracle = [key for key in keys(BASE) if key.startswith("oracle")]
    assert len(oracle) == 1
    for change in ({"oracle_images": 10}, {"oracle_paths": 10}):
        assert oracle[0] not in keys(replace(BASE, **change))


def test_another_set_of_budgets_is_another_training_of_what_serves_them_all():
    table = {key for key in keys(BASE) if key.startswith("path-table")}
    assert table.isdisjoint(keys(replace(BASE, targets=(0.4, 0.7))))


@pytest.mark.parametrize(
    "change",
    [{"workers": 7}, {"agents": ("gumbel", "path-table", "ppo")}, {"seeds": 5}, {"targets": (0.6, 0.4)}],
)
def test_keys_stay_when_nothing_that_matters_differs(change):
    assert set(keys(BASE)) <= set(keys(replace(BASE, **change)))


def test_another_budget_leaves_single_trainings_as_they_are():
    single = {key for key in keys(BASE) if key.startswith("ppo")}
    assert single <= set(keys(replace(BASE, targets=(0.4, 0.5, 0.6))))


def test_trainings_do_not_depend_on_the_oracle():
    trained = {key for key in keys(BASE) if key.startswith(BASE.agents)}
    assert trained <= set(keys(replace(BASE, oracle_images=0)))


def test_command_adds_nothing_to_the_keys(tmp_path):
    from skipgym.scripts.compare import Config

    command = Config(agents=BASE.agents, targets=BASE.targets, seeds=BASE.seeds, out=tmp_path)
    assert keys(command) == keys(BASE)
