"""What makes exported files faster changes nothing of what they say."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from skipgym import Controller, make_backbone
from skipgym.agents.export import export_onnx
from skipgym.agents.policy import StaticPolicy
from skipgym.envs import make_task
from skipgym.runtime import Runtime
from skipgym.runtime.blocked import block_size, in_blocks, with_blocks
from skipgym.runtime.flow import branches
from skipgym.runtime.session import call, open_session
from skipgym.runtime.tidy import tidied


def every(graph):
    return [one for node in graph.node for one in (node, *(n for b in branches(node) for n in every(b)))]


@pytest.mark.skipif(not block_size(), reason="the runtime lays channels out in no blocks on this processor")
def test_branches_go_on_in_blocks_and_answer_as_torch_does(tmp_path, images, pixels, randomise):
    wide = 2 * block_size()  # so that what the shortcuts pad with, half of this, is in blocks too
    backbone = make_backbone(f"resnet8-w{wide}", input_shape=(1, 8, 8))
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


def test_sums_and_products_with_no_cost_are_left_out():
    value, ends = helper.make_tensor_value_info, ["y", "z", "w"]
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["none"]),
        helper.make_node("Add", ["none", "x"], ["sum"]),
        helper.make_node("Add", ["one", "sum"], ["y"]),
        helper.make_node("Mul", ["x", "one"], ["z"]),
        helper.make_node("Mul", ["u", "float"], ["w"]),  # a feature that is no number times 0 is none either
    ]
    weights = [
        helper.make_tensor("zero", TensorProto.DOUBLE, [1], [0.0]),
        helper.make_tensor("one", TensorProto.DOUBLE, [1], [1.0]),
        helper.make_tensor("float", TensorProto.FLOAT, [1], [0.0]),
    ]
    given = [value("x", TensorProto.DOUBLE, [1]), value("u", TensorProto.FLOAT, [1])]
    graph = helper.make_graph(nodes, "g", given, [value(one, TensorProto.DOUBLE, [1]) for one in ends], weights)
    kept = tidied(helper.make_model(graph)).graph.node
    assert [list(node.input) for node in kept] == [["one", "x"], ["x", "one"], ["u", "float"]]


@pytest.mark.skipif(not block_size(), reason="the runtime lays channels out in no blocks on this processor")
def test_pools_multiples_and_constants_stay_in_blocks():
    """Convolution, maximum of windows, half of it, and zeros beside it: one reordering, at the end."""
    channels, value = 16, helper.make_tensor_value_info
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((channels, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Mul", ["half", "p"], ["h"]),
        helper.make_node(
            "ConstantOfShape", ["shape"], ["k"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [3])
        ),
        helper.make_node("Add", ["h", "k"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(kernel, "kernel"),
        numpy_helper.from_array(np.float32(0.5), "half"),
        numpy_helper.from_array(np.array([1, channels, 2, 2]), "shape"),
    ]
    known = [
        value(name, TensorProto.FLOAT, [1, channels, side, side])
        for name, side in zip("cphk", (4, 2, 2, 2), strict=True)
    ]
    given, end = (value(*one) for one in (("x", 1, [1, 3, 4, 4]), ("y", 1, [1, channels, 2, 2])))
    graph = helper.make_graph(nodes, "g", [given], [end], weights, value_info=known)
    model = with_blocks(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    assert [node.op_type for node in model.graph.node if node.op_type.startswith("Reorder")] == ["ReorderOutput"]
    image = generator.standard_normal((1, 3, 4, 4)).astype(np.float32)
    made = np.einsum("oi,nihw->nohw", kernel[:, :, 0, 0], image).reshape(1, channels, 2, 2, 2, 2).max((3, 5))
    (found,) = call(open_session(model.SerializeToString(), threads=1), None, {"x": image})
    np.testing.assert_allclose(found, made / 2 + 3, rtol=1e-5)


def test_warm_runtime_of_a_policy_that_is_not_told_the_price_answers(exported, images, pixels):
    """What decides then takes no price: a static policy looks at nothing."""
    controller, path = exported("layer-skip/static")
    runtime = Runtime.load(path)
    runtime.warm(pixels)
    assert len(runtime._straight.ways) == 1
    np.testing.assert_array_equal(runtime(pixels).actions, controller(images).actions.numpy())
