"""Cut any torch network into stem, blocks and head, by the names of its blocks.

torch.fx traces the network with the blocks as leaves; whatever lies between two blocks goes with the earlier one.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import fx, nn

from ..names import unknown


class Pieces(NamedTuple):
    """A network in the order of execution; the modules share their parameters with it."""

    stem: nn.Module
    blocks: list[nn.Module]
    glue: list[nn.Module]  # what follows each block and is always executed; nn.Identity where nothing does
    head: nn.Module


class _BlockTracer(fx.Tracer):
    def __init__(self, leaves: Sequence[str]):
        super().__init__()
        self.leaves = frozenset(leaves)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves or super().is_leaf_module(m, module_qualified_name)


def cut(network: nn.Module, blocks: Sequence[str]) -> Pieces:
    """Cut a network at the named blocks.

    Args:
        network: Takes one batch of images, gives logits; traceable by torch.fx outside its blocks.
        blocks: Qualified module names (`layer1.0`) in the order of execution.

    Raises:
        ValueError: If a name does not exist, a block is not called exactly once with one tensor, the order differs,
            or a connection jumps over a block (then it cannot be left out on its own).
    """
    _check_names(network, blocks)
    graph = _trace(network, blocks)
    image = next(node for node in graph.nodes if node.op == "placeholder")
    sources = [image, *_calls(graph, blocks)]
    segments = _segments(graph, blocks)
    stem, *glue, head = (_piece(network, *segment, source) for segment, source in zip(segments, sources, strict=True))
    return Pieces(stem, [network.get_submodule(name) for name in blocks], [*glue, nn.Identity()], head)


def _trace(network: nn.Module, blocks: Sequence[str]) -> fx.Graph:
    try:
        return _BlockTracer(blocks).trace(network)
    except Exception as error:  # whatever somebody's code raises when it meets a proxy
        raise ValueError(
            f"network: expected torch.fx to trace what lies outside the blocks, got {error} "
            "Name larger blocks, which are not traced, or move what depends on values into a block."
        ) from error


def _check_names(network: nn.Module, blocks: Sequence[str]) -> None:
    known = {name for name, _ in network.named_modules() if name}
    if not blocks:
        raise ValueError("blocks: expected at least one module name, got none. Name what may be skipped.")
    if len(set(blocks)) != len(blocks):
        raise ValueError(f"blocks: expected different names, got {list(blocks)}. Name each block once.")
    for name in blocks:
        if name not in known:
            raise ValueError(unknown("block of this network", name, known))


def _segments(graph: fx.Graph, blocks: Sequence[str]) -> list[tuple[list[fx.Node], fx.Node]]:
    """Return the nodes before, between and after the blocks, each with the node whose value leaves the segment."""
    calls = _calls(graph, blocks)
    if [node.target for node in calls] != list(blocks):
        raise ValueError(
            f"blocks: expected each to be called once, in the order of execution, got {list(blocks)} "
            f"for a network that calls {[str(node.target) for node in calls]}. Name them in that order."
        )
    segments: list[tuple[list[fx.Node], fx.Node]] = []
    nodes: list[fx.Node] = []
    for node in graph.nodes:
        if node in calls:
            if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
                raise ValueError(
                    f"block {node.target}: expected one input tensor, got {node.args} {node.kwargs}. "
                    "Name a larger block around it."
                )
            segments.append((nodes, node.args[0]))
            nodes = []
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise ValueError(
                    f"network: expected it to return logits only, got {node.args[0]}. Wrap it in a module."
                )
            segments.append((nodes, node.args[0]))
        elif node.op != "placeholder":
            nodes.append(node)
    return segments


def _calls(graph: fx.Graph, blocks: Sequence[str]) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_module" and node.target in blocks]


def _piece(network: nn.Module, nodes: list[fx.Node], output: fx.Node, source: fx.Node) -> nn.Module:
    """Return the computation from the value of `source` to that of `output` as a module of its own."""
    if output is source:
        return nn.Identity()
    graph = fx.Graph()
    copies = {source: graph.placeholder("x")}
    for node in nodes:
        strangers = [other for other in node.all_input_nodes if other not in copies]
        if strangers:
            raise ValueError(
                f"the network at {node.name}: expected only what the piece before gives, got {strangers[0].name} as "
                "well. A connection jumps over a block; name a larger block around it."
            )
        copies[node] = graph.node_copy(node, lambda other: copies[other])
    graph.output(copies[output])
    return fx.GraphModule(network, graph)
