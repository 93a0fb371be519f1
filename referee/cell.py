"""Compute one cell of a comparison, and leave it whole or not at all."""

import base64
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ..agents.baselines import RULE, StaticPoint, dearest, random_policy, rule_costs, static_frontier
from ..agents.controller import Controller
from ..agents.evaluate import Measured, measure, measure_full, result_row
from ..agents.oracle import Bound, bounds
from ..agents.pictures import draw_story, is_drawable
from ..agents.policy import StaticPolicy
from ..agents.threshold import threshold_at_price, threshold_policy
from ..agents.training import meet, train
from ..data import ImageData, Part
from ..envs.task import Task
from .methods import THRESHOLDS, is_learned, method
from .plan import Budget, Cell, CompareConfig

RESULT, IMAGES = "cell.json", "images.safetensors"
EXAMPLES, PICTURES = 8, 3
"""Of each kind that the report shows; of these, that are drawn with where was looked."""
DPI = 72

Row = dict[str, Any]
Arrays = dict[str, Tensor]


class Bench:
    """Where cells are computed: one task, one data set.

    Args:
        config: The comparison.
        task: Its task.
        data: Its data.
        full_accuracy: Of the untouched network on the test part.
    """

    def __init__(self, config: CompareConfig, task: Task, data: ImageData, full_accuracy: float):
        self.config, self.task, self.data, self.full_accuracy = config, task, data, full_accuracy

    def run(self, cell: Cell, directory: Path) -> None:
        """Compute a cell; its directory appears when it is whole."""
        part = directory.with_name(directory.name + ".part")
        shutil.rmtree(part, ignore_errors=True)  # what a killed comparison has left
        part.parent.mkdir(parents=True, exist_ok=True)
        how = {"full": self._full, "random": self._random, "static": self._static, "oracle": self._oracle}
        how |= dict.fromkeys(THRESHOLDS, self._threshold)
        how |= {f"{RULE}{name}": self._rule for name in self.task.rules}
        rows, arrays = how.get(cell.method, self._learned)(cell, part)
        part.mkdir(exist_ok=True)
        save_file({key: value.contiguous() for key, value in arrays.items()}, part / IMAGES)
        (part / RESULT).write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        os.replace(part, directory)

    def _learned(self, cell: Cell, directory: Path) -> tuple[list[Row], Arrays]:
        config = cell.train_config(self.config, self.task.full_macs)
        trained = train(config, self.task, self.data, out=directory, quiet=True)
        rows, arrays = [], {}
        for budget in cell.budgets:
            controller = trained.controller
            if method(cell.method).every_budget:
                self._tune(controller, budget)
            val, test = measure(controller, self.data.val), measure(controller, self.data.test)
            rows.append(
                self._row(cell, budget, test, self.data.test)
                | {"price": controller.price, "val_accuracy": val.accuracy, "val_compute": val.compute}
                | {"train_backbone_macs": trained.backbone_macs, "train_seconds": trained.seconds}
                | {"history": trained.history, "controller": f"runs/{directory.stem}/controller"}
            )
            if cell.seed == 0:
                rows[-1]["examples"] = examples(test, self.data.test, controller)
            arrays |= _arrays(budget, test)
        return rows, arrays

    def _tune(self, controller: Controller, budget: Budget) -> None:
        if budget.target is not None:
            meet(controller, self.data.val, budget.target)
        elif budget.price is not None:
            controller.price = budget.price

    def _full(self, cell: Cell, _: Path) -> tuple[list[Row], Arrays]:
        test = measure_full(self.task, self.data.test)
        return [self._row(cell, cell.budgets[0], test, self.data.test)], _arrays(cell.budgets[0], test)

    def _random(self, cell: Cell, _: Path) -> tuple[list[Row], Arrays]:
        rows, arrays = [], {}
        for budget in cell.budgets:
            assert budget.target is not None
            policy = random_policy(self.task, budget.target, seed=cell.seed)
            test = measure(Controller(self.task, policy), self.data.test)
            rows.append(self._row(cell, budget, test, self.data.test))
            arrays |= _arrays(budget, test)
        return rows, arrays

    def _static(self, cell: Cell, _: Path) -> tuple[list[Row], Arrays]:
        """Measure the whole frontier of fixed subsets, and give each budget the best that it can pay."""
        points = static_frontier(self.task, self.data.policy)
        parts = len(self.task.decisions)
        tested = [measure(Controller(self.task, StaticPolicy(p.path, parts)), self.data.test) for p in points]
        rows = []
        for budget in cell.budgets:
            index = _affordable(points, budget)
            if index is not None:
                rows.append(self._row(cell, budget, tested[index], self.data.test))
        frontier = {
            "frontier/compute": torch.tensor([test.compute for test in tested]),
            "frontier/correct": torch.stack([test.correct for test in tested]),
        }
        return rows, frontier

    def _rule(self, cell: Cell, _: Path) -> tuple[list[Row], Arrays]:
        """Give each budget the dearest way of a fixed rule that it can pay; none where it can pay none."""
        rows, arrays = [], {}
        costs = rule_costs(self.task, cell.method)
        for budget in cell.budgets:
            assert budget.target is not None
            if policy := dearest(self.task, costs, budget.target):
                test = measure(Controller(self.task, policy), self.data.test)
                rows.append(self._row(cell, budget, test, self.data.test))
                arrays |= _arrays(budget, test)
        return rows, arrays

    def _threshold(self, cell: Cell, directory: Path) -> tuple[list[Row], Arrays]:
        """Calibrate on validation data for each budget, and leave a controller for each."""
        rows, arrays, score = [], {}, THRESHOLDS[cell.method]
        for budget in cell.budgets:
            if budget.target is not None:
                policy = threshold_policy(self.task, self.data.val, budget.target, score=score)
            else:
                assert budget.price is not None
                policy = threshold_at_price(self.task, self.data.val, budget.price, score=score)
            controller = Controller(self.task, policy, info={"data": self.data.name, "config": {"agent": cell.method}})
            controller.save(directory / str(budget) / "controller")
            val, test = measure(controller, self.data.val), measure(controller, self.data.test)
            rows.append(
                self._row(cell, budget, test, self.data.test)
                | {"val_accuracy": val.accuracy, "val_compute": val.compute}
                | {"controller": f"runs/{directory.stem}/{budget}/controller"}
            )
            arrays |= _arrays(budget, test)
        return rows, arrays

    def _oracle(self, cell: Cell, _: Path) -> tuple[list[Row], Arrays]:
        part = self.data.test.subset(self.config.oracle_images)
        targets = [budget.target for budget in cell.budgets if budget.target is not None]
        found = bounds(self.task, part, targets, limit=self.config.oracle_paths, images=len(part))
        rows = []
        for bound in found:
            name = "oracle" if bound.kind == "label" else "oracle-agree"
            row = self._row(cell, Budget(target=bound.target), _measured(bound), part)
            rows.append(row | {"method": name, "exact": bound.exact, "paths": bound.paths, "note": bound.meaning})
        return rows, {}

    def _row(self, cell: Cell, budget: Budget, test: Measured, part: Part) -> Row:
        row = result_row(
            self.task,
            test,
            method=cell.method,
            data=self.data.name,
            split="test",
            full_accuracy=self.full_accuracy,
            price=budget.price,
            seed=cell.seed,
        )
        by_class = execution_by_class(test.actions, part.labels, self.task.backbone.class_names)
        joint = is_learned(cell.method) and method(cell.method).joint
        return row | {"target": budget.target, "budget": str(budget), "joint": joint, "execution_by_class": by_class}


def execution_by_class(actions: Tensor, labels: Tensor, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Return for each class how often each piece was executed, of the times it was decided about."""
    rates = {}
    for c, name in enumerate(names):
        of = actions[labels == c]
        if len(of):
            rates[name] = ((of > 0).sum(0) / (of >= 0).sum(0).clamp(min=1)).tolist()
    return rates


def examples(test: Measured, part: Part, controller: Controller) -> dict[str, list[Row]]:
    """Return the images that took least and most, with the way each went; of the first few its picture."""
    order = test.compute_of.argsort(stable=True)
    found: dict[str, list[Row]] = {}
    for name, rows in (("easiest", order[:EXAMPLES]), ("hardest", order.flip(0)[:EXAMPLES])):
        found[name] = [_example(test, part, controller.task, int(i)) for i in rows]
        if is_drawable(controller.task):
            for example, index in zip(found[name][:PICTURES], rows.tolist(), strict=False):
                example |= _told(controller, part.images[index])
    return found


def _told(controller: Controller, image: Tensor) -> Row:
    """Return where on an image was looked, or what was left out, as a picture; and what was looked at by its name."""
    task, decision = controller.task, controller(image.unsqueeze(0))
    buffer = io.BytesIO()
    draw_story(controller, image).savefig(buffer, dpi=DPI)
    places = None if decision.places is None else decision.places[0]
    looked = [] if task.has_masks else task.executed(image, decision.actions[0].tolist(), places=places)
    return {"picture": base64.b64encode(buffer.getvalue()).decode(), "looked": looked}


def _example(test: Measured, part: Part, task: Task, index: int) -> Row:
    names = task.backbone.class_names
    return {
        "png": png(task.pictures(part.images[index : index + 1])[0]),
        "label": names[int(part.labels[index])],
        "answer": names[int(test.answers[index])],
        "path": test.actions[index].tolist(),
        "compute": float(test.compute_of[index]),
    }


def png(image: Tensor) -> str:
    """Return an image (C, H, W), uint8, as a base64 PNG."""
    pixels = image.permute(1, 2, 0).numpy() if len(image) == 3 else image[0].numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _arrays(budget: Budget, test: Measured) -> Arrays:
    """Return what is kept of each image."""
    return {f"{budget}/correct": test.correct, f"{budget}/actions": test.actions.to(torch.int8)}


def _affordable(points: list[StaticPoint], budget: Budget) -> int | None:
    """Return which point a budget takes: the dearest within the target, or the best at the price; None if none."""
    if budget.target is None:
        assert budget.price is not None
        return max(range(len(points)), key=lambda i: points[i].accuracy - budget.price * points[i].compute)  # pyright: ignore
    within = [i for i, point in enumerate(points) if point.compute <= budget.target]
    return max(within, default=None)


def _measured(bound: Bound) -> Measured:
    macs = bound.macs.double()
    return Measured(
        accuracy=bound.accuracy,
        macs=float(macs.mean()),
        policy_macs=0.0,
        compute=bound.compute,
        execution=(bound.actions > 0).float().mean(0).tolist(),
        unique_paths=len(bound.actions.unique(dim=0)),
        correct=bound.correct,
        actions=bound.actions.cpu(),
        answers=torch.zeros(0),
        compute_of=torch.zeros(0),
        count=len(bound.correct),
    )
