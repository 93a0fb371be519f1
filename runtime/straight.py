"""Ways through a network as graphs of their own, where everything is decided before the first branch.

An `If` costs time, and no buffer or sum is shared across its border. Where a policy decides all at once, as for
`block-drop`, a session decides first, and the ways that are taken most often then run without a branch.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnxruntime as ort
from onnx import GraphProto, NodeProto, helper

from .flow import branches, needed, types, uses
from .session import call
from .tidy import tidied

KEY = "actions"
"""The output that tells the way."""
MakeSession = Callable[[onnx.ModelProto], ort.InferenceSession]
Feed = Mapping[str, np.ndarray]
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Piece:
    """A straight piece of the graph, as a session of its own."""

    session: ort.InferenceSession
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, values: Mapping[str, np.ndarray]) -> Values:
        """Return the values that are known afterwards: those given and those made."""
        made = call(self.session, self.outputs, {name: values[name] for name in self.inputs})
        return {**values, **dict(zip(self.outputs, made, strict=True))}


@dataclass(frozen=True)
class _Split:
    """A graph cut after its decisions.

    Attributes:
        before: Nodes up to the decisions.
        after: The others.
        told: Outputs of the graph that are known with the decisions.
        fixed: Of these, those that hang on nothing but the decisions: each way has its own.
        passed: What the others take from before.
        conditions: Of all branches.
    """

    before: list[NodeProto]
    after: list[NodeProto]
    told: list[str]
    fixed: list[str]
    passed: list[str]
    conditions: list[str]


@dataclass(frozen=True)
class _Way:
    """A way through.

    Attributes:
        piece: What is still to be computed when it is known.
        known: Outputs of the graph that are always the same on this way.
    """

    piece: Piece
    known: Mapping[str, np.ndarray]


class Straight:
    """Ways through a graph that are known before its first branch.

    Args:
        model: An exported file's.
        session: Makes a session of a model.

    Attributes:
        ways: Those that have sessions, by their decisions.
    """

    def __init__(self, model: onnx.ModelProto, session: MakeSession):
        self.model, self.session = model, session
        self.cut = _cut(model.graph)
        self.ends = [one.name for one in model.graph.output]
        self.ways: dict[bytes, _Way] = {}

    @cached_property
    def decide(self) -> Piece:
        """What decides; made when the first ways are learnt, since many a runtime never is."""
        told = [name for name in self.cut.told if name not in self.cut.fixed]
        return self._piece(self.cut.before, [*told, *self.cut.passed])

    @property
    def known(self) -> bool:
        """Whether there are branches, and all is decided before them."""
        return bool(self.cut.conditions) and KEY in self.cut.told and self.cut.told != self.ends

    def learn(self, feeds: Sequence[Feed], most: int) -> None:
        """Make sessions of the ways that these inputs take most often."""
        if not self.known:
            return
        taken, ways = Counter[bytes](), dict[bytes, Values]()
        tell = self._piece(self.cut.before, [KEY, *self.cut.fixed, *self.cut.conditions])
        for feed in feeds:
            values = tell.run(feed)
            key = values[KEY].tobytes()
            taken[key] += 1
            ways[key] = values
        wanted = [key for key, _ in taken.most_common(most)]
        _ = self.decide  # before the first call that finds a way, which may come from any thread
        self.ways = {key: self.ways.get(key) or self._way(ways[key]) for key in wanted}

    def run(self, feed: Feed) -> list[np.ndarray] | None:
        """Return the graph's outputs for one image; None if its way has no session."""
        if not self.ways:
            return None
        values = self.decide.run(feed)
        way = self.ways.get(values[KEY].tobytes())
        if way is None:
            return None
        values = way.piece.run(values)
        return [values[name] if name in values else way.known[name].copy() for name in self.ends]

    def _way(self, values: Values) -> _Way:
        """Return the way that is taken at these values of the conditions."""
        wanted = {name: bool(values[name].item()) for name in self.cut.conditions}
        nodes = _inlined(self.cut.after, wanted)
        weights = [one for node in self.cut.after for branch in _chosen(node, wanted) for one in branch.initializer]
        outputs = [one for one in self.ends if one not in self.cut.told]
        return _Way(self._piece(nodes, outputs, weights), {name: values[name] for name in self.cut.fixed})

    def _piece(
        self, nodes: Sequence[NodeProto], outputs: Sequence[str], weights: Sequence[onnx.TensorProto] = ()
    ) -> Piece:
        """Return a session of some nodes; it takes what they do not make, the price only where they use it."""
        graph = self.model.graph
        known = types(graph)
        made = {name for node in nodes for name in node.output}
        own = [*graph.initializer, *weights]
        taken = set[str]().union(*map(uses, nodes)) - made - {one.name for one in own}
        inputs, ends = ([known[name] for name in names] for names in (sorted(taken), outputs))
        inner = [known[name] for name in made & known.keys() - set(outputs)]
        new = helper.make_graph(nodes, "way", inputs, ends, own, value_info=inner)
        model = helper.make_model(new, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        session = self.session(tidied(model))
        return Piece(session, tuple(one.name for one in session.get_inputs()), tuple(outputs))


def _cut(graph: GraphProto) -> _Split:
    """Cut a graph where its decisions are known; without conditions where some depend on a branch."""
    nodes, ends = list(graph.node), [one.name for one in graph.output]
    late, after = set[str](), list[NodeProto]()
    for node in nodes:
        if node.op_type == "If" or uses(node) & late:
            late.update(node.output)
            after.append(node)
    conditions = [name for node in after for name in _conditions(node)]
    inner = {name for node in after for branch in branches(node) for one in branch.node for name in one.output}
    if set(conditions) & (late | inner):
        conditions = []
    told = [name for name in ends if name not in late]
    straight = [node for node in nodes if not uses(node) & late and node.op_type != "If"]
    before = needed(straight, {*conditions, *told})
    held = {id(node) for node in before}
    rest = [node for node in nodes if id(node) not in held]
    early = {name for node in before for name in node.output}
    passed = sorted(set[str]().union(*map(uses, rest)) & early - {*conditions, *told} if rest else set())
    given, decided = {one.name for one in graph.input}, [node for node in straight if KEY not in node.output]
    fixed = [name for name in told if name != KEY and not any(uses(n) & given for n in needed(decided, {name}))]
    return _Split(before, rest, told, fixed, passed, list(dict.fromkeys(conditions)))


def _conditions(node: NodeProto) -> list[str]:
    """Return what a node's branches are chosen by, those of branches inside too."""
    own = [node.input[0]] if node.op_type == "If" else []
    return [*own, *(name for branch in branches(node) for one in branch.node for name in _conditions(one))]


def _chosen(node: NodeProto, wanted: Mapping[str, bool]) -> list[GraphProto]:
    """Return the branches that a node takes, one inside the other."""
    if node.op_type != "If":
        return []
    name = "then_branch" if wanted[node.input[0]] else "else_branch"
    branch = next(one.g for one in node.attribute if one.name == name)
    return [branch, *(inner for one in branch.node for inner in _chosen(one, wanted))]


def _inlined(nodes: Sequence[NodeProto], wanted: Mapping[str, bool]) -> list[NodeProto]:
    """Return the nodes with the chosen branches in the place of every choice."""
    made: list[NodeProto] = []
    for node in nodes:
        if node.op_type != "If":
            made.append(node)
            continue
        branch = _chosen(node, wanted)[0]
        made += _inlined(branch.node, wanted)
        made.append(helper.make_node("Identity", [branch.output[0].name], [node.output[0]]))
    return made
