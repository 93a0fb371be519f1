"""A graph for batches gives each row what the graph with branches gives it alone, and runs only what rows want."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from skipgym.runtime.regroup import for_batches


def branch(name, operator, weight=None):
    inputs = ["x"] if weight is None else ["x", f"{name}/w"]
    held = [] if weight is None else [numpy_helper.from_array(np.array(weight, np.float32), f"{name}/w")]
    output = helper.make_tensor_value_info(f"{name}/y", TensorProto.FLOAT, ["n", 2])
    return helper.make_graph([helper.make_node(operator, inputs, [f"{name}/y"])], name, [], [output], held)


def choosing(then, other):
    """Return a model of one row (1, 2) that takes a branch where its first number is above 0."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "one"], ["first"]),
        helper.make_node("Greater", ["first", "nothing"], ["wanted"]),
        helper.make_node("If", ["wanted"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([0], np.float32), "nothing"),
    ]
    known = [value("first", TensorProto.FLOAT, ["n", 1]), value("wanted", TensorProto.BOOL, ["n", 1])]
    ends = [value("x", TensorProto.FLOAT, [1, 2])], [value("y", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph(nodes, "g", *ends, weights, value_info=known)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, rows):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.array(rows, np.float32)})[0]).tolist()


DOUBLE, SWAP = [[2, 0], [0, 2]], [[0, 1], [1, 0]]
BRANCHES = {
    "two products": (lambda: branch("t", "MatMul", DOUBLE), lambda: branch("o", "MatMul", SWAP)),
    "a product or nothing": (lambda: branch("t", "MatMul", DOUBLE), lambda: branch("o", "Identity")),
    "nothing or a product": (lambda: branch("t", "Neg"), lambda: branch("o", "MatMul", SWAP)),
}
MADE = {"two products": ([2, 4], [6, -5]), "a product or nothing": ([2, 4], [-5, 6])}
MADE["nothing or a product"] = ([-1, -2], [6, -5])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", BRANCHES)
def test_rows_get_what_their_branch_makes_in_their_order(name, masked):
    model = for_batches(choosing(*(make() for make in BRANCHES[name])), masked=masked)
    wants, does_not = MADE[name]
    assert run(model, [[-5, 6], [1, 2], [-5, 6]]) == [does_not, wants, does_not]
    assert run(model, [[1, 2], [1, 2]]) == [wants, wants]  # nobody takes the other branch
    assert run(model, [[-5, 6]]) == [does_not]


def test_regrouped_product_runs_only_on_the_rows_that_want_it():
    model = for_batches(choosing(branch("t", "MatMul", DOUBLE), branch("o", "Identity")), masked=False)
    (product,) = [node for node in model.graph.node if node.op_type == "MatMul"]
    model.graph.output.append(helper.make_tensor_value_info(product.input[0], TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    _, taken = session.run(None, {"x": np.array([[-1, 0], [3, 4], [-2, 0]], np.float32)})
    assert np.asarray(taken).tolist() == [[3, 4]]


def test_size_that_a_branch_takes_from_outside_is_that_of_its_rows():
    then = branch("t", "MatMul", DOUBLE)
    other = helper.make_graph(
        [
            helper.make_node("Concat", ["rows", "o/w"], ["o/shape"], axis=0),
            helper.make_node("ConstantOfShape", ["o/shape"], ["o/zeros"]),
            helper.make_node("MatMul", ["o/zeros", "o/w2"], ["o/y"]),
        ],
        "o",
        [],
        [helper.make_tensor_value_info("o/y", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(np.array([2], np.int64), "o/w"),
            numpy_helper.from_array(np.array(SWAP, np.float32), "o/w2"),
        ],
    )
    model = choosing(then, other)
    model.graph.node.insert(0, helper.make_node("Shape", ["x"], ["rows"], start=0, end=1))
    model.graph.value_info.append(helper.make_tensor_value_info("rows", TensorProto.INT64, [1]))
    assert run(for_batches(model, masked=False), [[-5, 6], [1, 2], [-1, 1]]) == [[0, 0], [2, 4], [0, 0]]
    onnx.checker.check_model(for_batches(model, masked=False))
