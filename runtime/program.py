"""An exported graph as a program for batches: straight pieces, and between them choices by which rows are regrouped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .flow import branches, captured, uses
from .session import call

Values = dict[str, np.ndarray]
MakeSession = Callable[[onnx.ModelProto], ort.InferenceSession]


@dataclass(frozen=True)
class Piece:
    """A straight piece of the graph, as a session of its own."""

    session: ort.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, values: Values) -> None:
        """Add what the piece makes to the values."""
        made = call(self.session, self.outputs, {name: values[name] for name in self.inputs})
        values.update(zip(self.outputs, made, strict=True))


@dataclass(frozen=True)
class Fork:
    """A choice between two branches; rows are regrouped, and each branch runs on its own rows."""

    wanted: str
    output: str
    then: "Program"
    other: "Program"

    def run(self, values: Values, rows: int, masked: bool) -> None:
        """Add what the branches make of their rows, in the rows' order."""
        wanted = np.broadcast_to(values[self.wanted].reshape(-1), rows)
        if masked and rows > 1:
            values[self.output] = self._masked(values, wanted, rows)
        elif wanted.all() or not wanted.any():
            program = self.then if wanted[0] else self.other
            (values[self.output],) = program.run(values, rows, masked)
        else:
            values[self.output] = self._routed(values, wanted)

    def _routed(self, values: Values, wanted: np.ndarray) -> np.ndarray:
        out: np.ndarray | None = None
        for program, chosen in ((self.then, wanted), (self.other, ~wanted)):
            index = np.flatnonzero(chosen)
            taken = {name: values[name] for name in program.inputs}
            taken = {
                name: one[index] if program.batched[name] and len(one) == len(wanted) else one
                for name, one in taken.items()
            }
            (made,) = program.run(taken, len(index), False)
            if len(made) == len(wanted):  # from outside, as the zeros of rows that have answered are
                made = made[index]
            if out is None:
                out = np.empty((len(wanted), *made.shape[1:]), made.dtype)
            out[index] = made
        assert out is not None  # there are two branches
        return out

    def _masked(self, values: Values, wanted: np.ndarray, rows: int) -> np.ndarray:
        results = [program.run(values, rows, True)[0] for program in (self.then, self.other)]
        return np.where(wanted.reshape(-1, *(1,) * (results[0].ndim - 1)), *results)


@dataclass(frozen=True)
class Program:
    """Pieces and forks in order.

    Attributes:
        inputs: Values that it takes.
        outputs: Values that it gives.
        batched: Of each input, whether it has a row for each image.
        constants: What outputs and choices take that no step makes.
    """

    steps: tuple[Piece | Fork, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batched: Mapping[str, bool]
    constants: Mapping[str, np.ndarray]

    def run(self, values: Mapping[str, np.ndarray], rows: int, masked: bool = False) -> list[np.ndarray]:
        """Return the outputs.

        Args:
            values: The inputs.
            rows: Number of images.
            masked: Run every branch on all rows and select, as against regrouping them.
        """
        known = {**self.constants, **values}
        for step in self.steps:
            if isinstance(step, Piece):
                step.run(known)
            else:
                step.run(known, rows, masked)
        return [known[name] for name in self.outputs]


class Compiler:
    """Makes programs of graphs.

    Args:
        model: An exported file.
        session: Makes a session of a model.
    """

    def __init__(self, model: onnx.ModelProto, session: MakeSession):
        self.model, self.session = model, session
        graph = model.graph
        self.types = {one.name: one for one in (*graph.value_info, *graph.input, *graph.output)}
        self._learn(graph)

    def compile(self) -> Program:
        """Return the program of the whole graph."""
        inputs = [one.name for one in self.model.graph.input]
        return self._program(self.model.graph, inputs, {})

    def _learn(self, graph: GraphProto) -> None:
        """Note the types of values inside branches too."""
        for node in graph.node:
            for branch in branches(node):
                self.types |= {one.name: one for one in (*branch.value_info, *branch.output)}
                self._learn(branch)

    def _program(self, graph: GraphProto, inputs: Sequence[str], outer: Mapping[str, TensorProto]) -> Program:
        """Group straight nodes by the last fork that they wait for; forks keep their order."""
        weights = {**outer, **{one.name: one for one in graph.initializer}}
        nodes = list(graph.node)  # held, since protobuf makes a new object each time that one is asked for
        forks = [node for node in nodes if node.op_type == "If"]
        ready = dict.fromkeys((*inputs, *weights), 0)
        groups: list[list[NodeProto]] = [[] for _ in range(len(forks) + 1)]
        for node in nodes:
            if node.op_type == "If":
                ready[node.output[0]] = 1 + next(index for index, fork in enumerate(forks) if fork is node)
                continue
            level = max((ready.get(name, 0) for name in uses(node)), default=0)
            ready.update(dict.fromkeys(node.output, level))
            groups[level].append(node)
        outputs = [one.name for one in graph.output]
        steps: list[Piece | Fork] = []
        for index, group in enumerate(groups):
            later = set(outputs).union(*map(uses, forks[index:]), *(uses(n) for g in groups[index + 1 :] for n in g))
            if group:
                steps.append(self._piece(group, weights, later))
            if index < len(forks):
                steps.append(self._fork(forks[index], weights))
        known = {*outputs, *(fork.input[0] for fork in forks)} & weights.keys()
        constants = {name: numpy_helper.to_array(weights[name]) for name in known}
        return Program(
            tuple(steps), tuple(inputs), tuple(outputs), {name: self._is_batched(name) for name in inputs}, constants
        )

    def _fork(self, node: NodeProto, weights: Mapping[str, TensorProto]) -> Fork:
        named = {attribute.name: attribute.g for attribute in node.attribute}
        programs = [
            self._program(named[name], sorted(captured(named[name]) - weights.keys()), weights)
            for name in ("then_branch", "else_branch")
        ]
        return Fork(node.input[0], node.output[0], programs[0], programs[1])

    def _piece(self, nodes: Sequence[NodeProto], weights: Mapping[str, TensorProto], later: set[str]) -> Piece:
        made = {name for node in nodes for name in node.output}
        taken = set[str]().union(*map(uses, nodes)) - made
        inputs, outputs = sorted(taken - weights.keys()), sorted(made & later)
        given, ends = ([self._info(name) for name in names] for names in (inputs, outputs))
        graph = helper.make_graph(
            nodes, "piece", given, ends, [weights[name] for name in sorted(taken & weights.keys())]
        )
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        return Piece(self.session(model), tuple(inputs), tuple(outputs))

    def _info(self, name: str) -> onnx.ValueInfoProto:
        """Return the type of a value, for any number of rows."""
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(self.types[name])
        if name in {one.name for one in self.model.graph.input}:
            copy.type.tensor_type.shape.dim[0].dim_param = "N"
        return copy

    def _is_batched(self, name: str) -> bool:
        if name not in self.types:
            return False
        dims = self.types[name].type.tensor_type.shape.dim
        return len(dims) > 0 and (not dims[0].HasField("dim_value") or name in {i.name for i in self.model.graph.input})
