"""Control flow in ONNX graphs: marked branches become `If` nodes that hold their weights.

A branch lies between an `Enter` and a `Choose` of the domain `skipgym`. Its nodes move into the branch of an `If`,
with the weights that they use: inside, a runtime fuses and lays out as in a static network only what it knows to be
constant there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

DOMAIN = "skipgym"


@dataclass
class _Graph:
    """Nodes in topological order, with what is known of their values."""

    nodes: list[NodeProto]
    weights: dict[str, TensorProto]
    outputs: set[str]
    types: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)

    def producers(self) -> dict[str, NodeProto]:
        return {name: node for node in self.nodes for name in node.output if name}


def uses(node: NodeProto) -> set[str]:
    """Return the values that a node takes, those that its branches take from outside among them."""
    taken = {name for name in node.input if name}
    for branch in branches(node):
        taken |= captured(branch)
    return taken


def branches(node: NodeProto) -> list[GraphProto]:
    """Return the subgraphs of a node."""
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def types(graph: GraphProto) -> dict[str, onnx.ValueInfoProto]:
    """Return the types of all values by name, those in branches too."""
    inner = [one for node in graph.node for branch in branches(node) for one in types(branch).values()]
    return {one.name: one for one in (*inner, *graph.value_info, *graph.input, *graph.output)}


def captured(graph: GraphProto) -> set[str]:
    """Return the values that a branch takes from outside."""
    made = {one.name for one in graph.initializer} | {name for node in graph.node for name in node.output}
    taken = set[str]().union(*(uses(node) for node in graph.node)) if graph.node else set[str]()
    return (taken | {one.name for one in graph.output}) - made


def needed(nodes: Sequence[NodeProto], ends: set[str]) -> list[NodeProto]:
    """Return those nodes that some values need."""
    wanted, found = set(ends), list[NodeProto]()
    for node in reversed(nodes):
        if wanted & set(node.output):
            found.append(node)
            wanted |= uses(node)
    return found[::-1]


def with_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which every `Choose` has become an `If`, or several, nested, for more than two options."""
    source = model.graph
    graph = _Graph(
        list(source.node),
        {one.name: one for one in source.initializer},
        {one.name for one in source.output},
        {one.name: one for one in (*source.value_info, *source.input, *source.output)},
    )
    while choose := next((node for node in graph.nodes if (node.domain, node.op_type) == (DOMAIN, "Choose")), None):
        _replace(graph, choose)
    used = set[str]().union(*map(uses, graph.nodes)) | graph.outputs
    made_here = set(graph.producers())
    made = helper.make_graph(
        graph.nodes,
        "controller",
        source.input,
        source.output,
        [one for name, one in graph.weights.items() if name in used],
        value_info=[info for name, info in graph.types.items() if name in made_here - graph.outputs],
    )
    opsets = [one for one in model.opset_import if one.domain != DOMAIN]
    return helper.make_model(made, opset_imports=opsets, ir_version=10, producer_name="skipgym")


def _replace(graph: _Graph, choose: NodeProto) -> None:
    """Make one `Choose` and the branches that it chooses from an `If`, where it stood."""
    option, *results = choose.input
    made = [_branch(graph, result) for result in results]
    gone = {id(node) for nodes in made for node in nodes}
    subgraphs = [
        _subgraph(graph, nodes, result, f"{choose.output[0]}/{index}")
        for index, (nodes, result) in enumerate(zip(made, results, strict=True))
    ]
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]
    steps = _ifs(graph, option, subgraphs, choose.output[0])
    place = next(index for index, node in enumerate(graph.nodes) if node is choose)
    graph.nodes[place : place + 1] = steps


def _ifs(graph: _Graph, option: str, subgraphs: Sequence[GraphProto], output: str) -> list[NodeProto]:
    """Return the comparisons, and an `If` whose other branch is the next `If`; the last option is asked for first."""
    comparisons: list[NodeProto] = []
    inner, node = subgraphs[0], NodeProto()
    for index in range(1, len(subgraphs)):
        wanted, missing = _compared(graph, option, index, output)
        comparisons += missing
        name = output if index == len(subgraphs) - 1 else f"{output}/upto{index}"
        node = helper.make_node(
            "If", [wanted], [name], name=f"choose {name}", then_branch=subgraphs[index], else_branch=inner
        )
        inner = helper.make_graph([node], f"{name}/upto", [], [_named(graph.types.get(output), name)])
    return [*comparisons, node]


def _compared(graph: _Graph, option: str, index: int, name: str) -> tuple[str, list[NodeProto]]:
    """Return what tells whether an option is at least a number, and the nodes that are missing for it.

    The parts of one decision are compared together, and split afterwards; what stands in the graph is used again.
    """
    told = graph.producers().get(option)
    if index == 1 and told is not None and told.op_type == "Cast" and _is_truth(graph.types.get(told.input[0])):
        return told.input[0], []
    split = next((node for node in graph.nodes if node.op_type == "Split" and option in node.output), None)
    source = split.input[0] if split else option
    bound, made = f"{source}/bound/{index}", list[NodeProto]()
    graph.weights[bound] = helper.make_tensor(bound, TensorProto.INT64, [], [index])
    compared = next((node for node in graph.nodes if [*node.input] == [source, bound]), None)
    if compared is None:
        compared = helper.make_node("GreaterOrEqual", [source, bound], [f"{name}/least/{index}"])
        graph.types[compared.output[0]] = _like(graph.types.get(source), compared.output[0], TensorProto.BOOL)
        made.append(compared)
    if split is None:
        return compared.output[0], made
    parts = next((node for node in graph.nodes if node.input and node.input[0] == compared.output[0]), None)
    if parts is None:
        parts = NodeProto()
        parts.CopyFrom(split)
        parts.input[0], parts.name = compared.output[0], f"{name}/parts/{index}"
        for place, one in enumerate(split.output):
            parts.output[place] = f"{name}/{one}/least/{index}"
            graph.types[parts.output[place]] = _like(graph.types.get(one), parts.output[place], TensorProto.BOOL)
        made.append(parts)
    return parts.output[list(split.output).index(option)], made


def _is_truth(info: onnx.ValueInfoProto | None) -> bool:
    return info is not None and info.type.tensor_type.elem_type == TensorProto.BOOL


def _branch(graph: _Graph, result: str) -> list[NodeProto]:
    """Return the nodes of the branch that ends in a value."""
    producers = graph.producers()
    ancestors: list[NodeProto] = []
    seen, ahead = set[int](), [result]
    while ahead:
        node = producers.get(ahead.pop())
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            ancestors.append(node)
            ahead.extend(uses(node))
    order = [node for node in graph.nodes if id(node) in seen]
    return _inside(graph, order, result)


def _inside(graph: _Graph, ancestors: list[NodeProto], result: str) -> list[NodeProto]:
    """Return those ancestors of a result that come after an `Enter`, or serve nothing else."""
    entered = set[str]()
    chosen = set[int]()
    for node in ancestors:
        if (node.domain, node.op_type) == (DOMAIN, "Enter") or uses(node) & entered:
            chosen.add(id(node))
            entered.update(node.output)
    users: dict[str, list[NodeProto]] = {}
    for node in graph.nodes:
        for name in uses(node):
            users.setdefault(name, []).append(node)
    for node in reversed(ancestors):
        serves = [user for name in node.output for user in users.get(name, [])]
        ends = result in node.output and all(user.op_type == "Choose" for user in serves) and len(serves) == 1
        helps = bool(serves) and all(id(user) in chosen for user in serves)
        if (ends or helps) and not graph.outputs & set(node.output):
            chosen.add(id(node))
    return [node for node in ancestors if id(node) in chosen]


def _subgraph(graph: _Graph, nodes: Iterable[NodeProto], result: str, name: str) -> GraphProto:
    """Return a branch as a graph of its own, with the weights that it uses, under names of its own."""
    names: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in nodes:
        if (node.domain, node.op_type) == (DOMAIN, "Enter"):
            names[node.output[0]] = names.get(node.input[0], node.input[0])
            continue
        kept.append(renamed(node, names))
    output = names.get(result, result)
    if output not in {made for node in kept for made in node.output}:
        kept.append(helper.make_node("Identity", [output], [f"{name}/same"]))
        output = f"{name}/same"
    used = set[str]().union(*map(uses, kept))
    weights = [graph.weights[one] for one in sorted(used & graph.weights.keys())]
    own = {one.name: f"{name}/{one.name}" for one in weights}
    copies = []
    for one in weights:
        copy = TensorProto()
        copy.CopyFrom(one)
        copy.name = own[one.name]
        copies.append(copy)
    made = {one for node in kept for one in node.output} - {output}
    known = [info for one, info in graph.types.items() if one in made]
    ends = [_named(graph.types.get(result), output)]
    return helper.make_graph([renamed(node, own) for node in kept], name, [], ends, copies, value_info=known)


def renamed(node: NodeProto, names: dict[str, str]) -> NodeProto:
    """Return a copy of a node that takes values by other names, in its branches too."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for index, name in enumerate(copy.input):
        copy.input[index] = names.get(name, name)
    for branch in branches(copy):
        inner = {old: new for old, new in names.items() if old in captured(branch)}
        for index, one in enumerate(branch.node):
            branch.node[index].CopyFrom(renamed(one, inner))
    return copy


def _named(info: onnx.ValueInfoProto | None, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    if info is not None:
        copy.CopyFrom(info)
    copy.name = name
    return copy


def _like(info: onnx.ValueInfoProto | None, name: str, kind: int) -> onnx.ValueInfoProto:
    copy = _named(info, name)
    copy.type.tensor_type.elem_type = kind
    return copy
