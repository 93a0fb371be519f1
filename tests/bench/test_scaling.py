import pytest

from skipgym.bench.ground import Ground
from skipgym.bench.scaling import STATUS, Scale, _points, measured, scale_up

needs_account = pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell a process's memory")

SMALL = Ground(backbone="resnet8-w4", shape=(1, 8, 8), num_envs=4, rounds=1)


def test_each_point_varies_one_thing():
    points = list(_points(SMALL, Scale(envs=(8,), images=(5,), backbones=("resnet14-w4",)), 32))
    told = [(varied, ground.num_envs, images, ground.backbone) for varied, ground, images in points]
    assert told == [
        ("slots", 8, 32, "resnet8-w4"),
        ("images", 4, 5, "resnet8-w4"),
        ("blocks", 4, 32, "resnet14-w4"),
    ]


@needs_account
def test_images_take_their_bytes_in_a_process_that_has_used_as_little_before():
    few, many = scale_up(SMALL, Scale(envs=(4,), images=(1 << 19,), backbones=()), images=64)
    assert many["bytes"] - few["bytes"] > 30e6  # 32 MiB of images


@needs_account
def test_point_is_what_it_says():
    point = measured(SMALL, 16)
    assert point["seconds"] * point["decisions_per_second"] == pytest.approx(4 * 3)
    assert point["bytes"] >= 0
    assert (point["num_envs"], point["images"], point["backbone"], point["blocks"]) == (4, 16, "resnet8-w4", 3)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="scale: expected envs and images of at least 1"):
        Scale(envs=(0,))


def test_system_that_tells_no_memory_is_told_of(monkeypatch, tmp_path):
    monkeypatch.setattr("skipgym.bench.scaling.STATUS", tmp_path / "none")
    with pytest.raises(OSError, match="expected a system that tells a process's memory"):
        scale_up(SMALL, Scale())
