"""Leave out of a graph what changes nothing and what nobody uses: at this size of networks every node costs time."""

import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

from .flow import branches, needed, renamed, uses


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without nodes that change nothing or whose results nobody takes."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    types = {one.name: one for one in (*graph.value_info, *graph.input)}
    ends, same, kept = {one.name for one in graph.output}, dict[str, str](), list[NodeProto]()
    nothing = {one.name for one in graph.initializer if _is_no_cost(one)}
    for one in graph.node:
        node = renamed(one, same)
        kept_input = _without(node, nothing) or (node.input[0] if _changes_nothing(node, types) else None)
        if kept_input and node.output[0] not in ends:
            same[node.output[0]] = kept_input
        else:
            kept.append(node)
    _replace(graph, needed(kept, ends))
    return made


def _replace(graph: GraphProto, nodes: list[NodeProto]) -> None:
    taken = set[str]().union(*map(uses, nodes), {one.name for one in graph.output})
    weights = [one for one in graph.initializer if one.name in taken]
    known = {name for node in nodes for name in node.output}
    infos = [one for one in graph.value_info if one.name in known]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    graph.value_info.extend(infos)


def _is_no_cost(weight: onnx.TensorProto) -> bool:
    """Return whether a weight is 0 in double precision, in which MACs are summed and nothing else is computed."""
    return weight.data_type == onnx.TensorProto.DOUBLE and not numpy_helper.to_array(weight).any()


def _without(node: NodeProto, nothing: set[str]) -> str | None:
    """Return what a sum with nothing, or a product with nothing, is the same as."""
    zeros = [name for name in node.input if name in nothing]
    if not zeros or node.op_type not in ("Add", "Mul"):
        return None
    return zeros[0] if node.op_type == "Mul" else next((name for name in node.input if name not in nothing), zeros[0])


def _changes_nothing(node: NodeProto, types: dict[str, onnx.ValueInfoProto]) -> bool:
    """Return whether a node gives what it takes."""
    if node.op_type == "AveragePool":
        told = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        return set(told["kernel_shape"]) | set(told.get("strides", [1])) == {1} and not any(told.get("pads", []))
    if node.op_type == "Expand":
        before, after = (_shape(types.get(name)) for name in (node.input[0], node.output[0]))
        return before is not None and before == after
    return node.op_type == "Identity" and not branches(node)


def _shape(info: onnx.ValueInfoProto | None) -> list[int | str] | None:
    """Return a value's shape with names for what is open; None where it is not known."""
    if info is None or not info.type.tensor_type.HasField("shape"):
        return None
    return [one.dim_param or one.dim_value for one in info.type.tensor_type.shape.dim]
