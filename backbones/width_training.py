"""How one step trains a slimmable network's widths: losses, and which widths are drawn."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from .slimmable import SlimmableResNet

WidthTraining = Literal["slimmable", "universal", "stagewise", "bootstrap"]

SAMPLES = 4
"""Networks in a step of the sandwich rule: the smallest, the largest, and others drawn between (US-Net's n)."""
DECAY = 0.999
"""What a teacher keeps of itself at each step, from about the 9,000th on; before, its mean reaches back a ninth."""


def default_training(network: SlimmableResNet) -> WidthTraining:
    """Return how the authors of a kind of network train it."""
    return "slimmable" if network.kind == "slim" else "universal"


def make_teacher(network: SlimmableResNet) -> AveragedModel:
    """Return a moving average of a network's weights, to be updated after each step (DS-Net's EMA teacher)."""
    return AveragedModel(network, avg_fn=_follow)


def _follow(mean: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
    """Return the moving average after one more step."""
    kept = torch.as_tensor((1 + steps) / (10 + steps), dtype=mean.dtype, device=mean.device).clamp(max=DECAY)
    return new.lerp(mean, kept)


def width_loss(
    network: SlimmableResNet,
    x: Tensor,
    how: WidthTraining,
    entropy: Callable[[Tensor], Tensor],
    teacher: AveragedModel | None = None,
) -> Tensor:
    """Return the sum of the losses of the widths that a step trains.

    slimmable: every width learns from the labels (Yu et al. 2019, algorithm 1). universal: the largest does; the
    smallest and others, drawn from torch's global generator, learn its soft labels (US-Net, algorithm 1). stagewise:
    likewise, but all of the others but one have a width drawn for each stage. bootstrap: as universal, but those
    between learn what the teacher's largest says, and the smallest the mean of the teacher's largest and of those
    between (DS-Net's in-place ensemble bootstrapping, Li et al. 2021, section 3.2, as in the authors' code).

    Args:
        network: Is trained.
        x: Prepared images. Shape (N, C, H, W).
        how: One of these.
        entropy: From logits (N, classes) to the mean loss with labels.
        teacher: For bootstrap: of `make_teacher`. Its BatchNorms normalise by the batch, as the network's do.
    """
    if how == "slimmable":
        return torch.stack([entropy(network.forward_at(x, (width,) * 3)) for width in network.widths]).sum()
    smallest, full = (network.widths[0],) * 3, (network.widths[-1],) * 3
    between, largest = draw_widths(network, how), network.forward_at(x, full)
    if teacher is None:
        targets = [largest] * (1 + len(between))
    else:
        assert isinstance(teacher.module, SlimmableResNet)
        with torch.no_grad():
            told = [teacher.module.forward_at(x, widths) for widths in (full, *between)]
        targets = [ensemble(told), *[told[0]] * len(between)]
    pairs = zip([smallest, *between], targets, strict=True)
    losses = [soft_label_loss(network.forward_at(x, widths), target) for widths, target in pairs]
    return torch.stack([entropy(largest), *losses]).sum()


def ensemble(logits: Sequence[Tensor]) -> Tensor:
    """Return logits of the mean of what several networks hold likely, each of shape (N, classes)."""
    return torch.stack([one.log_softmax(1) for one in logits]).logsumexp(0)


def draw_widths(network: SlimmableResNet, how: WidthTraining) -> list[tuple[int, ...]]:
    """Draw the widths of each stage, of the networks between the smallest and the largest."""
    drawn = torch.randint(len(network.widths), (SAMPLES - 2, 3))
    alike = 1 if how == "stagewise" else SAMPLES - 2
    drawn[:alike, 1:] = drawn[:alike, :1]
    return [tuple(network.widths[i] for i in row) for row in drawn.tolist()]


def soft_label_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher ‖ student), averaged over rows; the teacher gets no gradient. Logits of shape (N, classes)."""
    target = F.log_softmax(teacher.detach(), 1)
    return F.kl_div(F.log_softmax(student, 1), target, reduction="batchmean", log_target=True)
