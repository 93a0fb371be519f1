"""How one step trains a slimmable network's widths: losses, and which widths are drawn."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .slimmable import SlimmableResNet

WidthTraining = Literal["slimmable", "universal", "stagewise"]

SAMPLES = 4
"""Networks in a step of the sandwich rule: the smallest, the largest, and others drawn between (US-Net's n)."""


def default_training(network: SlimmableResNet) -> WidthTraining:
    """Return how the authors of a kind of network train it."""
    return "slimmable" if network.kind == "slim" else "universal"


def width_loss(network: SlimmableResNet, x: Tensor, how: WidthTraining, entropy: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the sum of the losses of the widths that a step trains.

    slimmable: every width learns from the labels (Yu et al. 2019, algorithm 1). universal: the largest does; the
    smallest and others, drawn from torch's global generator, learn its soft labels (US-Net, algorithm 1). stagewise:
    likewise, but all of the others but one have a width drawn for each stage.

    Args:
        network: Is trained.
        x: Prepared images. Shape (N, C, H, W).
        how: One of these.
        entropy: From logits (N, classes) to the mean loss with labels.
    """
    if how == "slimmable":
        return torch.stack([entropy(network.forward_at(x, (width,) * 3)) for width in network.widths]).sum()
    largest = network.forward_at(x, (network.widths[-1],) * 3)
    others = [(network.widths[0],) * 3, *draw_widths(network, how)]
    losses = [soft_label_loss(network.forward_at(x, widths), largest) for widths in others]
    return torch.stack([entropy(largest), *losses]).sum()


def draw_widths(network: SlimmableResNet, how: WidthTraining) -> list[tuple[int, ...]]:
    """Draw the widths of each stage, of the networks between the smallest and the largest."""
    drawn = torch.randint(len(network.widths), (SAMPLES - 2, 3))
    alike = SAMPLES - 2 if how == "universal" else 1
    drawn[:alike, 1:] = drawn[:alike, :1]
    return [tuple(network.widths[i] for i in row) for row in drawn.tolist()]


def soft_label_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher ‖ student), averaged over rows; the teacher gets no gradient. Logits of shape (N, classes)."""
    target = F.log_softmax(teacher.detach(), 1)
    return F.kl_div(F.log_softmax(student, 1), target, reduction="batchmean", log_target=True)
