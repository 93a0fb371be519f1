"""What makes exported files faster changes nothing of what they say."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from skipgym import Controller, make_backbone
from skipgym.agents.export import export_onnx
from skipgym.agents.policy import StaticPolicy
from skipgym.envs import make_task
from skipgym.runtime import Runtime
from skipgym.runtime.blocked import block_size, in_blocks, with_blocks
from skipgym.runtime.flow import branches
from skipgym.runtime.tidy import tidied


def every(graph):
    return [one for node in graph.node for one in (node, *(n for b in branches(node) for n in every(b)))]


@pytest.mark.skipif(not block_size(), reason="the runtime lays channels out in no blocks on this processor")
def test_branches_go_on_in_blocks_and_answer_as_torch_does(tmp_path, images, pixels, randomise):
    backbone = make_backbone("resnet8-w16", input_shape=(1, 8, 8))
    randomise(backbone.network)
    controller = Controller(make_task("layer-skip", backbone), StaticPolicy([1, 1, 0], 1))
    path = export_onnx(controller, tmp_path / "c.onnx")
    nodes = every(with_blocks(onnx.load(path)).graph)
    blocked = [node for node in nodes if (node.domain, node.op_type) == ("com.microsoft.nchwc", "Conv")]
    assert len(blocked) == sum(node.op_type == "Conv" for node in nodes) > 6
    assert any(len(node.input) == 4 for node in blocked)  # adds the shortcut by itself
    assert not any(node.op_type == "ReorderInput" for node in nodes)
    expected = controller(images).logits.numpy()
    found = Runtime.load(path)
    for way in found.ways:
        np.testing.assert_allclose(found(pixels, way=way).logits, expected, atol=1e-4 * max(1, abs(expected).max()))


def test_weights_in_blocks_hold_outputs_innermost():
    weights = np.arange(4 * 4 * 1 * 1).reshape(4, 4, 1, 1)  # number 4·output + input
    assert in_blocks(weights, 2)[1, 0, 0, 0].tolist() == [[8, 12], [9, 13]]  # outputs 2 and 3, inputs 0 and 1
    assert in_blocks(weights[:, :1], 2)[1, 0, 0, 0].tolist() == [8, 12]  # one input: as it is


def test_ways_with_sessions_of_their_own_answer_as_the_whole_file(exported, pixels):
    path = exported("block-drop/gate")[1]
    whole, runtime = Runtime.load(path), Runtime.load(path)
    runtime.warm(pixels, straight=2)
    assert len(runtime._straight.ways) == 2
    expected, found = (one(pixels, way="single") for one in (whole, runtime))
    assert len(np.unique(expected.actions, axis=0)) > 2  # so that some images take a way without a session
    for name in ("actions", "macs", "policy_macs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)


def test_ways_that_are_decided_one_block_after_the_other_get_no_sessions(exported, pixels):
    runtime = Runtime.load(exported("layer-skip/gate")[1])
    runtime.warm(pixels[:4])
    assert not runtime._straight.ways


def test_nodes_that_change_nothing_or_serve_nobody_are_left_out():
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("AveragePool", ["a"], ["b"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["b"], ["y"]),
        helper.make_node("Relu", ["a"], ["unused"]),
        helper.make_node("AveragePool", ["y"], ["z"], kernel_shape=[2, 2]),
    ]
    shape, ends = [1, 1, 4, 4], [value("y", TensorProto.FLOAT, None), value("z", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, shape)], ends)
    kept = tidied(helper.make_model(graph)).graph.node
    assert [(node.op_type, list(node.input)) for node in kept] == [("Relu", ["x"]), ("AveragePool", ["y"])]


def test_warm_runtime_of_a_policy_that_is_not_told_the_price_answers(exported, images, pixels):
    """What decides then takes no price: a static policy looks at nothing."""
    controller, path = exported("layer-skip/static")
    runtime = Runtime.load(path)
    runtime.warm(pixels)
    assert len(runtime._straight.ways) == 1
    np.testing.assert_array_equal(runtime(pixels).actions, controller(images).actions.numpy())
