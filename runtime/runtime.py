"""An exported controller, served: the interface of `Controller`, on numpy and ONNX Runtime."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from .file import Card, read
from .inputs import check_price, prepare
from .session import call, open_session
from .table import Fastest, Latency, Statistics, price_within

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

WAYS = ("single", "routed", "masked")
"""How a batch is executed: image by image; regrouped at every choice; every branch on all rows, then selected.

Which is fastest depends on network, paths and rows, so it is measured: by `Runtime.warm`, or in the first calls."""


@dataclass(frozen=True)
class Decision:
    """What a controller makes of N images.

    Attributes:
        logits: Answers. Shape (N, classes).
        macs: Spent, policy included. Shape (N,).
        policy_macs: Spent by the policy. Shape (N,).
        actions: What was decided about each of the task's pieces; -1 where nothing was. Shape (N, pieces).
        compute: `macs` as a share of the full network's. Shape (N,).
    """

    logits: np.ndarray
    macs: np.ndarray
    policy_macs: np.ndarray
    actions: np.ndarray
    compute: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The class with the largest logit. Shape (N,)."""
        return self.logits.argmax(1)


class Runtime:
    """An exported controller. Calls from several threads give the answers of calls from one.

    Args:
        model: As `read` gives it.
        card: Likewise.
        threads: Of one call; 0 leaves it to ONNX Runtime.

    Attributes:
        ways: Of `WAYS`, those that the file can be executed in.
    """

    def __init__(self, model: "onnx.ModelProto", card: Card, *, threads: int = 1):
        from .blocked import with_blocks
        from .straight import Straight

        self.card, self.threads = card, threads
        self.table: tuple[Latency, ...] = ()
        self._straight = Straight(model, lambda way: self._session(with_blocks(way)))
        self._model = with_blocks(model)
        self._whole = self._session(self._model)
        self._batches: dict[str, ort.InferenceSession] = {}
        self._making = Lock()
        self.ways = WAYS if card.batched else WAYS[:1]
        self._fastest, self._statistics = Fastest(self.ways), Statistics()

    @classmethod
    def load(cls, path: str | Path, *, threads: int = 1) -> "Runtime":
        """Read an exported file.

        Raises:
            FileNotFoundError: If there is none.
            ImportError: If the extra `onnx` is not installed.
            ValueError: If it is damaged, was changed, was not written by skipgym, or comes from a newer one.
        """
        return cls(*read(path), threads=threads)

    @property
    def price(self) -> float:
        """Told to the policy where a call does not say."""
        return self.card.price

    def __call__(
        self,
        images: np.ndarray,
        *,
        price: float | None = None,
        budget_ms: float | None = None,
        batch_size: int = 64,
        way: str | None = None,
    ) -> Decision:
        """Answer.

        Args:
            images: Shape (N, C, H, W), uint8 or floats in 0…1; a file made for uint8 takes only these.
            price: Of compute, for policies that are told; the controller's own by default.
            budget_ms: Time for an image on this machine: takes the lowest price that `calibrate` found fast enough.
            batch_size: Rows at a time.
            way: One of `WAYS`; by default the one that is fastest for so many rows, found by trying each.

        Raises:
            ValueError: If images, price, budget or way do not fit.
        """
        if price is not None and budget_ms is not None:
            raise ValueError("budget_ms: expected a price or a budget, got both. Leave one out.")
        if budget_ms is not None:
            price = price_within(self.table, budget_ms)
        price = check_price(self.card, self.price if price is None else price)
        if way is not None and way not in self.ways:
            raise ValueError(f"way: expected one of {', '.join(self.ways)}, got {way!r}.")
        ready = prepare(self.card, images)
        if len(ready) <= batch_size:
            logits, actions, macs, policy_macs = self._batch(ready, price, way)
        else:
            batches = (ready[i : i + batch_size] for i in range(0, len(ready), batch_size))
            logits, actions, macs, policy_macs = _joined([self._batch(batch, price, way) for batch in batches])
        return Decision(logits, macs, policy_macs, actions, macs / self.card.full_macs)

    def executed(self, decision: Decision) -> list[list[str]]:
        """Return the names of what was executed for each image."""
        return [[self.card.pieces[i] for i in np.flatnonzero(row > 0)] for row in decision.actions]

    def warm(
        self,
        images: np.ndarray | None = None,
        *,
        price: float | None = None,
        rows: int = 1,
        calls: int = 5,
        straight: int = 16,
    ) -> None:
        """Let sessions allocate what they need; statistics do not count it.

        With several rows each way of executing a batch is tried, in turn, and calls with about so many rows take the
        one that was fastest. Where all is decided at once, the ways through the network that the images take most
        often become sessions of their own, which run single images faster; each holds its weights.

        Args:
            images: Typical ones, for this. Noise by default, of which nothing is learned.
            price: As calls will say.
            rows: Of a call; at most as many as images.
            calls: How often each way is tried.
            straight: Ways that become sessions, at most; those of earlier images go.

        Raises:
            ValueError: If images or price do not fit.
        """
        told = check_price(self.card, self.price if price is None else price)
        if images is not None:
            self._straight.learn(
                [{"image": image, "price": _row(told)} for image in np.split(prepare(self.card, images), len(images))],
                straight,
            )
        generator = np.random.default_rng(0)
        noise = generator.integers(256, size=(rows, *self.card.input_shape), dtype=np.uint8)
        ready = prepare(self.card, noise if images is None else images[:rows])
        for call_number in range(1 + calls):
            for way in self.ways if len(ready) > 1 else WAYS[:1]:
                began = time.perf_counter()
                self._run(ready, told, way)
                if call_number and len(ready) > 1:  # the first makes sessions and allocates
                    self._fastest.note(len(ready), way, time.perf_counter() - began)

    def calibrate(
        self, images: np.ndarray, *, prices: Sequence[float] | None = None, repeats: int = 3
    ) -> tuple[Latency, ...]:
        """Measure how long single images take at several prices, and keep the table for `budget_ms`.

        Args:
            images: Typical ones, some dozens. Shape (N, C, H, W).
            prices: To measure; eleven over the range that the policy knows (0…1 where it has no end) by default.
            repeats: Of each image and price, interleaved.
        """
        least, most = self.card.prices
        asked = np.linspace(least, 1.0 if most is None else most, 11) if prices is None else prices
        checked = [check_price(self.card, float(price)) for price in asked]
        ready = prepare(self.card, images)
        seconds: list[list[float]] = [[] for _ in checked]
        compute: list[list[float]] = [[] for _ in checked]
        for repeat in range(repeats + 1):  # the first round warms up
            for row in np.split(ready, len(ready)):
                for index, price in enumerate(checked):
                    began = time.perf_counter()
                    macs = self._run(row, price, "single")[2]
                    if repeat:
                        seconds[index].append(time.perf_counter() - began)
                        compute[index].append(float(macs[0]) / self.card.full_macs)
        self.table = tuple(
            Latency(price, _ms(taken, 50), _ms(taken, 95), float(np.mean(spent)))
            for price, taken, spent in zip(checked, seconds, compute, strict=True)
        )
        return self.table

    def stats(self) -> dict[str, Any]:
        """Return statistics of the calls, and under `ways` the milliseconds of a row by rows and way of execution."""
        return {**self._statistics.summary(), "ways": self._fastest.table()}

    def _batch(self, images: np.ndarray, price: float, way: str | None) -> list[np.ndarray]:
        """Answer for some rows, and note how long it took."""
        rows, began = len(images), time.perf_counter()
        if rows == 1 and way in (None, "single"):
            found = self._one(images, price)
            self._statistics.note(time.perf_counter() - began, 1, found[2].item() / self.card.full_macs)
            return found
        taken = way or self._fastest.pick(rows)
        found = self._run(images, price, taken)
        seconds = time.perf_counter() - began
        self._fastest.note(rows, taken, seconds)
        self._statistics.note(seconds, rows, float(found[2].mean()) / self.card.full_macs)
        return found

    def _run(self, images: np.ndarray, price: float, way: str) -> list[np.ndarray]:
        """Return logits, actions, MACs and the policy's MACs, one row for each image."""
        rows = len(images)
        if way == "single":
            return _joined([self._one(images[i : i + 1], price) for i in range(rows)])
        found = call(self._for_batches(way), None, {"image": images, "price": np.full(rows, price, np.float32)})
        return [np.broadcast_to(one, (rows, *one.shape[1:])) for one in found]

    def _for_batches(self, way: str) -> "ort.InferenceSession":
        """Return a session that takes any number of rows, made when the first batch comes: many a runtime sees none."""
        from .regroup import for_batches

        with self._making:
            if way not in self._batches:
                self._batches[way] = self._session(for_batches(self._model, masked=way == "masked"))
            return self._batches[way]

    def _one(self, image: np.ndarray, price: float) -> list[np.ndarray]:
        """Answer for one image, on its way's own session where there is one."""
        feed = {"image": image, "price": _row(price)}
        return self._straight.run(feed) or call(self._whole, None, feed)

    def _session(self, model: "onnx.ModelProto") -> "ort.InferenceSession":
        return open_session(model.SerializeToString(), threads=self.threads)


@lru_cache(maxsize=1000)
def _row(price: float) -> np.ndarray:
    """Return a price as one row."""
    return np.array([price], np.float32)


def _joined(parts: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
    """Return the rows of all parts one below the other."""
    return parts[0] if len(parts) == 1 else [np.concatenate(one) for one in zip(*parts, strict=True)]


def _ms(seconds: Sequence[float], percentile: int) -> float:
    return 1e3 * float(np.percentile(seconds, percentile))
