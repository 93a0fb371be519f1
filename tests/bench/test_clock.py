import time

import pytest
from torch import nn

from skipgym.bench.clock import Clock


class Worker:
    def outer(self):
        time.sleep(0.02)
        self.inner()

    def inner(self):
        time.sleep(0.04)
        return "done"


class Heir(Worker):
    pass


def test_a_call_inside_another_is_taken_off_its_time():
    clock = Clock()
    with clock.watch(Worker, ["outer"], "out"), clock.watch(Worker, ["inner"], "in"):
        Worker().outer()
    assert 0.02 <= clock.seconds["out"] < 0.04 <= clock.seconds["in"]


def test_inside_a_whole_kind_everything_counts_as_it():
    clock = Clock(whole=["out"])
    with clock.watch(Worker, ["outer"], "out"), clock.watch(Worker, ["inner"], "in"):
        Worker().outer()
    assert set(clock.seconds) == {"out"}
    assert clock.seconds["out"] >= 0.06


def test_all_times_add_up_to_the_whole():
    clock, started = Clock(), time.perf_counter()
    with clock.count("rest"), clock.watch(Worker, ["inner"], "in"):
        Worker().outer()
        Worker().inner()
    whole = time.perf_counter() - started
    assert sum(clock.seconds.values()) == pytest.approx(whole, abs=0.005)


def test_modules_are_watched_while_the_context_lasts():
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(x)
            return x

    clock, module = Clock(), Slow()
    with clock.watch_modules([module], "net"):
        assert module(0.02) == 0.02
    module(0.02)
    assert 0.02 <= clock.seconds["net"] < 0.04


def test_everything_watched_is_as_it_was_afterwards():
    inner = Worker.inner
    with Clock().watch(Heir, ["inner"], "in"):
        assert "inner" in vars(Heir)
        assert Heir().inner() == "done"
    assert "inner" not in vars(Heir)
    assert Worker.inner is inner
