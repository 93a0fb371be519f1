"""The training loop of a backbone: deterministic, resumable after each epoch, with blocks left out image by image."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..data import Augment, ImageData, Part
from .backbone import Backbone
from .channels import drop_channels
from .exit_training import exit_accuracy
from .fitting import check_enough
from .recipe import Recipe
from .routing import route
from .scaling import scale_macs, scaled
from .slimmable import QUARTERS, SlimmableResNet, recalibrate, slices
from .tokens import encoder_blocks, forward_dropped
from .width_training import default_training, make_teacher, soft_label_loss, width_loss

Metrics = dict[str, float]


RECALIBRATION = 1000
"""Training images, as they are, from which a universally slimmable network's statistics are computed at the end."""


class Batch(NamedTuple):
    """One step's images as the network takes them, and what is drawn for them.

    Attributes:
        x: At the step's scale. Shape (N, C, H, W).
        labels: Shape (N,).
        keep: 1 where a block runs. Shape (N, L).
        coin: Even in 0…1. Shape (N,).
    """

    x: Tensor
    labels: Tensor
    keep: Tensor
    coin: Tensor


class Trainer:
    """Trains an unfrozen backbone by a recipe.

    What epoch e draws depends on (seed, e) alone, and the learning rate on the step, so weights, momentum and the
    number of epochs done are all that a checkpoint needs.

    Args:
        backbone: Is trained in place; its train part is all of the data that training reads.
        data: Images; `val` is read after each epoch.
        recipe: How to train.
        device: Where to.

    Attributes:
        history: Metrics of each epoch done: loss, lr, val_full, val_half (with stochastic depth), val_exit1, … (where
            exits are part of the network), val_at_16 (of scale 16), images_per_s.

    Raises:
        ValueError: If there are fewer training images than a batch needs, or recipe and backbone do not fit.
    """

    def __init__(self, backbone: Backbone, data: ImageData, recipe: Recipe, *, device: str | torch.device = "cpu"):
        check_enough(data, recipe.batch_size)
        check_recipe(backbone, recipe)
        check_widths(backbone, recipe)
        if recipe.scales:
            scale_macs(backbone, recipe.scales)  # the network runs at each of them
        self._hooks = drop_channels(backbone, recipe.channel_groups) if recipe.channel_groups else []
        self.backbone, self.data, self.recipe, self.device = backbone, data, recipe, torch.device(device)
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        backbone.to(device=self.device, memory_format=layout)  # pyright: ignore[reportCallIssue]
        self.optimizer = torch.optim.SGD(
            backbone.network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )
        network, bootstraps = backbone.network, recipe.width_training == "bootstrap"
        self.teacher = make_teacher(network) if bootstraps and isinstance(network, SlimmableResNet) else None
        self.steps = len(data.train) // recipe.batch_size
        self.history: list[Metrics] = []
        self.best: dict[str, Tensor] = {}

    @property
    def epochs_done(self) -> int:
        """Number of epochs trained so far."""
        return len(self.history)

    def run_epoch(self, *, quiet: bool = True) -> Metrics:
        """Train one epoch, measure on val, and return both as the history keeps them.

        Raises:
            ValueError: If the loss is no longer a finite number.
        """
        began, epoch = time.perf_counter(), self.epochs_done
        loss = self._train_epoch(epoch, quiet)
        seconds = time.perf_counter() - began
        metrics = {
            "loss": loss,
            "lr": self.recipe.lr_at(epoch / self.recipe.epochs),
            **{f"val_{path}": value for path, value in self.measure(self.data.val).items()},
            "images_per_s": self.steps * self.recipe.batch_size / seconds,
        }
        self.history.append(metrics)
        if self.recipe.keep == "best" and metrics["val_full"] == max(past["val_full"] for past in self.history):
            self.best = {key: value.clone() for key, value in self.backbone.network.state_dict().items()}
        return metrics

    def measure(self, part: Part) -> Metrics:
        """Return the accuracy on a part of the full path, and of what else the network is trained for.

        That is of a random half of the blocks (`half`, with stochastic depth), of the network at each smaller scale
        (`at_16`, with scales), and of exits that are part of the network (`exit1`).
        """
        if self.backbone.has_own_exits:
            *exits, full = exit_accuracy(self.backbone, part)
            return {"full": full, **{f"exit{index}": share for index, share in enumerate(exits, 1)}}
        measured = {"full": accuracy(self.backbone, part)}
        if self.recipe.stochastic_depth:
            keep = random_half(len(part), len(self.backbone.blocks), seed=self.recipe.seed)
            measured["half"] = accuracy(self.backbone, part, keep)
        for scale in self.recipe.scales[:-1]:
            measured[f"at_{scale}"] = accuracy(self.backbone, part, scale=scale)
        return measured

    def finish(self) -> Backbone:
        """Return the backbone with the weights to keep, on the CPU and in evaluation mode."""
        for hook in self._hooks:
            hook.remove()
        if self.best:
            self.backbone.network.load_state_dict(self.best)
        images = self.data.train.images[:: max(1, len(self.data.train) // RECALIBRATION)][:RECALIBRATION]
        recalibrate(self.backbone, [self.backbone.prepare(part.to(self.device)) for part in images.split(250)])
        return self.backbone.eval().to(device="cpu", memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]

    def state_dict(self) -> dict[str, Any]:
        """Return all that another trainer of the same recipe and data needs to go on."""
        teacher = {"teacher": self.teacher.state_dict()} if self.teacher else {}
        return {
            "network": self.backbone.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best": self.best,
            **teacher,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where another trainer was."""
        self.backbone.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.best = state["history"], state["best"]
        if self.teacher:
            self.teacher.load_state_dict(state["teacher"])

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        train, size = self.data.train, self.recipe.batch_size
        generator = torch.Generator().manual_seed(derived_seed(self.recipe.seed, epoch))
        order = torch.randperm(len(train), generator=generator)
        uniforms = torch.rand((len(train), Augment.draws), generator=generator)
        keep = draw_keep(self.recipe.skip_probabilities(keeps_shape(self.backbone)), len(train), generator)
        coins = torch.rand(len(train), generator=generator)
        scales = draw_scales(self.recipe.scales or (max(self.backbone.input_shape[1:]),), self.steps, generator)
        for scale, rows in zip(scales, torch.arange(self.steps * size).split(size), strict=True):
            images = self.data.augment.apply(train.images[order[rows]], uniforms[rows]).to(self.device)
            labels = train.labels[order[rows]].to(self.device)
            x = scaled(self.backbone.prepare(images), scale)
            yield Batch(x, labels, keep[rows].to(self.device), coins[rows].to(self.device))

    def _train_epoch(self, epoch: int, quiet: bool) -> float:
        self.backbone.train()
        if self.recipe.settled(epoch):
            hold_statistics(self.backbone)
        total = torch.zeros((), device=self.device)
        name = f"epoch {epoch + 1}/{self.recipe.epochs}"
        # None: no bar where nobody watches a terminal
        bar = tqdm(self.batches(epoch), name, self.steps, leave=False, disable=True if quiet else None)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derived_seed(self.recipe.seed, epoch))  # for networks that draw themselves (dropout)
            for step, batch in enumerate(bar):
                loss = self._step(batch, (epoch * self.steps + step) / (self.recipe.epochs * self.steps))
                total += loss.detach()
                if not bar.disable:
                    bar.set_postfix(loss=f"{loss.item():.3f}")
        return self._checked(total.item() / self.steps, epoch)

    def _step(self, batch: Batch, progress: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(progress)
        loss = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.teacher:
            self.teacher.update_parameters(self.backbone.network)
        return loss

    def _loss(self, batch: Batch) -> Tensor:
        recipe = self.recipe
        entropy = partial(F.cross_entropy, target=batch.labels, label_smoothing=recipe.label_smoothing)
        if self.backbone.has_own_exits:
            losses = [entropy(answer) for answer in self.backbone.answers(batch.x)]
            return weighted_sum(losses, recipe.exit_weights)
        if isinstance(network := self.backbone.network, SlimmableResNet):
            how = recipe.width_training or default_training(network)
            return width_loss(network, batch.x, how, entropy, self.teacher)
        if recipe.token_dropout:
            return entropy(forward_dropped(self.backbone, batch.x, recipe.token_dropout))
        if not recipe.stochastic_depth:
            return entropy(self.backbone(batch.x))
        full = self.backbone(batch.x) if recipe.distill else None
        keep = batch.keep
        if recipe.spare_hard:
            seen = self._glance(batch.x) if full is None else full.detach()
            keep = spare_hard(keep, seen, batch.labels, batch.coin, power=recipe.spare_hard)
        skipped = forward_kept(self.backbone, batch.x, at_least_two(keep))
        if full is None:
            return entropy(skipped)
        return entropy(full) + recipe.distill * soft_label_loss(skipped, full)

    @torch.no_grad()
    def _glance(self, x: Tensor) -> Tensor:
        """Return what the full path says, without leaving a trace in BatchNorm's statistics."""
        modes = [(one, one.training) for one in self.backbone.modules()]
        self.backbone.eval()
        logits = self.backbone(x)
        for one, mode in modes:
            one.training = mode
        return logits

    def _checked(self, loss: float, epoch: int) -> float:
        if not np.isfinite(loss):
            raise ValueError(
                f"training diverged: expected a finite loss, got {loss} in epoch {epoch + 1}. "
                f"Lower --lr (now {self.recipe.lr:g}) and choose another --out."
            )
        return loss


def check_recipe(backbone: Backbone, recipe: Recipe) -> None:
    """Raise a ValueError unless a network can be trained as a recipe says."""
    if recipe.token_dropout:
        encoder_blocks(backbone)
    if not backbone.has_own_exits:
        return
    if recipe.stochastic_depth:
        raise ValueError(
            f"stochastic_depth: expected 0 for {backbone.name}, whose blocks cannot be left out, since later ones use "
            f"what they add, got {recipe.stochastic_depth:g}. Leave --stochastic-depth out."
        )
    count = len(backbone.exits) + 1
    if recipe.exit_weights and len(recipe.exit_weights) != count:
        raise ValueError(
            f"exit_weights: expected {count}, one for each of {backbone.name}'s exits and its last answer, "
            f"got {len(recipe.exit_weights)}. Give as many --exit-weights, or none."
        )


def weighted_sum(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of losses by their weights, all 1 where none are given."""
    pairs = zip(weights or (1.0,) * len(losses), losses, strict=True)
    return torch.stack([weight * loss for weight, loss in pairs]).sum()


def check_widths(backbone: Backbone, recipe: Recipe) -> None:
    """Raise a ValueError if a recipe cannot train the widths of a backbone."""
    if not isinstance(backbone.network, SlimmableResNet):
        if recipe.width_training:
            raise ValueError(
                f"width_training: expected a slimmable backbone, got {backbone.name}. Leave --width-training out, or "
                "use --backbone slim-resnet20 or us-resnet20."
            )
    elif recipe.stochastic_depth:
        raise ValueError(
            f"stochastic_depth: expected 0 for {backbone.name}, whose widths are trained at full depth, got "
            f"{recipe.stochastic_depth}. Leave --stochastic-depth out, or use a backbone of one width."
        )


def width_accuracy(backbone: Backbone, part: Part) -> Metrics:
    """Return the accuracy at a quarter, half and three quarters of the width; nothing if it is not slimmable."""
    if not isinstance(backbone.network, SlimmableResNet):
        return {}
    widths = QUARTERS[:-1]
    return {
        f"width {width:g}": accuracy(one, part) for width, one in zip(widths, slices(backbone, widths), strict=True)
    }


def forward_kept(backbone: Backbone, x: Tensor, keep: Tensor) -> Tensor:
    """Execute for each image only the blocks it keeps.

    Args:
        backbone: Stem and head run on all rows, a block on those that keep it, its bypass on the others.
        x: Prepared images. Shape (N, C, H, W).
        keep: 1 where the block runs. Shape (N, L), values in {0, 1}.

    Returns:
        Logits. Shape (N, classes).
    """
    x = backbone.stem(x)
    for block, kept in zip(backbone.blocks, keep.unbind(1), strict=True):
        x = route([block.bypass, block.run], x, kept)
    return backbone.head(x)


def spare_hard(keep: Tensor, logits: Tensor, labels: Tensor, coin: Tensor, *, power: float) -> Tensor:
    """Let images run in full, the more likely the less sure the network is of their labels.

    Args:
        keep: 1 where a block would run. Shape (N, L).
        logits: Of the full path. Shape (N, classes).
        labels: Shape (N,).
        coin: Even in 0…1. Shape (N,).
        power: An image is skipped in where its coin is below its label's probability to this power.

    Returns:
        1 where a block runs. Shape (N, L).
    """
    ease = logits.softmax(1).gather(1, labels.unsqueeze(1)) ** power
    return torch.where(coin.unsqueeze(1) < ease, keep, 1)


def accuracy(backbone: Backbone, part: Part, keep: Tensor | None = None, *, scale: int | None = None) -> float:
    """Return the share of right answers in evaluation mode, 0…1.

    Args:
        backbone: Unfrozen or frozen, on any device.
        part: Images and labels.
        keep: 1 where a block runs; everything runs where it is not given. Shape (N, L).
        scale: Longer side in pixels to bring the images to; their own where it is not given.
    """
    device = next(backbone.network.parameters()).device
    was_training, right = backbone.training, 0
    backbone.eval()
    with torch.no_grad():
        for images, labels, index in part.batches(256):
            x = backbone.prepare(images.to(device))
            x = x if scale is None else scaled(x, scale)
            logits = backbone(x) if keep is None else forward_kept(backbone, x, keep[index].to(device))
            right += int((logits.argmax(1).cpu() == labels).sum())
    backbone.train(was_training)
    return right / len(part)


def draw_keep(skip_probabilities: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw for each image and block whether it runs. Shapes (L,) to (count, L), values in {0, 1}."""
    uniforms = torch.rand((count, len(skip_probabilities)), generator=generator)
    return (uniforms >= skip_probabilities).long()


def hold_statistics(backbone: Backbone) -> None:
    """Let BatchNorm normalise by the statistics that it has, until the backbone is next put into training mode."""
    for one in backbone.modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):  # the base of BatchNorm in all dimensions
            one.eval()


def draw_scales(scales: Sequence[int], steps: int, generator: torch.Generator) -> list[int]:
    """Draw the scale of each step, evenly. A single one is not drawn: without scales all else is as it was."""
    if len(scales) == 1:
        return [scales[0]] * steps
    return [scales[i] for i in torch.randint(len(scales), (steps,), generator=generator).tolist()]


def keeps_shape(backbone: Backbone) -> list[bool]:
    """Return of each block whether its output has the shape of its input."""
    return [block.in_shape == block.out_shape for block in backbone.blocks]


def at_least_two(keep: Tensor) -> Tensor:
    """Let all rows run a block that only one of them keeps: BatchNorm has no variance of one. Shape (N, L)."""
    return torch.where(keep.sum(0) == 1, 1, keep)


def random_half(count: int, blocks: int, *, seed: int) -> Tensor:
    """Keep a random half of the blocks (rounded down, at least one) for each image. Shape (count, blocks)."""
    uniforms = torch.rand((count, blocks), generator=torch.Generator().manual_seed(seed))
    return (uniforms.argsort(1) < max(1, blocks // 2)).long()


def derived_seed(seed: int, epoch: int) -> int:
    """Return a seed for one epoch, unrelated to those of other epochs and seeds."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
