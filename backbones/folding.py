"""Pieces of a frozen network made ready for execution: fewer operations, and fewer results to find room for."""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse, matches_module_pattern, replace_node_module
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.ops import DeformConv2d

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, DeformConv2d)


def fold(piece: nn.Module, in_shape: tuple[int, ...]) -> nn.Module:
    """Return a copy with BatchNorm folded into the convolutions, and what follows them done in their place.

    Args:
        piece: In evaluation mode.
        in_shape: Of one input row.

    Returns:
        The piece as it is where that fails, or changes results beyond rounding.
    """
    original = copy.deepcopy(piece)
    if isinstance(piece, nn.Identity):
        return original  # recognisable by its class, see `Block.bypass`
    try:
        folded = _fused(piece)
        _reuse(folded)
        _spare_input(folded)
    except Exception:  # whatever tracing somebody's code raises; folding only saves time
        return original
    parameter = next(piece.parameters(), torch.empty(0))
    x = torch.rand((2, *in_shape), generator=torch.Generator().manual_seed(0)).to(parameter)
    with torch.no_grad():
        expected, got = original(x), folded(x)
    close = (got - expected).abs().max() <= 1e-3 * expected.abs().max()  # a shared convolution is folded wrongly
    return folded if close else original


class _Tracer(fx.Tracer):
    """Looks into all but torch's modules and deformable convolutions, whose function cannot be traced."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, DeformConv2d) or super().is_leaf_module(m, module_qualified_name)


def _fused(piece: nn.Module) -> nn.Module:
    """Return a copy with BatchNorm folded into the convolutions, which torch does for all but deformable ones."""
    traced = copy.deepcopy(piece)
    traced = fx.GraphModule(traced, _Tracer().trace(traced))
    modules: dict[str, Any] = dict(traced.named_modules())
    for node in traced.graph.nodes:
        if matches_module_pattern((DeformConv2d, nn.BatchNorm2d), node, modules) and len(node.args[0].users) == 1:
            convolution, norm = modules[node.args[0].target], modules[node.target]
            replace_node_module(node.args[0], modules, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    return fuse(traced, inplace=True, no_trace=True)


ADD_OVER = "add_over"


def overwrites(piece: nn.Module) -> bool:
    """Return whether a folded piece takes an argument `overwrite`: leave to put its result over its input."""
    return any(isinstance(module, AddOver) for module in piece.modules())


class AddOver(nn.Module):
    """The sum, written over `x` where there is leave to, else over `fresh`.

    A module, since one is not looked into where a graph is read again, as it is when it is unpickled.
    """

    def forward(self, fresh: Tensor, x: Tensor, overwrite: bool) -> Tensor:
        """Return the sum."""
        return x.add_(fresh) if overwrite else fresh.add_(x)


def _spare_input(folded: nn.Module) -> None:
    """Give a residual block whose input is last needed in its sum an argument `overwrite`, by default off.

    Rows of a batch then stay where they are.
    """
    if not isinstance(folded, fx.GraphModule):
        return
    nodes = list(folded.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    same = {
        node: node.args[0]
        for node in nodes
        if node.op == "call_module" and isinstance(folded.get_submodule(str(node.target)), nn.Identity)
    }
    sums = [node for node in nodes if node.target is operator.iadd and same.get(node.args[1], node.args[1]) in inputs]
    if len(inputs) != 1 or len(sums) != 1:
        return
    (x,), (total,) = inputs, sums
    later = nodes[nodes.index(total) + 1 :]
    if any(same.get(used, used) is x for node in later for used in node.all_input_nodes):
        return
    with folded.graph.inserting_after(x):
        leave = folded.graph.placeholder("overwrite", default_value=False)
    folded.add_submodule(ADD_OVER, AddOver())
    total.op, total.target, total.args = "call_module", ADD_OVER, (*total.args, leave)
    folded.recompile()


def _reuse(folded: nn.Module) -> None:
    """Let ReLU and addition write over a convolution's result that nothing else uses: memory costs what they cost."""
    if not isinstance(folded, fx.GraphModule):
        return
    fresh: set[fx.Node] = set()  # results that are nobody's but their one user's
    for node in folded.graph.nodes:
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        mine = first in fresh and first is not None and len(first.users) == 1
        if node.op == "call_module" and isinstance(folded.get_submodule(str(node.target)), _CONVOLUTIONS):
            fresh.add(node)
        elif node.target is F.relu and mine:
            node.kwargs = {**node.kwargs, "inplace": True}
            fresh.add(node)
        elif node.target is operator.add and mine and node.args[1] is not first:
            node.target = operator.iadd
            fresh.add(node)
    folded.recompile()
