"""Tasks each of which breaks one promise of the sound ones."""

from dataclasses import replace

import torch
from torch import nn

from skipgym.envs import State

from .sound import Sound, SoundDepth, SoundExit, SoundParts

# --- form ---


class NoHorizon(Sound):
    """Forgets to say how many decisions there are."""

    def __init__(self, backbone):
        super().__init__(backbone)
        del self.horizon


class ListOfDecisions(Sound):
    """Declares a list of options, one of them alone."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.decisions = [1]


class DoubleNames(Sound):
    """Names two decisions alike."""

    @property
    def pieces(self):
        return ["first", "second", "second"]


class SharedMemory(Sound):
    """Begins with a memory that is not one row for each input."""

    def begin(self, inputs):
        return State.start(self.backbone.stem(inputs), macs=self.backbone.stem_macs, spare=torch.zeros(1, 4))


class Unpadded(Sound):
    """Observes as many channels as there are, not as many as declared."""

    def observe(self, state):
        return state.features.mean((2, 3))


class NotFinite(Sound):
    """Observes logarithms of what may be negative."""

    def observe(self, state):
        return (super().observe(state) - 1).log()


class NeverAnswers(Sound):
    """Goes on after the last decision."""

    def answer(self, state):
        return state


class StaysPut(Sound):
    """Advances to where it is."""

    def step(self, state, choice):
        return replace(super().step(state, choice), position=state.position)


class TooFewClasses(Sound):
    """Answers with one logit less."""

    def answer(self, state):
        return state.finish(self.backbone.head(state.features)[:, :-1], macs=self.backbone.head_macs)


class LosesRows(SoundParts):
    """Returns those who go on, and drops those who answer."""

    def step(self, state, choice):
        return super().step(state, choice)[-1:]


class Raises(Sound):
    """Looks up a block that is not there."""

    def step(self, state, choice):
        self.backbone.blocks[7 + state.position]
        return super().step(state, choice)


# --- keeping ---


class Noisy(Sound):
    """Adds noise to the answer."""

    def answer(self, state):
        logits = self.backbone.head(state.features)
        return state.finish(logits + 0.1 * torch.randn_like(logits), macs=self.backbone.head_macs)


class WritesInputs(Sound):
    """Normalises the images where they lie."""

    def begin(self, inputs):
        return super().begin(inputs.sub_(inputs.mean((1, 2, 3), keepdim=True)))


class WritesFeatures(Sound):
    """Rectifies the features where they lie."""

    def step(self, state, choice):
        state.features.mul_(0.5)
        return super().step(state, choice)


class TrainsNorm(Sound):
    """Has a BatchNorm of its own that goes on counting in training mode."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.norm = nn.BatchNorm1d(self.width).requires_grad_(False)

    def observe(self, state):
        self.norm(super().observe(state))  # "just to keep its statistics up to date"
        return super().observe(state)


class Trainable(Sound):
    """Brings a module that asks for gradients."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.head = nn.Linear(4, 4)


# --- execution ---


class BatchMean(Sound):
    """Centres the answers over the batch."""

    def answer(self, state):
        logits = self.backbone.head(state.features)
        return state.finish(logits - logits.mean(0), macs=self.backbone.head_macs)


class BatchMeanInBranch(Sound):
    """Centres what a block gives over the rows that it gets."""

    def step(self, state, choice):
        block = self.backbone.blocks[state.position]
        x = choice.among([block.bypass, lambda x: block.run(x) - 0.5 * block.run(x).mean(0)], state.features)
        state = state.advance(x, macs=choice.cost([block.bypass_macs, 2 * block.macs]))
        return state if state.position < self.horizon else self.answer(state)


class LooksBack(Sound):
    """Says that it spares features, and looks at them after its choice."""

    spares_features = True

    def begin(self, inputs):
        state = super().begin(inputs)
        return state.advance(state.features, macs=0, position=0, before=torch.zeros(len(inputs), 1))

    def observe(self, state):
        return super().observe(state) + state.memory["before"]

    def step(self, state, choice):
        block, before = self.backbone.blocks[state.position], state.features
        x = choice.among([block.bypass, block.run], before)
        macs = choice.cost([block.bypass_macs, block.macs])
        state = state.advance(x, macs=macs, before=before.mean((1, 2, 3)).unsqueeze(1))
        return state if state.position < self.horizon else self.answer(state)


class AllAlike(Sound):
    """Answers the same whatever it was given."""

    def answer(self, state):
        self.backbone.head(state.features)
        logits = torch.arange(4.0).expand(len(state.features), -1) + 0 * state.features.sum((1, 2, 3)).unsqueeze(1)
        return state.finish(logits, macs=self.backbone.head_macs)


class IgnoresDecision(Sound):
    """Executes the last block whatever was decided."""

    def __init__(self, backbone):
        super().__init__(backbone)
        block = self.backbone.blocks[-1]
        self.least_macs += block.macs - block.bypass_macs

    def step(self, state, choice):
        if state.position + 1 < self.horizon:
            return super().step(state, choice)
        block = self.backbone.blocks[-1]
        return self.answer(state.advance(block.run(state.features), macs=block.macs))


class ChargesTheGone(SoundExit):
    """Adds to the cost by hand, of rows that have answered too."""

    def step(self, state, choice):
        after = super().step(state, choice)
        block = self.backbone.blocks[state.position + 1]
        charged = torch.where(state.alive > 0, after.macs, state.macs + block.macs)
        return replace(after, macs=charged)


class RevivesTheGone(SoundExit):
    """Sharpens all answers at the end, those that were given before too."""

    def step(self, state, choice):
        after = super().step(state, choice)
        return after if after.position < self.horizon else replace(after, answer=torch.mul(2, after.answer))


class ReadsActions(Sound):
    """Asks a choice for its actions, which only hard ones have."""

    def step(self, state, choice):
        choice.actions.float().mean()
        return super().step(state, choice)


class HardCost(Sound):
    """Charges by comparison, which has no gradient."""

    def step(self, state, choice):
        block = self.backbone.blocks[state.position]
        x = choice.among([block.bypass, block.run], state.features)
        macs = torch.where(choice.weight(1) > 0.5, block.macs, block.bypass_macs).double()
        state = state.advance(x, macs=macs)
        return state if state.position < self.horizon else self.answer(state)


class Detached(Sound):
    """Cuts the gradient of what was chosen."""

    def answer(self, state):
        return super().answer(replace(state, features=state.features.detach()))


class NoSlope(Sound):
    """Passes features through a root, which has no slope at zero."""

    def answer(self, state):
        zero = (state.features - state.features).sum((1, 2, 3)).unsqueeze(1)
        return state.finish(self.backbone.head(state.features) + zero.sqrt(), macs=self.backbone.head_macs)


# --- cost ---


class Refunds(Sound):
    """Charges everything at once, and gives back what was skipped."""

    def begin(self, inputs):
        net = self.backbone
        return State.start(net.stem(inputs), macs=net.full_macs - net.head_macs)

    def step(self, state, choice):
        block = self.backbone.blocks[state.position]
        x = choice.among([block.bypass, block.run], state.features)
        state = state.advance(x, macs=choice.cost([block.bypass_macs - block.macs, 0]))
        return state if state.position < self.horizon else self.answer(state)


class FreeHead(Sound):
    """Does not charge the head."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.least_macs -= self.backbone.head_macs

    def answer(self, state):
        return state.finish(self.backbone.head(state.features))


class FreeGlance(Sound):
    """Does not charge a convolution by which it looks."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.glance = nn.Conv2d(4, 4, 1).requires_grad_(False)

    def observe(self, state):
        if state.position == 0:
            self.glance(state.features)
        return super().observe(state)


class RunsForAll(Sound):
    """Runs a block on the whole batch as soon as one row wants it."""

    def step(self, state, choice):
        block, x = self.backbone.blocks[state.position], state.features
        executed = choice.weight(1).view(-1, 1, 1, 1)
        if not executed.requires_grad and not bool(executed.any()):
            x = block.bypass(x)
        else:
            x = executed * block.run(x) + (1 - executed) * block.bypass(x)
        state = state.advance(x, macs=choice.cost([block.bypass_macs, block.macs]))
        return state if state.position < self.horizon else self.answer(state)


class WrongLeast(Sound):
    """Declares a cheaper way than there is."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.least_macs -= 1000


class Upside(Sound):
    """Executes at option 0, and declares that way's cost as the least."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.least_macs = self.backbone.full_macs

    def step(self, state, choice):
        block = self.backbone.blocks[state.position]
        x = choice.among([block.run, block.bypass], state.features)
        state = state.advance(x, macs=choice.cost([block.macs, block.bypass_macs]))
        return state if state.position < self.horizon else self.answer(state)


class NeverFull(Sound):
    """Leaves the last block out whatever happens; decides about the others."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.horizon -= 1

    def answer(self, state):
        block = self.backbone.blocks[-1]
        state = state.advance(block.bypass(state.features), macs=block.bypass_macs)
        return super().answer(state)


# --- configuration and environment ---


class Forgetful(SoundDepth):
    """Changes an option after it was given."""

    def __init__(self, backbone, *, grid=1):
        super().__init__(backbone, grid=grid)
        self.options["grid"] = 1


class ModuleOption(Sound):
    """Takes a module as an option."""

    def __init__(self, backbone, *, extra=None):
        super().__init__(backbone)
        self.extra = extra


class NeedsMore(Sound):
    """Takes a second argument by position."""

    def __init__(self, backbone, scale):
        super().__init__(backbone)
        self.scale = scale


class HoldsLambda(Sound):
    """Keeps a function that cannot be pickled."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.pool = lambda x: x.mean((2, 3))


class WrongSpace(Sound):
    """Declares an action space with an option too many."""

    @property
    def action_space(self):
        from gymnasium import spaces

        return spaces.Discrete(9)
