"""Routing: through which scales of a supernet, or which branches of a tree, does an input go?"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.crossing import Crossing
from ..backbones.folding import fold
from .branch_task import BranchTask
from .choice import Choice
from .state import State
from .tally import count_options
from .task import register_task


@register_task("routing")
class Routing(BranchTask):
    """At each layer of a supernet choose a scale, at each node of a tree a branch: each input has its own graph.

    Description:
        Each layer of a supernet has a cell at every scale; one of them runs and adds what it saw to a stream
        of features (Dynamic Routing, Li et al. 2020). Each level of a tree splits: every node has branches of its own,
        and the one that is taken leads to the next node, so that each leaf is a network of its own behind the trunk.
        The stem has run. The agent sees the features and chooses the next scale, or branch; only that one runs, and
        rows that take the same are one smaller batch. After the last layer the head answers.
    Action space:
        `Discrete(options)`: of scales 0 is the coarsest, the last one the finest. An action above the one before goes
        up, the same keeps the scale, one below goes down. Of branches 0 is the narrowest, the last one the widest.
    Observation space:
        The features, averaged over each cell of a `grid` x `grid` raster, padded with zeros to the longest; of a tree
        then the node, one-hot. The interpreter appends the position (one-hot) and, where it varies, the price.
    Episode end:
        After one decision for each layer.
    Cost:
        Stem + chosen cells or branches + head. A cell costs about half of the next finer one. Of n branches number i
        costs (i+1)/n of the last, at whichever node.

    The backbone was trained with each image drawing its way, all scales, or leaves, equally often; then it is frozen.
    The last option everywhere is the full network. How often each was chosen, at each node of a tree, stands in the
    results (`called`), and those that a method never chose are named. Relaxed, features are mixed at each layer; of a
    tree the branches of all nodes then run on the mixture.

    Arguments:
        grid: Cells on a side of the pooled features.
    Version history:
        v0: first.
    """

    default_backbone = "supernet4-w8"

    def __init__(self, backbone: Backbone, *, grid: int = 2):
        super().__init__(backbone, grid=grid)
        blocks = self.backbone.blocks
        self.crossings = [(one.option_name, one.places) for one in crossings(self.backbone)]
        others = [
            nn.ModuleList(fold(cell, block.in_shape) for cell in crossing.cells[:-1])
            for crossing, block in zip(crossings(self.backbone), blocks, strict=True)
        ]
        self.others = nn.ModuleList(others).requires_grad_(False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.set_branches([[*of, block.run] for of, block in zip(others, blocks, strict=True)])
        most = max(places for _, places in self.crossings)
        self.nodes = most if most > 1 else 0
        self.observation_shape = (self.width + self.nodes,)

    @property
    def pieces(self) -> list[str]:
        named = zip(self.crossings, self.backbone.blocks, strict=True)
        return [f"{option} of {block.name}" for (option, _), block in named]

    def called(self, actions: Tensor) -> dict[str, list[int]]:
        """Return how often each scale was called, or of a tree each branch of each node."""
        if not self.nodes:
            return super().called(actions)
        found, node = {}, torch.zeros_like(actions[:, 0])
        for piece, (_, places), column in zip(self.pieces, self.crossings, actions.unbind(1), strict=True):
            for place in range(places):
                name = f"{piece} at node {place}" if places > 1 else piece
                found[name] = count_options(column[node == place], self.decisions[0])
            node = node * self.decisions[0] + column
        return found

    def observe(self, state: State) -> Tensor:
        """Return the pooled features, of a tree with the node."""
        seen = super().observe(state)
        if not self.nodes:
            return seen
        node = state.memory.get("node", seen.new_ones((len(seen), 1)))
        return torch.cat([seen, F.pad(node, (0, self.nodes - node.shape[1]))], 1)

    def step(self, state: State, choice: Choice) -> State:
        """Run the chosen cell or branch; answer after the last."""
        if not self.nodes:
            return super().step(state, choice)
        if "node" in state.memory:
            choice = choice.within(state.memory["node"], self.decisions[0])
        after = super().step(state, choice)
        ways = range(len(self.branches[state.position]))
        return replace(after, memory={"node": torch.stack([choice.weight(way) for way in ways], 1)})


def crossings(backbone: Backbone) -> list[Crossing]:
    """Return a backbone's layers, which must have several ways on.

    Raises:
        ValueError: If they do not.
    """
    if (found := backbone.sources(Crossing)) is not None:
        return found
    raise ValueError(
        f"routing: expected a supernet or a tree, got {backbone.name}, through which there is one way only. Use "
        "supernet6, supernet4-s3-w8 or tree-resnet20, trained by skipgym pretrain."
    )
