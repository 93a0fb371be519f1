"""Controllers that decide everything before they execute: one straight session for each way that is often taken."""

from collections import Counter
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, NodeProto, helper, numpy_helper

from .flow import branches, uses
from .session import call

MakeSession = Callable[[onnx.ModelProto], ort.InferenceSession]
Path = tuple[bool, ...]
Straight = tuple[ort.InferenceSession, list[str], list[str]]
"""A session, with the names of what it takes and gives."""


class Paths:
    """The deciding part of a graph as one session, and the rest along each way, made when it has been taken often.

    Args:
        model: An exported file whose choices wait for no branch, see `decides_first`.
        session: Makes a session of a model.
        most: How many ways to keep sessions of.
        after: How often a way is taken before a session is made of it.
    """

    def __init__(self, model: onnx.ModelProto, session: MakeSession, *, most: int, after: int = 3):
        self.model, self.session, self.most, self.after = model, session, most, after
        self.wanted = _conditions(model.graph)
        self.deciding = _deciding(model.graph)
        rest = [node for node in model.graph.node if id(node) not in {id(one) for one in self.deciding}]
        made = {name for node in self.deciding for name in node.output}
        needed = set[str]().union(*map(uses, rest)) | {one.name for one in model.graph.output}
        self.carried = sorted(made & needed - set(self.wanted))
        self.first = session(self._model(self.deciding, ["image", "price"], [*self.wanted, *self.carried]))
        self.taken = [one.name for one in self.first.get_inputs()]
        self.outputs = [one.name for one in model.graph.output]
        self.constants = {
            one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.name in self.outputs
        }
        self.seen: Counter[Path] = Counter()
        self.made: dict[Path, Straight] = {}
        self.lock = Lock()

    def decide(self, inputs: dict[str, np.ndarray]) -> tuple[Path, dict[str, np.ndarray]]:
        """Return the way that one image takes, and the values that are known by then."""
        found = call(self.first, None, {name: inputs[name] for name in self.taken})
        count = len(self.wanted)
        return tuple(bool(one) for one in found[:count]), {
            **inputs,
            **dict(zip([*self.wanted, *self.carried], found, strict=True)),
        }

    def follow(self, path: Path, values: dict[str, np.ndarray]) -> list[np.ndarray] | None:
        """Return the outputs for one image along its way, or None where no session has been made of it."""
        made = self.made.get(path) or self._notice(path)
        if made is None:
            return None
        session, taken, names = made
        found = call(session, None, {name: values[name] for name in taken})
        known = {**self.constants, **values, **dict(zip(names, found, strict=True))}
        return [known[name] for name in self.outputs]

    def _notice(self, path: Path) -> Straight | None:
        """Count a way; make its session when it is time and there is room."""
        with self.lock:
            self.seen[path] += 1
            if path not in self.made and self.seen[path] >= self.after and len(self.made) < self.most:
                self.made[path] = self._make(path)
            return self.made.get(path)

    def _make(self, path: Path) -> Straight:
        options = dict(zip(self.wanted, path, strict=True))
        gone = {id(one) for one in self.deciding}
        nodes, weights = _straight(self.model.graph, options)
        nodes = [node for node in nodes if id(node) not in gone]
        made = {name for node in nodes for name in node.output}
        outputs = [one.name for one in self.model.graph.output if one.name in made]
        taken = set[str]().union(*map(uses, nodes)) - made - {one.name for one in weights}
        inputs = sorted(taken - {one.name for one in self.model.graph.initializer})
        session = self.session(self._model(nodes, inputs, outputs, weights))
        return session, [one.name for one in session.get_inputs()], outputs

    def _model(
        self, nodes: list[NodeProto], inputs: list[str], outputs: list[str], weights: Sequence[onnx.TensorProto] = ()
    ) -> onnx.ModelProto:
        graph = self.model.graph
        types = {one.name: one for one in (*graph.value_info, *graph.input, *graph.output)}
        used = set[str]().union(*map(uses, nodes))
        kept = [one for one in graph.initializer if one.name in used]
        made = helper.make_graph(
            nodes,
            "path",
            [types[name] for name in inputs if name in used],
            [types[name] for name in outputs],
            [*kept, *weights],
        )
        return helper.make_model(made, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)


def decides_first(model: onnx.ModelProto) -> bool:
    """Return whether there are choices, and all are known before any branch has run."""
    wanted = _conditions(model.graph)
    made = {name for node in _deciding(model.graph) for name in node.output}
    return bool(wanted) and set(wanted) <= made


def _conditions(graph: GraphProto) -> list[str]:
    """Return what the choices of a graph ask, nested ones included, each once."""
    found: dict[str, None] = {}
    for node in graph.node:
        if node.op_type == "If":
            found[node.input[0]] = None
        for branch in branches(node):
            found |= dict.fromkeys(_conditions(branch))
    return list(found)


def _deciding(graph: GraphProto) -> list[NodeProto]:
    """Return the nodes that the choices wait for, as far as they wait for no branch themselves."""
    wanted, chosen = set(_conditions(graph)), set[int]()
    nodes = list(graph.node)  # held, since protobuf makes a new object each time that one is asked for
    for node in reversed(nodes):
        if wanted & set(node.output) and node.op_type != "If":
            chosen.add(id(node))
            wanted |= uses(node)
    after = {name for node in nodes if node.op_type == "If" for name in node.output}
    kept = []
    for node in nodes:
        if uses(node) & after:
            after.update(node.output)
        elif id(node) in chosen:
            kept.append(node)
    return kept


def _straight(graph: GraphProto, options: dict[str, bool]) -> tuple[list[NodeProto], list[onnx.TensorProto]]:
    """Return the nodes of one way through a graph, and the weights that come out of branches."""
    nodes: list[NodeProto] = []
    weights: list[onnx.TensorProto] = []
    for node in graph.node:
        if node.op_type != "If":
            nodes.append(node)
            continue
        name = "then_branch" if options[node.input[0]] else "else_branch"
        branch = next(one.g for one in node.attribute if one.name == name)
        inner, own = _straight(branch, options)
        nodes += [*inner, helper.make_node("Identity", [branch.output[0].name], [node.output[0]])]
        weights += [*branch.initializer, *own]
    return nodes, weights
