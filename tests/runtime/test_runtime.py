"""An exported file decides and answers as torch does, on its own, and refuses what is damaged or does not fit."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from skipgym import Controller
from skipgym.agents.export import export_onnx
from skipgym.agents.policy import RandomPolicy, full_policy
from skipgym.agents.traced import Traced
from skipgym.envs import make_task
from skipgym.runtime import WAYS, Runtime

CASES = [
    "layer-skip/gate",
    "layer-skip/recurrent",
    "block-drop/gate",
    "early-exit/gate",
    "early-exit/patience",
    "cascade/threshold",
    "resolution/gate",
    "channel-width/gate",
    "patch-crop/gate",
    "block-drop/gate/se-resnet8-w4",
    "block-drop/gate/deform-resnet8-w4",
]
TOLERANCE = 1e-4  # of logits: sums are taken in another order


@pytest.mark.parametrize("name", CASES)
def test_file_decides_and_answers_as_torch_does(name, exported, images, pixels):
    controller, path = exported(name)
    expected = controller(images)
    assert len(expected.actions.unique(dim=0)) > 1  # or there would be nothing to route
    runtime = Runtime.load(path)
    for way in WAYS:
        found = runtime(pixels, way=way)
        np.testing.assert_array_equal(found.actions, expected.actions.numpy())
        np.testing.assert_allclose(found.logits, expected.logits.numpy(), atol=TOLERANCE)
        np.testing.assert_array_equal(found.macs, expected.macs.numpy())
        np.testing.assert_array_equal(found.policy_macs, expected.policy_macs.numpy())


def test_file_runs_in_onnx_runtime_where_torch_and_skipgym_cannot_be_imported(exported, images, tmp_path):
    controller, path = exported("early-exit/gate")
    np.save(tmp_path / "image.npy", images[:1].numpy() / np.float32(255))
    code = f"""
import sys
sys.modules["torch"] = sys.modules["skipgym"] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession({str(path)!r})
feed = {{"image": numpy.load({str(tmp_path / "image.npy")!r}), "price": numpy.array([0.2], "float32")}}
print(session.run(["actions"], feed)[0].tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == controller(images[:1]).actions.tolist()


def test_runtime_imports_no_torch(exported, images, tmp_path):
    controller, path = exported("layer-skip/gate")
    np.save(tmp_path / "images.npy", images.numpy())
    code = f"""
import sys
sys.modules["torch"] = None
import numpy
from skipgym.runtime import Runtime
print(Runtime.load({str(path)!r})(numpy.load({str(tmp_path / "images.npy")!r})).actions.tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == controller(images).actions.tolist()


def test_importing_the_runtime_imports_neither_torch_nor_onnx():
    code = "import sys, skipgym.runtime; print([n for n in ('torch', 'onnx', 'onnxruntime') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_skipped_lies_in_branches_with_its_weights(exported):
    _, path = exported("layer-skip/gate")
    graph = onnx.load(path).graph
    forks = [node for node in graph.node if node.op_type == "If"]
    inside = [[len(one.g.initializer) > 0 for one in node.attribute if one.name == "then_branch"] for node in forks]
    assert inside == [[True]] * 3  # one for each block
    assert sum(node.op_type == "Conv" for node in graph.node) == 1  # outside there is only the stem


def test_eight_threads_give_the_answers_of_one(exported, pixels):
    runtime = Runtime.load(exported("block-drop/gate")[1])
    expected = runtime(pixels, way="single")
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda way: runtime(pixels, way=way), ["single", "routed"] * 16):
            np.testing.assert_array_equal(found.actions, expected.actions)
            np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    assert runtime.stats()["images"] == 33 * len(pixels)


def test_fastest_way_is_found_by_trying_each(exported, pixels):
    runtime = Runtime.load(exported("layer-skip/gate")[1])
    for _ in range(7):
        runtime(pixels[:16])
    (found,) = runtime.stats()["ways"].values()
    assert set(found) == set(WAYS)


def test_warming_up_on_a_batch_measures_every_way(exported, pixels):
    runtime = Runtime.load(exported("layer-skip/gate")[1])
    runtime.warm(pixels, rows=16)
    measured = runtime.stats()
    assert set(measured["ways"][16]) == set(WAYS)
    assert measured["calls"] == 0
    fastest = min(measured["ways"][16], key=measured["ways"][16].get)
    assert runtime._fastest.pick(16) == fastest


def test_budget_in_milliseconds_takes_the_lowest_price_that_is_fast_enough(exported, pixels):
    runtime = Runtime.load(exported("layer-skip/gate")[1])
    with pytest.raises(ValueError, match="budget_ms: expected a latency table"):
        runtime(pixels[:1], budget_ms=1.0)
    table = runtime.calibrate(pixels[:4], prices=[0.0, 0.5], repeats=1)
    assert [line.price for line in table] == [0.0, 0.5]
    found, expected = runtime(pixels, budget_ms=1e6), runtime(pixels, price=0.0)
    np.testing.assert_array_equal(found.actions, expected.actions)
    with pytest.raises(ValueError, match="the fastest that was calibrated"):
        runtime(pixels, budget_ms=1e-9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": np.zeros((1, 1, 9, 9), np.float32)}, "expected shape"),
        ({"images": np.zeros((1, 1, 8, 8), np.int64)}, "expected uint8 or finite floats"),
        ({"images": np.full((1, 1, 8, 8), np.nan, np.float32)}, "got float32 from nan to nan"),
        ({"images": np.full((1, 1, 8, 8), 2, np.float32)}, "from 2 to 2"),
        ({"price": -0.1}, "price: expected 0 upwards"),
        ({"price": float("nan")}, "price: expected 0 upwards"),
        ({"way": "fast"}, "way: expected one of single, routed, masked"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message, exported, pixels):
    runtime = Runtime.load(exported("layer-skip/gate")[1])
    with pytest.raises(ValueError, match=message):
        runtime(**{"images": pixels, **wrong})


def _truncated(model):
    return model.SerializeToString()[:-200]


def _changed(model):
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    return model.SerializeToString()


def _newer(model):
    model.metadata_props[0].value = json.dumps({**json.loads(model.metadata_props[0].value), "format": 99})
    return model.SerializeToString()


def _foreign(model):
    del model.metadata_props[:]
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, "truncated"),
        (_changed, "It was changed"),
        (_newer, "expected format 1, got 99. Update skipgym"),
        (_foreign, "expected a file that skipgym exported"),
        (lambda model: b"no onnx", "truncated or no ONNX file"),
        (lambda model: b"", "truncated or no ONNX file"),
    ],
)
def test_damaged_or_foreign_file_is_refused(damage, message, exported, tmp_path):
    model = onnx.load(exported("layer-skip/gate")[1])
    (tmp_path / "bad.onnx").write_bytes(damage(model))
    with pytest.raises(ValueError, match=message):
        Runtime.load(tmp_path / "bad.onnx")


def test_what_cannot_be_exported_is_told(exported, tmp_path):
    controller, path = exported("layer-skip/gate")
    with pytest.raises(FileExistsError, match="exists"):
        export_onnx(controller, path)
    controller = type(controller)(controller.task, RandomPolicy(0.5, (2,)))
    with pytest.raises(ValueError, match="without chance"):
        export_onnx(controller, tmp_path / "r.onnx")


def test_task_of_clips_is_refused_with_what_to_use_instead(random_backbone, tmp_path):
    task = make_task("frame-select", random_backbone(reader="frames"))
    with pytest.raises(ValueError, match="got frame-select, which takes clips .* by skipgym.Controller"):
        export_onnx(Controller(task, full_policy(task)), tmp_path / "refused.onnx")
    assert not list(tmp_path.iterdir())


def test_file_that_would_decide_otherwise_than_torch_is_not_written(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(Traced, "cost", lambda self, costs: self.weight(1) * 7)
    task = make_task("layer-skip", tiny_backbone)
    with pytest.raises(ValueError, match="macs .single. differ from torch's"):
        export_onnx(Controller(task, full_policy(task)), tmp_path / "wrong.onnx")
    assert not list(tmp_path.iterdir())


def test_file_tells_what_it_is(exported):
    controller, path = exported("layer-skip/gate")
    content = Runtime.load(path).card.content
    blocks = controller.task.backbone.blocks
    assert content["macs"]["pieces"] == [[block.bypass_macs, block.macs] for block in blocks]
    assert content["macs"]["full"] == controller.task.full_macs
    assert content["hashes"]["weights"] == controller.task.backbone.identity()
    assert ort.InferenceSession(path).get_modelmeta().custom_metadata_map["skipgym"]


def test_tree_is_refused_with_what_to_use_instead(random_backbone, tmp_path):
    task = make_task("routing", random_backbone("tree-resnet8-w4"))
    with pytest.raises(ValueError, match="cannot choose by where rows have come from.*Serve it by skipgym.Controller"):
        export_onnx(Controller(task, full_policy(task)), tmp_path / "refused.onnx")
