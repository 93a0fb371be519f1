"""Watch a training run: TensorBoard, progress bar, and the best policy by validation."""

import copy
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..data import Part
from ..envs.tally import Tally
from ..envs.task import Task
from .controller import Controller
from .evaluate import Measured, measure
from .pictures import draw_story, is_drawable
from .policy import Policy

RECENT = 0.2
"""Weight of the last record in the average of what was spent while options were drawn."""

RECENT_VALIDATION = 0.5
"""Likewise, of the last validation in that of how much this was beyond what the policy spends."""


class Monitor:
    """Logs what a learner does and keeps the policy that is best on validation data.

    Metrics: `train/reward`, `train/accuracy`, `train/compute`, `train/price` over the last episodes;
    `execution/PIECE`, how often it was executed; `val/accuracy`, `val/compute`, `val/score`, `val/unique_paths`;
    `called/FORK/I`, where several ways fork as among experts: the share of the validation images there that took way I;
    `decisions`, an image with a row for each of 64 validation images and a column for each piece, white if executed;
    `looks/0` … `looks/3`, where a task looks at places: those of four images, and how the answer grew surer; or what
    was left out of them.

    Args:
        task: The task.
        val: Validation images.
        out: Directory of the TensorBoard events; None writes none.
        prices: At which the policy is validated: one, or several for a policy that is told the price.
        target: Compute to stay within, instead of a price.
        images: Episodes in the whole training.
        minutes: Wall-clock after which training stops, if that is sooner.
        macs: Backbone MACs after which training stops, if that is sooner.
        validations: How often to validate, evenly over the training.

    Attributes:
        beyond: What is spent while options are drawn beyond what the policy spends, which takes the likelier ones, in
            shares of the full MACs; of recent validations.
    """

    def __init__(
        self,
        task: Task,
        val: Part,
        *,
        out: Path | None,
        prices: tuple[float, ...],
        target: float | None,
        images: int,
        minutes: float | None = None,
        macs: float | None = None,
        validations: int = 20,
        quiet: bool = False,
    ):
        self.task, self.val, self.prices, self.target = task, val, prices, target
        self.images, self.minutes, self.macs = images, minutes, macs
        self.writer = SummaryWriter(str(out)) if out else None
        self.quiet = quiet
        self.progress = tqdm(total=images, unit="image", desc="train", disable=quiet, smoothing=0.05)
        self.seen, self.backbone_macs, self.started = 0, 0.0, time.monotonic()
        self._every = self._next = 1 / validations
        self.beyond = 0.0
        self._drawn: float | None = None
        self.best: Policy | None = None
        self.best_score = -float("inf")
        self.history: list[dict[str, float]] = []

    @property
    def seconds(self) -> float:
        """Wall-clock since the start."""
        return time.monotonic() - self.started

    @property
    def done_share(self) -> float:
        """Share of training that is done, by episodes, time or backbone MACs, whichever is furthest."""
        timed = self.seconds / 60 / self.minutes if self.minutes else 0.0
        spent = self.backbone_macs / self.macs if self.macs else 0.0
        return max(self.seen / self.images, timed, spent)

    def record(self, tally: Tally, **scalars: float) -> None:
        """Log what happened since the last call, with other scalars."""
        self.backbone_macs += tally.backbone_macs
        means = tally.means()
        if tally.episodes:
            before = means["compute"] if self._drawn is None else self._drawn
            self._drawn = before + RECENT * (means["compute"] - before)
        self.progress.set_postfix(accuracy=f"{means['accuracy']:.3f}", compute=f"{means['compute']:.2f}", refresh=False)
        self.advance(tally.episodes, **means, **scalars)
        self._log({f"execution/{n}": r for n, r in zip(self.task.pieces, tally.execution(), strict=True)})

    def advance(self, images: int, **scalars: float) -> None:
        """Count images that were trained on, and log scalars of the training."""
        self.seen += images
        self.progress.update(images)
        self._log({f"train/{key}": value for key, value in scalars.items()})

    def validate(self, policy: Policy, *, force: bool = False) -> None:
        """Measure a policy if it is time, and keep a copy if it is the best so far."""
        if self.done_share < self._next and not force:
            return
        self._next = self.done_share + self._every
        snapshot = copy.deepcopy(policy)
        measured = [measure(Controller(self.task, snapshot, price=price), self.val) for price in self.prices]
        score = sum(self._score(m, p) for m, p in zip(measured, self.prices, strict=True)) / len(measured)
        first = measured[0]
        if self._drawn is not None:
            self.beyond += RECENT_VALIDATION * (self._drawn - first.compute - self.beyond)
        self.history.append(
            {"images": self.seen, "accuracy": first.accuracy, "compute": first.compute, "seconds": self.seconds}
        )
        self._log(
            {
                "val/accuracy": first.accuracy,
                "val/compute": first.compute,
                "val/score": score,
                "val/unique_paths": first.unique_paths,
            }
        )
        self._log_calls(first)
        self._log_decisions(snapshot)
        if score >= self.best_score:
            self.best, self.best_score = snapshot, score

    def close(self) -> None:
        """Close the bar and the events."""
        self.progress.close()
        if self.writer:
            self.writer.close()

    def _score(self, measured: Measured, price: float) -> float:
        """Return what is maximised: accuracy minus price x compute, or minus twice what exceeds the target."""
        if self.target is None:
            return measured.accuracy - price * measured.compute
        excess = max(0.0, measured.compute - self.target)
        return measured.accuracy - 2 * excess  # a little of it is mended afterwards, see `meet`

    def _log(self, scalars: dict[str, float]) -> None:
        if self.writer:
            for key, value in scalars.items():
                self.writer.add_scalar(key, value, self.seen)

    def _log_calls(self, measured: Measured) -> None:
        for fork, counts in self.task.called(measured.actions).items():
            shares = [count / max(1, sum(counts)) for count in counts]
            self._log({f"called/{fork}/{i}": share for i, share in enumerate(shares)})

    def _log_decisions(self, policy: Policy) -> None:
        if not self.writer:
            return
        controller = Controller(self.task, policy, price=self.prices[0])
        decision = controller(self.val.images[:64])
        order = decision.macs.argsort()
        picture = (decision.actions[order] > 0).float().repeat_interleave(4, 0).repeat_interleave(8, 1)
        self.writer.add_image("decisions", picture.cpu(), self.seen, dataformats="HW")
        if is_drawable(self.task):
            for index, image in enumerate(self.val.images[:4]):
                self.writer.add_figure(f"looks/{index}", draw_story(controller, image), self.seen)
        self.writer.add_histogram("val/compute_of_images", torch.as_tensor(decision.compute), self.seen)
