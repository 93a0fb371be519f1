import numpy as np
import pytest

from skipgym import Controller
from skipgym.agents.policy import StaticPolicy
from skipgym.bench.controllers import Pace, compare_controller
from skipgym.bench.race import Race
from skipgym.envs import make_task


def test_pace_is_that_of_calls_and_of_images():
    races = [Race({"a": [4.0, 2.0, 1.0]}), Race({"a": [1.0, 1.0, 1.0]})]  # images per second; two in a call
    pace = Pace.of(races, "a", 2)  # calls take 0.5, 1, 2 and 2, 2, 2 s; in the median 1 and 2
    assert pace.p50_ms == 2000
    assert pace.images_per_second == pytest.approx(2 / 1.5)


def test_controller_and_static_network_answer_the_same_batches(tiny_backbone):
    task = make_task("layer-skip", tiny_backbone)
    controller = Controller(task, StaticPolicy([1, 0, 1], 1))
    images = np.random.default_rng(0).integers(256, size=(5, *tiny_backbone.input_shape), dtype=np.uint8)
    told = []
    found = compare_controller(controller, images, batch_sizes=(1, 4), batches=2, rounds=2, told=lambda: told.append(1))
    assert set(found) == {"1", "4"}
    block = tiny_backbone.blocks[1]
    for figures in found.values():
        assert figures["compute"] == pytest.approx(1 - (block.macs - block.bypass_macs) / task.full_macs)
        pair = figures["controller"]["images_per_second"] / figures["static"]["images_per_second"]
        assert figures["speed_up"] == pytest.approx(pair)
        assert figures["realised"] == pytest.approx(pair * figures["compute"])
        assert figures["paths"] == 1
    assert found["1"]["way"] == "single"
    assert len(told) == 2 * 2 * 2 * (1 + 2)  # sizes, batches, runners, rounds with the first
