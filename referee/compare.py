"""Run a comparison: cells side by side, finished ones never again; then figures, verdicts, report."""

import os
import pickle
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from ..agents.baselines import check_budget, full_accuracy
from ..agents.evaluate import versions, write_results
from ..agents.joint import check_joint
from ..agents.learner import make_learner
from ..agents.training import prepare
from ..data import ImageData
from ..envs.gains import check_gains
from ..envs.rewards import make_reward
from ..envs.task import Task
from .cell import Bench
from .figure import interval_figure
from .ledger import Ledger
from .methods import JOINT, is_learned, method, written_out
from .plan import Cell, CompareConfig, cells
from .report import write_report
from .summary import Entry, Row, Statics, areas, summarise, verdicts
from .workers import check_workers

Content = dict[str, Any]


class CellsFailedError(RuntimeError):
    """Some cells of a comparison failed."""


def compare(
    config: CompareConfig,
    out: Path,
    *,
    command: Sequence[str] = (),
    task: Task | None = None,
    data: ImageData | None = None,
    quiet: bool = False,
) -> Content:
    """Compare methods, and leave `results.json`, `frontier.png`, `report.html` and a directory for each training.

    A comparison that was stopped goes on where it was when it is called again with the same directory; more agents,
    seeds or budgets may be asked for.

    Args:
        config: What to compare.
        out: Directory.
        command: What the user typed, for the results.
        task: Instead of the one that the configuration names; then everything runs in this process.
        data: With `task`.
        quiet: Print nothing.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: If a method cannot take the task, a budget cannot be reached, workers would not know a name, or the
            directory belongs to another backbone, task or data.
        FileExistsError: If the directory holds something else.
        CellsFailedError: If cells failed; the others are kept.
    """
    given = task is not None
    if task is None or data is None:
        check_workers(config)
        task, data = prepare(config)
    config, left_out = _for_task(config, task)
    for name in config.agents:
        if (asked := method(name)).joint:
            check_joint(make_learner(asked.agent), name, task, data.policy)
    ledger = Ledger(out, config, {"backbone": task.backbone.identity(), "data": data.fingerprint})
    plan = cells(config, exits=task.has_exits, rules=task.rules, countable=not task.coordinates)
    todo = [cell for cell in plan if not ledger.done(cell)]
    for line in (*left_out, f"{len(plan)} cells, {len(plan) - len(todo)} of them finished before"):
        _say(quiet, line)
    failures = []
    bench = Bench(config, task, data, full_accuracy(task, data.test))
    runs = _here(bench, todo, ledger) if given or config.workers == 1 else _side_by_side(config, bench, todo, ledger)
    began = time.monotonic()
    for count, (cell, error) in enumerate(runs, 1):
        if error is not None:
            failures.append(f"{cell.method} seed {cell.seed} {cell.budgets[0]}: {error!r}")
        left = timedelta(seconds=round((time.monotonic() - began) / count * (len(todo) - count)))
        told = _line(ledger.rows(cell)) if error is None else f"failed: {error!r}"
        _say(quiet, f"{count}/{len(todo)}  {cell.method:18} seed {cell.seed}  {told}  ({left} left)")
    finished = [cell for cell in plan if ledger.done(cell)]
    content = write(ledger, finished, task, command, left_out) if finished else {}
    if failures:
        raise CellsFailedError(
            f"{len(failures)} of {len(plan)} cells failed, the others are in {out}: {'; '.join(failures[:3])}. "
            "Mend the cause and call again: what is finished stays."
        )
    return content


def _for_task(config: CompareConfig, task: Task) -> tuple[CompareConfig, list[str]]:
    """Return what a task can be asked of a configuration, and why the rest is left out.

    Beside prices, targets are only what is compared without training is held to.

    Raises:
        ValueError: If the task cannot do what was asked by name or number.
    """
    check_gains(task, make_reward(config.reward))
    agents, refused = written_out(config.agents, task)
    targets = []
    for target in config.targets:
        try:
            check_budget(task, target)
            targets.append(target)
        except ValueError as error:
            if not config.prices:
                raise
            refused[f"target {target:g}"] = str(error)
    left_out = [f"{name} is left out. {why}" for name, why in refused.items()]
    return replace(config, agents=agents, targets=tuple(targets)), left_out


def write(
    ledger: Ledger, finished: Sequence[Cell], task: Task, command: Sequence[str] = (), left_out: Sequence[str] = ()
) -> Content:
    """Write results, figure and report of the cells that are finished."""
    entries, statics = collect(ledger, finished)
    summary = [summarise(entry, statics) for entry in entries]
    meta = {
        **versions(),
        "command": list(command),
        "classes": list(task.backbone.class_names),
        "pieces": task.pieces,
        "summary": summary,
        "verdicts": verdicts(entries, statics),
        "areas": areas(entries),
        "notes": [*_notes(ledger.config, entries), *left_out],
        "identity": ledger.identity,
    }
    rows = [row for entry in entries for row in entry.rows]
    write_results(ledger.out / "results.json", rows, **meta)
    content = {"rows": rows, "meta": meta}
    interval_figure(summary, rows[0], ledger.out / "frontier.png")
    write_report(content, ledger.out / "report.html")
    _hparams(ledger.out, rows)
    return content


def collect(ledger: Ledger, finished: Sequence[Cell]) -> tuple[list[Entry], Statics | None]:
    """Return the entries of finished cells, in the order of the plan, and the frontier of fixed subsets."""
    rows: dict[tuple[str, str], list[Row]] = {}
    kept: dict[tuple[str, str], list[tuple[torch.Tensor, torch.Tensor]]] = {}
    statics = None
    for cell in finished:
        arrays = ledger.arrays(cell)
        if cell.method == "static":
            statics = Statics(arrays["frontier/compute"], arrays["frontier/correct"])
        for row in ledger.rows(cell):
            key = (row["method"], row["budget"])
            rows.setdefault(key, []).append(row)
            if f"{row['budget']}/correct" in arrays:
                pair = arrays[f"{row['budget']}/correct"], arrays[f"{row['budget']}/actions"]
                kept.setdefault(key, []).append(pair)
    entries = []
    for key, of in rows.items():
        pairs = kept.get(key)
        correct, actions = (torch.stack(column) for column in zip(*pairs, strict=True)) if pairs else (None, None)
        entries.append(Entry(of, correct, actions))
    return entries, statics


Outcome = tuple[Cell, Exception | None]


def _here(bench: Bench, todo: Sequence[Cell], ledger: Ledger) -> Iterator[Outcome]:
    for cell in todo:
        try:
            bench.run(cell, ledger.directory(cell))
            yield cell, None
        except Exception as error:  # one cell must not take the others with it; it is reported
            yield cell, error


def _side_by_side(config: CompareConfig, bench: Bench, todo: Sequence[Cell], ledger: Ledger) -> Iterator[Outcome]:
    pool = ProcessPoolExecutor(config.workers, get_context("spawn"), _begin_worker)
    with pool:
        pickled = pickle.dumps(config)
        futures = {
            pool.submit(_in_worker, pickled, bench.full_accuracy, cell, ledger.directory(cell)): cell for cell in todo
        }
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                yield futures[future], error
        except BaseException:  # interrupted: begin no other cell
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker() -> None:
    torch.set_num_threads(1)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no worker behind that writes where a comparison that was killed has been called again."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_worker(config: bytes, accuracy: float, cell: Cell, directory: Path) -> None:
    Bench(pickle.loads(config), *_loaded(config), accuracy).run(cell, directory)


@lru_cache(maxsize=1)
def _loaded(config: bytes) -> tuple[Task, ImageData]:
    """Return task and data of a pickled configuration, loaded once in each worker."""
    return prepare(pickle.loads(config), quiet=True)


def _notes(config: CompareConfig, entries: Sequence[Entry]) -> list[str]:
    notes = [
        f"Each training may spend the backbone MACs of {config.images:,} images with everything executed; a backward "
        "pass through the frozen network counts like a forward pass. Methods that serve every budget (ppo-priced, "
        "path-table) are trained once.",
        "With a compute target each method's threshold or price is set on validation data so that it just stays within "
        "the target; on test data it may spend a little more or less. Of each kind the verdicts take the method "
        "that is best on validation data: with a target the most accurate of those that keep to it there. Each policy "
        "is measured on test data once.",
        "static_gain: accuracy minus that of fixed subsets at the same compute, a mixture of the two neighbours on "
        "their frontier.",
    ]
    if any(row["joint"] for entry in entries for row in entry.rows):
        notes.append(
            f"Methods named NAME{JOINT} finetuned gate and network together on {config.joint_images:,} more images, "
            "beyond the budget. They have no part in the verdicts."
        )
    return notes + list(dict.fromkeys(row["note"] for e in entries for row in e.rows if row.get("note")))


def _hparams(out: Path, rows: Sequence[Row]) -> None:
    """Leave one TensorBoard HParams record for each trained policy."""
    from torch.utils.tensorboard import SummaryWriter

    for row in rows:
        if not is_learned(row["method"]):
            continue
        name = f"hparams/{row['method']}-{row['budget']}-seed{row['seed']}"
        if (out / name).exists():
            continue
        with SummaryWriter(str(out)) as events:
            asked = {"method": row["method"], "budget": row["budget"], "seed": row["seed"]}
            found = {"test/accuracy": row["accuracy"], "test/compute": row["compute"]}
            events.add_hparams(asked, found, run_name=name)


def _line(rows: Sequence[Row]) -> str:
    return "  ".join(f"{row['accuracy']:.2%} @ {row['compute']:.1%}" for row in rows)


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, flush=True)
