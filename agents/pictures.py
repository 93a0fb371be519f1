"""Pictures of a decision: where on the image was looked, in which order, and how the answer grew surer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from ..envs.choice import Hard
from ..envs.rollout import rollout
from ..envs.state import State
from ..envs.task import Box, Task
from .controller import Controller
from .mask_pictures import draw_masks
from .policy import Decider

LINE = 8
"""Steps of a sequence that stand in one line, where they are more than half as many again."""

COLOURS = ("tab:orange", "tab:green", "tab:red", "tab:purple", "tab:cyan", "tab:pink")


@dataclass(frozen=True)
class Story:
    """How one image was answered.

    Attributes:
        boxes: Where was looked, in order.
        probabilities: Of each class, before the first look and after each. Shape (1 + looks, classes).
        compute: Spent at the end, as a share of the full network's MACs.
    """

    boxes: list[Box]
    probabilities: Tensor
    compute: float

    @property
    def answer(self) -> int:
        """The class that was answered."""
        return int(self.probabilities[-1].argmax())


class _Told(Decider):
    """A policy that is followed on one image, and what it would have answered at each decision."""

    answers: list[Tensor]

    def __call__(self, state: State) -> Hard:
        """Decide, and note."""
        self.answers.append(self.task.answer_now(state)[0].softmax(0))
        return super().__call__(state)


@torch.inference_mode()
def story(controller: Controller, image: Tensor, *, price: float | None = None) -> Story:
    """Follow a controller on one image.

    Args:
        controller: Of a task that looks at places and could answer in between.
        image: Shape (C, H, W), uint8 or floats in 0…1.
        price: As for the controller.

    Raises:
        ValueError: If the task has no places to draw, or the image does not fit.
    """
    task = controller.task
    check_drawable(task, masks=False)
    images = image.unsqueeze(0)
    task.check_images(images)
    told = _Told(task, controller.policy, torch.full((1,), controller.price if price is None else price))
    told.answers = []
    run = rollout(task, task.prepare(images), told)
    actions, places = run.actions[0].tolist(), None if run.places is None else run.places[0]
    boxes = task.regions(actions, places)
    answers = [*told.answers, run.logits[0].softmax(0)]
    looks = [0, *_looks(task, actions)]
    compute = float(run.macs[0] + told.macs[0]) / task.full_macs
    return Story(boxes, torch.stack([answers[look] for look in looks]).cpu(), compute)


def _looks(task: Task, actions: list[int]) -> list[int]:
    """Return after how many decisions a region was added: some leave a piece out and go on."""
    none = [-1] * len(actions)
    regions = [len(task.regions([*actions[:count], *none[count:]])) for count in range(len(actions) + 1)]
    return [count for count in range(1, len(regions)) if regions[count] > regions[count - 1]]


def is_drawable(task: Task) -> bool:
    """Return whether a task leaves out places of the image, or looks at some and could answer in between."""
    return task.has_masks or (task.has_exits and bool(task.regions(task.onward)))


def check_drawable(task: Task, *, masks: bool = True) -> None:
    """Raise a ValueError unless there are places to draw; with or without those that are left out."""
    if not is_drawable(task) or (task.has_masks and not masks):
        raise ValueError(
            f"picture: expected the controller of a task that looks at places of the image, got one of {task.name}. "
            "Leave the picture out, or train one: skipgym train --task patch-crop."
        )


def draw_story(controller: Controller, image: Tensor, *, price: float | None = None) -> Figure:
    """Draw where on an image was looked, numbered in order, beside the growing probability of the answer.

    Of a task that leaves out places it is those that are drawn, see `draw_masks`.
    """
    if controller.task.has_masks:
        return draw_masks(controller, image, price=price)
    told, names = story(controller, image, price=price), controller.task.backbone.class_names
    task, seen = controller.task, controller.task.pictures(image.unsqueeze(0))[0]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    if task.takes_clips:  # frames or words side by side
        where, growth = figure.subplots(2, 1, height_ratios=(1, 1.2))
        _draw_boxes(where, *_in_lines(seen, told.boxes, int(task.regions(task.onward)[0][3])), steps=True)
    else:
        where, growth = figure.subplots(1, 2)
        _draw_boxes(where, seen, told.boxes)
    _draw_growth(growth, told, names[told.answer])
    figure.suptitle(f"{names[told.answer]}, {told.compute:.1%} of the full network's MACs")
    return figure


def save_story(controller: Controller, image: Tensor, path: Path, *, price: float | None = None) -> None:
    """Write `draw_story` as a picture; the suffix says in which format.

    Raises:
        ValueError: If there is no such format, or nothing to draw.
    """
    figure = draw_story(controller, image, price=price)
    check_format(path)
    figure.savefig(path, dpi=120)


def check_format(path: Path) -> None:
    """Raise a ValueError unless a picture's suffix names a format that can be written."""
    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        endings = ", ".join(f".{ending}" for ending in sorted(known))
        raise ValueError(f"picture {path}: expected a name that ends in one of {endings}. Rename it.")


def _in_lines(image: Tensor, boxes: list[Box], width: int) -> tuple[Tensor, list[Box]]:
    """Return a strip of steps, each so wide, as lines below each other, and its boxes there; a short one as it is."""
    steps, height = image.shape[2] // width, image.shape[1]
    if steps <= 1.5 * LINE:
        return image, boxes
    lines = F.pad(image, (0, -steps % LINE * width), value=255).split(LINE * width, 2)
    places = [divmod(int(left) // width, LINE) for _, left, _, _ in boxes]
    moved = [(float(line * height), float(column * width), float(height), float(width)) for line, column in places]
    return torch.cat(lines, 1), moved


def _draw_boxes(axes: Axes, image: Tensor, boxes: list[Box], *, steps: bool = False) -> None:
    """Draw an image, and boxes with their numbers in the left corner; of steps, which begin there, in the right."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray", interpolation="nearest")
    for index, (top, left, height, width) in enumerate(boxes):
        colour = COLOURS[index % len(COLOURS)]
        inset = 0.15 * index  # so that looks at the same place stay apart
        corner = left - 0.5 + inset, top - 0.5 + inset  # a pixel's centre is at whole numbers
        axes.add_patch(Rectangle(corner, width - 2 * inset, height - 2 * inset, fill=False, ec=colour, lw=2))
        x, side, size = (corner[0] + width, "right", 6) if steps else (corner[0], "left", 8)
        label = {"color": "white", "backgroundcolor": colour, "fontsize": size, "va": "top", "ha": side}
        axes.text(x, corner[1], str(index + 1), **label)
    axes.set_axis_off()


def _draw_growth(axes: Axes, told: Story, name: str) -> None:
    shares = told.probabilities[:, told.answer].tolist()
    axes.plot(range(len(shares)), shares, "-", color="grey")
    for index, share in enumerate(shares):
        axes.plot(index, share, "o", color="grey" if index == 0 else COLOURS[(index - 1) % len(COLOURS)])
    axes.set(ylim=(0, 1.03), xlabel="looks", ylabel=f"probability of {name}", xticks=range(len(shares)))
