"""Pictures of masks: which places of an image were computed, stage by stage."""

from math import ceil

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from .controller import Controller

COLUMNS = 5
SHADE = 0.75
"""How dark a place is that was left out, 0…1."""


def draw_masks(controller: Controller, image: Tensor, *, price: float | None = None) -> Figure:
    """Draw an image, and again for each stage, where what was left out is in the dark.

    Args:
        controller: Of a task that has masks.
        image: Shape (C, H, W), uint8 or floats in 0…1.
        price: As for the controller.

    Raises:
        ValueError: If the image does not fit.
    """
    decision = controller(image.unsqueeze(0), price=price)
    masks = controller.task.masks(image, decision.actions[0].tolist())
    rows, columns = ceil((1 + len(masks)) / COLUMNS), min(COLUMNS, 1 + len(masks))
    figure = Figure(figsize=(1.8 * columns, 2.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    seen = controller.task.pictures(image.unsqueeze(0))[0].permute(1, 2, 0).cpu().numpy()
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, mask) in zip(panels, {"image": torch.ones(1, 1), **masks}.items(), strict=False):
        axes.imshow(seen if seen.shape[2] == 3 else seen[:, :, 0], cmap="gray", interpolation="nearest")
        _shade(axes, mask, seen.shape[:2])
        axes.set_title(f"{name}: {float(mask.mean()):.0%}" if name != "image" else name, fontsize=8)
    answer = controller.task.backbone.class_names[int(decision.labels[0])]
    figure.suptitle(f"{answer}, {float(decision.compute[0]):.1%} of the full network's MACs", fontsize=9)
    return figure


def _shade(axes: Axes, mask: Tensor, size: tuple[int, int]) -> None:
    """Darken where a mask is 0."""
    wide = F.interpolate(mask[None, None].float().cpu(), size=size, mode="nearest")[0, 0].numpy()
    dark = np.zeros((*size, 4))
    dark[:, :, 3] = SHADE * (1 - wide)
    axes.imshow(dark, interpolation="nearest")
