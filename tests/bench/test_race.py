import time

from skipgym.bench.race import Race, Spread, machine, race


def test_every_runner_warms_up_and_then_runs_once_in_each_round():
    order = []

    def runner(name, units):
        return lambda: order.append(name) or units

    found = race({"a": runner("a", 2), "b": runner("b", 3)}, 2, lambda: order.append("told"))
    assert order == ["a", "told", "b", "told", *["a", "told", "b", "told"] * 2]
    assert [len(rates) for rates in found.rates.values()] == [2, 2]


def test_rate_is_units_per_second():
    def wait():
        time.sleep(0.05)
        return 10

    assert 100 < race({"a": wait}, 3).rate("a").median <= 200


def test_ratios_are_formed_round_by_round():
    found = Race({"a": [2.0, 8.0, 30.0], "b": [1.0, 2.0, 10.0]})
    assert found.ratio("a", "b") == Spread(3.0, 2.5, 3.5)  # of 2, 4, 3; the medians' ratio would be 4
    told = found.as_json("a")
    assert told["ratio"] == {"b": {"median": 3.0, "low": 2.5, "high": 3.5}}
    assert told["rounds"]["b"] == [1.0, 2.0, 10.0]


def test_one_measurement_has_no_spread():
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0)


def test_machine_is_described():
    told = machine()
    assert told["threads"] == 1
    assert told["cores"] >= 1
