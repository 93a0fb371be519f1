"""Keep images in the blocked layout of ONNX Runtime's convolutions from end to end, across branches too.

On its own the runtime lays values out anew at the border of every `If`, and fuses no addition with what was computed
outside. Here convolutions, and what is done elementwise with their results, become its operators of the domain
`com.microsoft.nchwc`, before a session is made; a value has its usual shape there, with the channels in blocks. How
large the blocks are depends on the processor, so files stay as they are, and this is done when they are loaded.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .flow import branches, types, uses

DOMAIN = "com.microsoft.nchwc"
NATURAL = 4
"""Dimensions of an image's values: rows, channels, height, width."""


@cache
def block_size() -> int:
    """Return how many channels the runtime puts in a block on this processor; 0 where it would not, or otherwise."""
    weights = np.random.default_rng(0).random((32, 32, 3, 3), np.float32)
    found = _optimised(weights)
    for size in (8, 16):
        if found is not None and np.array_equal(found, in_blocks(weights, size).reshape(found.shape)):
            return size
    return 0


def _optimised(weights: np.ndarray) -> np.ndarray | None:
    """Return what the runtime makes of a convolution's weights; None if it keeps the usual layout."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, 8, 8])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 8, 8])
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "probe", [image], [output], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "probe.onnx")
        options.log_severity_level = 3  # a warning says that such a file suits this machine only
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = onnx.load(options.optimized_model_filepath)
    (used,) = [node.input[1] for node in made.graph.node if node.op_type == "Conv"]
    if not any(node.domain == DOMAIN for node in made.graph.node):
        return None
    return next(numpy_helper.to_array(one) for one in made.graph.initializer if one.name == used)


def in_blocks(weights: np.ndarray, size: int) -> np.ndarray:
    """Return a convolution's weights in blocks; input channels stay as they are where they do not fill one.

    Args:
        weights: Shape (O, I, H, W).
        size: Channels of a block.

    Returns:
        Shape (O / size, I / size, H, W, size of inputs, size of outputs), or (O / size, I, H, W, size).
    """
    out, channels, height, width = weights.shape
    if channels % size:
        return weights.reshape(out // size, size, channels, height, width).transpose(0, 2, 3, 4, 1)
    split = weights.reshape(out // size, size, channels // size, size, height, width)
    return split.transpose(0, 2, 4, 5, 3, 1)


def with_blocks(model: onnx.ModelProto, size: int | None = None) -> onnx.ModelProto:
    """Return a model that computes the same in blocks of channels, or the model where the runtime knows none.

    Args:
        model: Its inputs and outputs keep their layout.
        size: Channels of a block; what the runtime takes by default.
    """
    size = block_size() if size is None else size
    if not size:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    scope = _Scope(made.graph, size, types(model.graph))
    scope.convert()
    for output in made.graph.output:
        if (name := scope.natural(output.name)) != output.name:
            scope.emit("Identity", [name], output.name, domain="")
    scope.close()
    made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return made


@dataclass
class _Scope:
    """A graph, or a branch, while it is converted. Values go by their names in the file.

    Attributes:
        graph: Changed in place.
        size: Channels of a block.
        types: Of all values.
        outer: Where a branch stands.
        nodes: Made so far.
        blocked: Names of values in blocks.
        laid: Names of values that were brought back to the natural layout.
        makers: Convolutions that may still take in what follows.
    """

    graph: GraphProto
    size: int
    types: Mapping[str, onnx.ValueInfoProto]
    outer: "_Scope | None" = None
    nodes: list[NodeProto] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)
    laid: dict[str, str] = field(default_factory=dict)
    makers: dict[str, NodeProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Count who uses what, and note the weights."""
        taken = [*(one.name for one in self.graph.output), *(name for node in self.graph.node for name in uses(node))]
        self.uses = Counter(taken)
        self.weights = {one.name: one for one in self.graph.initializer}

    def convert(self) -> None:
        """Convert what can be, and keep the other nodes."""
        kinds = {
            "Conv": self._conv,
            "Relu": self._relu,
            "Add": self._add,
            "Identity": self._same,
            "ReduceMean": self._mean,
            "AveragePool": self._pool,
            "MaxPool": self._pool,
            "Mul": self._scale,
            "ConstantOfShape": self._uniform,
            "Slice": self._slice,
            "Pad": self._pad,
            "If": self._choose,
        }
        for node in self.graph.node:
            if node.op_type not in kinds or not kinds[node.op_type](node):
                self._keep(node)

    def close(self) -> None:
        """Put the nodes made into the graph, with the weights that they use."""
        nodes = list(self.nodes)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = set[str]().union(*map(uses, nodes), {one.name for one in self.graph.output})
        kept = [one for name, one in self.weights.items() if name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def emit(
        self, kind: str, inputs: Sequence[str], output: str, *, domain: str = DOMAIN, **attributes: Any
    ) -> NodeProto:
        """Add a node, and return it."""
        node = helper.make_node(kind, inputs, [output], domain=domain, **attributes)
        self.nodes.append(node)
        return node

    def find(self, name: str) -> str | None:
        """Return a value's name in blocks, if it is there."""
        return self.blocked.get(name) or (self.outer.find(name) if self.outer else None)

    def natural(self, name: str) -> str:
        """Return a value's name in the natural layout, which it is brought to if it must be."""
        scope: _Scope | None = self
        while scope:
            if name in scope.laid:
                return scope.laid[name]
            scope = scope.outer
        found = self.find(name)
        if found is None:
            return name
        self.laid[name] = f"{name}/natural/{self.graph.name}"
        self.emit("ReorderOutput", [found], self._typed(name, self.laid[name]), channels=self._shape(name)[0])
        return self.laid[name]

    def in_blocks(self, name: str) -> str:
        """Return a value's name in blocks, which it is brought to if it must be."""
        found = self.find(name)
        if found is None:
            found = self._new(name)
            self.emit("ReorderInput", [name], found)
        return found

    def fits(self, name: str) -> bool:
        """Return whether a value is an image's, whose channels fill blocks."""
        shape = self._shape(name)
        return len(shape) == NATURAL - 1 and shape[0] > 0 and shape[0] % self.size == 0

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return a value's shape but for the rows; 0 where it is not known."""
        if name not in self.types:
            return ()
        return tuple(dim.dim_value for dim in self.types[name].type.tensor_type.shape.dim)[1:]

    def _new(self, name: str) -> str:
        """Return a name for a value in blocks, which is to be made here."""
        self.blocked[name] = self._typed(name, f"{name}/blocked/{self.graph.name}")
        return self.blocked[name]

    def _typed(self, name: str, new: str) -> str:
        """Return a new name, having noted that its type is that of a known one."""
        info = self.graph.value_info.add()
        info.CopyFrom(self.types[name])
        info.name = new
        return new

    def _weight(self, name: str) -> np.ndarray | None:
        if name in self.weights:
            return numpy_helper.to_array(self.weights[name])
        return self.outer._weight(name) if self.outer else None

    def _keep(self, node: NodeProto) -> None:
        """Keep a node on natural values."""
        copy = NodeProto()
        copy.CopyFrom(node)
        for index, name in enumerate(node.input):
            copy.input[index] = self.natural(name)
        self.nodes.append(copy)

    def _conv(self, node: NodeProto) -> bool:
        weights, groups = self._weight(node.input[1]), _attributes(node).get("group", 1)
        if weights is None or not self._takes(weights, groups):
            return False
        x, name = node.input[0], f"{node.input[1]}/blocked"
        direct = groups == 1 and weights.shape[1] < self.size
        self.weights[name] = numpy_helper.from_array(
            np.ascontiguousarray(in_blocks(weights, self.size)).reshape(weights.shape), name
        )
        inputs = [self.natural(x) if direct else self.in_blocks(x), name, *node.input[2:]]
        attributes = {key: value for key, value in _attributes(node).items() if value is not None}
        made = self.emit("Conv", inputs, self._new(node.output[0]), **attributes)
        if self.uses[node.output[0]] == 1:
            self.makers[node.output[0]] = made
        return True

    def _takes(self, weights: np.ndarray, groups: int) -> bool:
        """Return whether the runtime convolves in blocks with such weights."""
        out, channels = weights.shape[:2]
        if weights.ndim != NATURAL or weights.dtype != np.float32 or out % self.size:
            return False
        if groups == 1:
            return channels < self.size or channels % self.size == 0
        return channels == 1 and out == groups

    def _relu(self, node: NodeProto) -> bool:
        x, output = node.input[0], node.output[0]
        if (found := self.find(x)) is None:
            return False
        if maker := self.makers.pop(x, None):
            maker.attribute.append(helper.make_attribute("activation", "Relu"))
            maker.output[0] = self._new(output)
        else:
            self.emit("Relu", [found], self._new(output), domain="")
        return True

    def _add(self, node: NodeProto) -> bool:
        known = [name for name in node.input if self.find(name)]
        if not known or self._shape(node.input[0]) != self._shape(node.input[1]):
            return False
        into = next((name for name in known if name in self.makers and len(self.makers[name].input) < NATURAL), None)
        if into is None or node.input[0] == node.input[1]:
            self.emit("Add", [self.in_blocks(name) for name in node.input], self._new(node.output[0]), domain="")
            return True
        (other,) = [name for name in node.input if name != into]
        term, maker = self.in_blocks(other), self.makers.pop(into)
        self.nodes.remove(maker)  # after what it adds
        self.nodes.append(maker)
        maker.input.extend(["", term][len(maker.input) - 2 :])
        maker.output[0] = self._new(node.output[0])
        if self.uses[node.output[0]] == 1:
            self.makers[node.output[0]] = maker
        return True

    def _same(self, node: NodeProto) -> bool:
        if (found := self.find(node.input[0])) is None:
            return False
        self.blocked[node.output[0]] = found
        return True

    def _mean(self, node: NodeProto) -> bool:
        """Average over height and width."""
        found, axes = self.find(node.input[0]), self._weight(node.input[1]) if len(node.input) > 1 else None
        if found is None or axes is None or sorted(axes % NATURAL) != [2, 3]:
            return False
        output = node.output[0]
        if _attributes(node).get("keepdims", 1):
            self.emit("GlobalAveragePool", [found], output)  # of one pixel both layouts are the same
            return True
        self.emit("GlobalAveragePool", [found], f"{output}/pixel")
        self.emit("Flatten", [f"{output}/pixel"], output, domain="")
        return True

    def _pool(self, node: NodeProto) -> bool:
        """Pool windows of height and width."""
        found, attributes = self.find(node.input[0]), _attributes(node)
        if found is None or len(node.output) > 1 or len(attributes["kernel_shape"]) != NATURAL - 2:
            return False
        self.emit(node.op_type, [found], self._new(node.output[0]), **attributes)
        return True

    def _scale(self, node: NodeProto) -> bool:
        """Multiply by one number."""
        known = [name for name in node.input if self.find(name)]
        numbers = [name for name in node.input if (found := self._weight(name)) is not None and found.size == 1]
        if len(known) != 1 or len(numbers) != 1:
            return False
        self.emit("Mul", [self.in_blocks(known[0]), numbers[0]], self._new(node.output[0]), domain="")
        return True

    def _uniform(self, node: NodeProto) -> bool:
        """Of one number everywhere both layouts are the same."""
        self._keep(node)
        if self.fits(node.output[0]):
            self.blocked[node.output[0]] = self.laid[node.output[0]] = node.output[0]
        return True

    def _slice(self, node: NodeProto) -> bool:
        """Take every so many rows or columns, which is a pooling of single pixels."""
        found = self.find(node.input[0])
        given = [int(one[0]) for one in self._constants(node.input[1:], 4) if one is not None and one.size == 1]
        if found is None or len(given) < 4:
            return False
        start, end, axis, step = given
        axis %= NATURAL
        whole = axis >= 2 and start == 0 and step > 0 and end >= self._shape(node.input[0])[axis - 1] > 0
        if whole:
            strides = [step if axis == 2 else 1, step if axis == 3 else 1]
            self.emit("MaxPool", [found], self._new(node.output[0]), kernel_shape=[1, 1], strides=strides)
        return whole

    def _pad(self, node: NodeProto) -> bool:
        """Put whole blocks of channels before and after."""
        found, mode = self.find(node.input[0]), _attributes(node).get("mode", b"constant")
        pads, value = self._constants(node.input[1:], 2)
        if found is None or mode != b"constant" or pads is None or len(pads) != 2 * NATURAL or len(node.input) > 3:
            return False
        if (
            pads[[0, 2, 3, 4, 6, 7]].any()
            or (pads[[1, 5]] % self.size).any()
            or (value is None and len(node.input) > 2)
        ):
            return False
        self.emit("Pad", [found, *node.input[1:]], self._new(node.output[0]), domain="")
        return True

    def _constants(self, names: Sequence[str], count: int) -> list[np.ndarray | None]:
        """Return so many weights; None where there is none."""
        found = [self._weight(name) if name else None for name in names]
        return [*found, *[None] * count][:count]

    def _choose(self, node: NodeProto) -> bool:
        """Convert the branches; if one ends in blocks, so does the other, and what follows goes on in them."""
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[0] = self.natural(node.input[0])
        scopes = [_Scope(branch, self.size, self.types, self) for branch in branches(copy)]
        for scope in scopes:
            scope.convert()
        ends = [scope.graph.output[0].name for scope in scopes]
        in_blocks = any(scope.find(end) for scope, end in zip(scopes, ends, strict=True)) and self.fits(node.output[0])
        for scope, end in zip(scopes, ends, strict=True):
            scope._end(scope.in_blocks(end) if in_blocks else scope.natural(end))
        if in_blocks:
            copy.output[0] = self._new(node.output[0])
        self.nodes.append(copy)
        return True

    def _end(self, name: str) -> None:
        """Let a branch end in a value, which must be its own."""
        if name not in {made for node in self.nodes for made in node.output}:
            self.emit("Identity", [name], f"{name}/same/{self.graph.name}", domain="")
            name = f"{name}/same/{self.graph.name}"
        self.graph.output[0].name = name
        self.close()


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}
