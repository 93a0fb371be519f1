"""From names to an environment's parts: data, backbone, task, reward."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..backbones import Backbone, load_backbone
from ..backbones.registry import held_out
from ..data import Augment, ImageData
from ..data import load as load_data
from ..names import unknown
from .engine import Engine, Price
from .rewards import Reward, make_reward
from .task import Task, make_task, task_class

AugmentLevel = Literal["auto", "none", "light", "strong"]


def build_engine(
    task: str | Task,
    *,
    backbone: str | Backbone | None = None,
    data: str | ImageData | None = None,
    weights: str | Path | None = None,
    class_indices: Sequence[int] = (),
    reward: str | Reward = "accuracy",
    price: Price = 0.3,
    part: Literal["train", "policy", "val", "test"] = "policy",
    augment: AugmentLevel = "auto",
    task_options: Mapping[str, Any] | None = None,
    policy_macs: int = 0,
    num_envs: int = 1,
) -> Engine:
    """Build the engine behind every environment.

    Args:
        task: A registered name, or a task of your own.
        backbone: A registered name, or a backbone; by default the one that the task names.
        data: What `skipgym.load_data` takes, or a data set; by default the embedded data that the task names.
        weights: Checkpoint of the backbone. Without one the embedded data's backbone is trained on first use.
        class_indices: Which of the weights' outputs the data's classes are, where they know more.
        reward: A registered name, or a reward.
        price: Of compute, in units of accuracy: a number, or a range drawn from for each episode and then observed.
        part: Which images are dealt.
        augment: How they are varied; `auto` is `strong` where the backbone has seen them, else `light`.
        task_options: Passed to the task.
        policy_macs: Cost of one decision of the policy, in MACs, charged as compute.
        num_envs: Number of slots.

    Raises:
        ValueError: If a name is unknown, or the parts do not fit each other.
    """
    reward, options = make_reward(reward), task_options or {}
    kind = (
        task_class(task) if isinstance(task, str) else task
    )  # an unknown name is told before data and weights are read
    data = kind.default_data if data is None else data
    backbone = kind.default_backbone if backbone is None else backbone
    images = find_data(data, weights) if isinstance(data, str) else data
    check_kind(kind, images)
    if isinstance(task, str):
        if isinstance(backbone, str):
            name, recipe = task_class(task).architecture(backbone), task_class(task).recipe(images, **options)
            backbone = find_backbone(name, images, weights, classes=class_indices, recipe=recipe)
        task = find_task(task, backbone, images, **options)
    images = images.with_vocabulary(task.backbone.vocabulary)
    check_fit(task, images)
    return Engine(
        task,
        images.part(part),
        reward=reward,
        price=price,
        num_envs=num_envs,
        augment=choose_augment(augment, images),
        policy_macs=policy_macs,
    )


def find_data(spec: str, weights: str | Path | None) -> ImageData:
    """Load data for a backbone: its policy part is held out, unless the weights may have seen everything."""
    data = load_data(spec)
    return data if weights is None or held_out(weights, data.fingerprint) else data.joined()


def find_backbone(
    name: str,
    data: ImageData,
    weights: str | Path | None,
    *,
    classes: Sequence[int] = (),
    recipe: Mapping[str, Any] | None = None,
) -> Backbone:
    """Return a trained backbone: from a checkpoint, or the cached one for embedded data.

    Args:
        name: A registered name.
        data: Says which images and classes.
        weights: The checkpoint.
        classes: Which of its outputs the data's classes are, where it knows more.
        recipe: What a task wants changed in how embedded data's backbone is trained.

    Raises:
        ValueError: If there are no weights and the data is not embedded, or they do not fit.
    """
    if weights is not None:
        return load_backbone(name, weights, class_indices=classes, **data.shape)
    if classes:
        raise ValueError("class_indices: expected them with weights that know more classes, got none. Pass weights.")
    from ..backbones.embedded import pretrained

    return pretrained(name, data, **(recipe or {}))


def find_task(name: str, backbone: Backbone, data: ImageData, **options: Any) -> Task:
    """Return a task by name, around a backbone that carries what it needs."""
    return make_task(name, task_class(name).furnish(backbone, data, **options), **options)


def check_kind(task: Task | type[Task], data: ImageData) -> None:
    """Raise a ValueError unless the data's inputs are clips where a task takes clips, else images."""
    if data.vocabulary and not task.takes_words:
        raise ValueError(
            f"data {data.name}: expected {'clips' if task.takes_clips else 'images'} for {task.name}, got texts. Take "
            f"other data, such as {task.default_data}, or another task, such as time-skip."
        )
    if task.takes_clips != data.is_clips:
        expected, got = ("clips", "single images") if task.takes_clips else ("single images", "clips")
        raise ValueError(
            f"data {data.name}: expected {expected} for {task.name}, got {got}. Take other data"
            + (f", such as {task.default_data}, or another task." if data.name != task.default_data else ".")
        )


def check_fit(task: Task, data: ImageData) -> None:
    """Raise a ValueError unless the data's images and classes are those of the task and its backbone."""
    check_kind(task, data)
    expected, got = task.backbone.input_shape, data.image_shape
    if expected[1:] != got[1:] or (expected[0] != got[0] and got[0] != 1):
        raise ValueError(
            f"data {data.name}: expected {expected[0]} x {expected[1]} x {expected[2]} images as the backbone takes, "
            f"got {got[0]} x {got[1]} x {got[2]}. Resize them, or use a backbone trained at that size."
        )
    if task.backbone.num_classes != data.num_classes:
        raise ValueError(
            f"data {data.name}: expected {task.backbone.num_classes} classes as the backbone has, "
            f"got {data.num_classes}. Use the data that it was trained on, or pretrain one."
        )


def choose_augment(level: AugmentLevel, data: ImageData) -> Augment:
    """Return the augmentation of a level; `auto` looks at whether the backbone has seen the policy's images.

    Images that have been varied before are left as they are.
    """
    if level == "auto":
        level = "strong" if data.seen else "light"
    levels = {"none": Augment(), "light": Augment.light(data), "strong": Augment.strong(data)}
    if level not in levels:
        raise ValueError(unknown("augment", level, ["auto", *levels]))
    return Augment() if data.varied else levels[level]
