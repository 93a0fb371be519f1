"""A graph for batches: at every choice rows are regrouped, or every branch runs on all of them.

All of it is one graph, and one call of the runtime: branches stand side by side in the place of an `If`. Regrouped, a
branch takes the rows that want it, and what it makes is put in their places; a branch without a convolution or a
product runs on all rows, which costs less than to move them. Masked, all branches run on all rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .flow import branches, captured, needed, renamed, types, uses

HEAVY = frozenset({"Conv", "FusedConv", "Gemm", "MatMul", "FusedMatMul", "GridSample", "If"})
"""Operators that are worth moving rows for."""
ROWS = "rows/count"


def for_batches(model: onnx.ModelProto, *, masked: bool) -> onnx.ModelProto:
    """Return a model without branches that takes any number of rows, and gives a row for each.

    Args:
        model: Its pieces must hold for any number of rows.
        masked: Run every branch on all rows and select, as against regrouping them.
    """
    batch = _Batch(model.graph, masked)
    batch.emit("Shape", [model.graph.input[0].name], ROWS, start=0, end=1)
    batch.inline(model.graph, {}, ROWS, "")
    ends = {one.name for one in model.graph.output}
    nodes = needed(batch.nodes, ends)
    used = set[str]().union(*map(uses, nodes), ends)
    graph = helper.make_graph(
        nodes,
        "batch",
        [_any_rows(one) for one in model.graph.input],
        [_any_rows(one) for one in model.graph.output],
        [one for name, one in batch.weights.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _any_rows(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Return the type of a value, for any number of rows."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(info)
    copy.type.tensor_type.shape.dim[0].dim_param = ROWS
    return copy


@dataclass
class _Batch:
    """The graph while it is made.

    Attributes:
        graph: What it is made of.
        masked: See `for_batches`.
        nodes: Made so far.
        weights: Of all branches, by name, which is the name in the file.
        sizes: What makes values that tell how many rows there are.
        groups: Numbers of the rows that want an `If`'s branch, by condition, branch and number of all.
    """

    graph: GraphProto
    masked: bool
    nodes: list[NodeProto] = field(default_factory=list)
    weights: dict[str, TensorProto] = field(default_factory=dict)
    sizes: dict[str, NodeProto] = field(default_factory=dict)
    groups: dict[tuple[str, bool, str], tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Note the types of all values, and which have a row for each image."""
        self.types = types(self.graph)
        self.inputs = {one.name for one in self.graph.input}
        self._note_sizes(self.graph)
        self._constant("rows/flat", [-1])
        self._constant("rows/column", [-1, 1])

    def emit(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node, and return its output."""
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def inline(self, graph: GraphProto, names: Mapping[str, str], rows: str, tag: str) -> dict[str, str]:
        """Add a graph's nodes.

        Args:
            graph: The whole, or a branch.
            names: What it takes from outside, by its names there.
            rows: Name of the number of rows that it runs on.
            tag: Put behind the names of what it makes.

        Returns:
            The new names of all values.
        """
        known = dict(names)
        self.weights |= {one.name: one for one in graph.initializer}
        for node in graph.node:
            if node.op_type == "If":
                known[node.output[0]] = self._choose(node, known, rows, f"{node.output[0]}{tag}")
                continue
            copy = renamed(node, known)
            copy.ClearField("name")  # no two nodes may have the same, and branches are copied
            for index, name in enumerate(node.output):
                known[name] = copy.output[index] = f"{name}{tag}" if name else ""
            self.nodes.append(copy)
        return known

    def _choose(self, node: NodeProto, known: Mapping[str, str], rows: str, output: str) -> str:
        """Add both branches, and what puts their rows together."""
        wanted = known.get(node.input[0], node.input[0])
        then, other = (_named(node, name) for name in ("then_branch", "else_branch"))
        if self.masked:
            return self._masked((then, other), known, rows, wanted, output)
        heavy = [branch for branch in (then, other) if _is_heavy(branch)]
        if len(heavy) == 2:
            return self._merged((then, other), known, rows, wanted, output)
        moved, base = (other, then) if heavy == [other] else (then, other)
        below = self._whole(base, known, rows, f"{output}/base")
        _, places, made = self._moved(moved, known, rows, (wanted, moved is then), output)
        return self.emit("ScatterND", [below, places, made], output)

    def _masked(self, both: Sequence[GraphProto], known: Mapping[str, str], rows: str, wanted: str, output: str) -> str:
        made = [self.inline(one, known, rows, f"/{output}/{i}")[_end(one)] for i, one in enumerate(both)]
        shape = [-1, *[1] * (len(self._dims(_end(both[0]))) - 1)]
        column = self.emit("Reshape", [wanted, self._constant(f"{output}/shape", shape)], f"{output}/wanted")
        return self.emit("Where", [column, *made], output)

    def _merged(self, both: Sequence[GraphProto], known: Mapping[str, str], rows: str, wanted: str, output: str) -> str:
        """Run each branch on its own rows, and put them in order."""
        found = [
            self._moved(one, known, rows, (wanted, index == 0), f"{output}/{index}") for index, one in enumerate(both)
        ]
        made = self.emit("Concat", [one[2] for one in found], f"{output}/made", axis=0)
        order = self.emit("Concat", [one[1] for one in found], f"{output}/order", axis=0)
        zeros = numpy_helper.from_array(np.zeros(1, np.int64))
        blank = self.emit("ConstantOfShape", [rows], f"{output}/blank", value=zeros)
        zero, one = (self._constant(f"rows/{number}", number) for number in (0, 1))
        last = self.emit("Reshape", [rows, self._constant("rows/scalar", [])], f"{output}/last")
        number = self.emit("Range", [zero, last, one], f"{output}/number")
        place = self.emit("ScatterND", [blank, order, number], f"{output}/place")
        return self.emit("Gather", [made, place], output, axis=0)

    def _moved(
        self, branch: GraphProto, known: Mapping[str, str], rows: str, wanted: tuple[str, bool], tag: str
    ) -> tuple[str, str, str]:
        """Run a branch on the rows that want it; return their numbers, flat and as a column, and what it makes."""
        key = (*wanted, rows)
        if key not in self.groups:
            self.groups[key] = self._group(*key)
        index, places = self.groups[key]
        inner, count = dict(known), self.emit("Shape", [index], f"{tag}/count")
        for name in sorted(captured(branch)):
            self._take(name, known, inner, index, tag)
        ends = self.inline(branch, inner, count, f"/{tag}")
        return index, places, self._full(_end(branch), ends[_end(branch)], count, f"{tag}/full")

    def _take(self, name: str, known: Mapping[str, str], inner: dict[str, str], index: str, tag: str) -> str:
        """Let a branch see some rows of a value; of a size, that of the rows that it sees."""
        if name in inner and inner[name] != known.get(name):
            return inner[name]
        if self._has_rows(name):
            inner[name] = self.emit("Gather", [known.get(name, name), index], f"{name}/{tag}/taken", axis=0)
        elif name in self.sizes:
            copy = renamed(
                self.sizes[name], {one: self._take(one, known, inner, index, tag) for one in self.sizes[name].input}
            )
            copy.ClearField("name")
            copy.output[0] = inner[name] = f"{name}/{tag}/taken"
            self.nodes.append(copy)
        return inner.get(name, name)

    def _note_sizes(self, graph: GraphProto) -> None:
        """Note what is computed from the number of rows, and is no row itself."""
        for node in graph.node:
            for branch in branches(node):
                self._note_sizes(branch)
            counts = node.op_type == "Shape" and self._has_rows(node.input[0])
            if counts or (uses(node) & self.sizes.keys() and not self._has_rows(node.output[0])):
                self.sizes[node.output[0]] = node

    def _group(self, wanted: str, then: bool, rows: str) -> tuple[str, str]:
        """Return the numbers of the rows that want a branch, flat and as a column."""
        name = f"{wanted}/{'then' if then else 'other'}/{rows}"
        flat = self.emit("Reshape", [wanted, "rows/flat"], f"{name}/flat")
        wants = self.emit("Expand", [flat, rows], f"{name}/wants")
        wants = wants if then else self.emit("Not", [wants], f"{name}/not")
        found = self.emit("NonZero", [wants], f"{name}/found")
        index = self.emit("Reshape", [found, "rows/flat"], f"{name}/index")
        return index, self.emit("Reshape", [found, "rows/column"], f"{name}/places")

    def _whole(self, branch: GraphProto, known: Mapping[str, str], rows: str, tag: str) -> str:
        """Run a branch on all rows."""
        ends = self.inline(branch, known, rows, f"/{tag}")
        return self._full(_end(branch), ends[_end(branch)], rows, f"{tag}/full")

    def _full(self, name: str, new: str, rows: str, tag: str) -> str:
        """Return a value with a row for each of so many, which it may have already."""
        if self._has_rows(name):
            return new
        ones = self._constant(f"{tag}/ones", [1] * (len(self._dims(name)) - 1))
        shape = self.emit("Concat", [rows, ones], f"{tag}/shape", axis=0)
        return self.emit("Expand", [new, shape], f"{tag}/rows")

    def _has_rows(self, name: str) -> bool:
        dims = self._dims(name)
        return name in self.inputs or (len(dims) > 0 and not dims[0].HasField("dim_value"))

    def _dims(self, name: str) -> Sequence[onnx.TensorShapeProto.Dimension]:
        return self.types[name].type.tensor_type.shape.dim if name in self.types else ()

    def _constant(self, name: str, value: int | list[int]) -> str:
        self.weights[name] = numpy_helper.from_array(np.array(value, np.int64), name)
        return name


def _named(node: NodeProto, name: str) -> GraphProto:
    return next(attribute.g for attribute in node.attribute if attribute.name == name)


def _end(graph: GraphProto) -> str:
    return graph.output[0].name


def _is_heavy(graph: GraphProto) -> bool:
    return any(node.op_type in HEAVY for node in graph.node)
