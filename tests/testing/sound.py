"""Sound tasks of several forms."""

import torch
from torch import nn

from skipgym.backbones import count_macs
from skipgym.envs import State, Task


class Sound(Task):
    """Skip or execute each block, as layer-skip does; each fault in `tasks` changes one thing of it."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.horizon, self.decisions = len(self.backbone.blocks), (2,)
        self.width = max(block.in_shape[0] for block in self.backbone.blocks)
        self.observation_shape, self.least_macs = (self.width,), self.backbone.least_macs

    def begin(self, inputs):
        return State.start(self.backbone.stem(inputs), macs=self.backbone.stem_macs)

    def observe(self, state):
        pooled = state.features.mean((2, 3))
        return nn.functional.pad(pooled, (0, self.width - pooled.shape[1]))

    def step(self, state, choice):
        block = self.backbone.blocks[state.position]
        x = choice.among([block.bypass, block.run], state.features)
        state = state.advance(x, macs=choice.cost([block.bypass_macs, block.macs]))
        return state if state.position < self.horizon else self.answer(state)

    def answer(self, state):
        return state.finish(self.backbone.head(state.features), macs=self.backbone.head_macs)


class SoundDepth(Task):
    """Run 0 … all blocks, decided at once: one part of many options."""

    def __init__(self, backbone, *, grid=1):
        super().__init__(backbone)
        self.grid, blocks = grid, self.backbone.blocks
        self.horizon, self.decisions, self.observation_shape = 1, (len(blocks) + 1,), (1, grid, grid)
        self.least_macs = self.backbone.least_macs

    def begin(self, inputs):
        return State.start(self.backbone.stem(inputs), macs=self.backbone.stem_macs, image=inputs)

    def observe(self, state):
        return nn.functional.adaptive_avg_pool2d(state.memory["image"], self.grid)

    def step(self, state, choice):
        x = choice.among(
            [lambda x, depth=depth: self.run(x, depth) for depth in range(self.decisions[0])], state.features
        )
        macs = choice.cost([self.cost(depth) for depth in range(self.decisions[0])])
        return state.advance(x, macs=macs).finish(self.backbone.head(x), macs=self.backbone.head_macs)

    def run(self, x, depth):
        for index, block in enumerate(self.backbone.blocks):
            x = block.run(x) if index < depth else block.bypass(x)
        return x

    def cost(self, depth):
        return sum(b.macs if i < depth else b.bypass_macs for i, b in enumerate(self.backbone.blocks))


class SoundExit(Task):
    """Before each block but the first: answer (0), or go on (1); the exits run for all who come by."""

    def __init__(self, backbone):
        super().__init__(backbone)
        blocks, classes = self.backbone.blocks, self.backbone.num_classes
        self.horizon, self.decisions, self.observation_shape = len(blocks) - 1, (2,), (classes,)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.exits = nn.ModuleList(nn.Linear(block.out_shape[0], classes) for block in blocks[:-1])
        self.exits.requires_grad_(False)
        self.exit_macs = [count_macs(exit, torch.zeros(1, exit.in_features)) for exit in self.exits]
        self.least_macs = self.backbone.stem_macs + blocks[0].macs + self.exit_macs[0]

    def begin(self, inputs):
        x = self.backbone.blocks[0].run(self.backbone.stem(inputs))
        logits = self.exits[0](x.mean((2, 3)))
        return State.start(x, macs=self.least_macs, logits=logits)

    def observe(self, state):
        return state.memory["logits"]

    def step(self, state, choice):
        """Rows that have answered come along until all have; nothing is charged to them."""
        state = state.finish(state.memory["logits"], when=choice.weight(0))
        block = self.backbone.blocks[state.position + 1]
        x = choice.among([lambda x: x.new_zeros((len(x), *block.out_shape)), block.run], state.features)
        after = state.position + 1
        if after == self.horizon:
            state = state.advance(x, macs=block.macs)
            logits = choice.among([lambda x: x.new_zeros((len(x), self.backbone.num_classes)), self.backbone.head], x)
            return state.finish(logits, macs=self.backbone.head_macs)
        logits = choice.among([lambda x: x.new_zeros((len(x), self.backbone.num_classes)), self.exit_at(after)], x)
        return state.advance(x, macs=block.macs + self.exit_macs[after], logits=logits)

    def exit_at(self, position):
        return lambda x: self.exits[position](x.mean((2, 3)))


class SoundParts(SoundExit):
    """The same, but rows that answer leave as a cohort of their own, and only those who leave run an exit."""

    def begin(self, inputs):
        x = self.backbone.blocks[0].run(self.backbone.stem(inputs))
        return State.start(x, macs=self.least_macs - self.exit_macs[0])

    def observe(self, state):
        return state.features.mean((2, 3))[:, : self.observation_shape[0]]

    def step(self, state, choice):  # pyright: ignore[reportIncompatibleMethodOverride]
        leaves, exit = choice.weight(0) > 0, self.exit_at(state.position)
        gone, going = state.select(leaves), state.select(~leaves)
        parts = [gone.finish(exit(gone.features), macs=self.exit_macs[state.position])] if len(gone) else []
        if len(going):
            block = self.backbone.blocks[state.position + 1]
            going = going.advance(block.run(going.features), macs=block.macs)
            if going.position == self.horizon:
                going = going.finish(self.backbone.head(going.features), macs=self.backbone.head_macs)
            parts.append(going)
        return parts
