"""What a comparison may claim: intervals, the frontier, how far a policy depends on its input, and a verdict in words.

A result has two sources of chance, the seed of the training and the draw of the test images. They are crossed, as all
seeds answer the same images, so the intervals are percentile intervals of the pigeonhole bootstrap (Owen 2007, Annals
of Applied Statistics 1(2)): seeds and images are drawn independently with replacement, and a draw of images holds for
every run. Of S seeds S - 1 are drawn (Rao and Wu 1988, JASA 83), as drawing S understates the variance between seeds by
the factor (S - 1) / S. `scipy.stats.bootstrap` resamples one axis only, and rliable only runs within fixed tasks.

Limits: a single seed says nothing of others, so its interval holds for that one controller. Few seeds that differ by
far more than their images explain are covered too rarely: at a nominal 95 %, about 85 % for five seeds and 65 % for
two. Seeds that err independently on the same image give an interval up to sqrt(3) times too wide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bools = NDArray[np.bool_]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
_CHUNK = 1 << 20  # weights held at a time: 8 MB
_SLACK = 1e-9  # for limits that are met but for rounding


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence limits, as shares (0.912, not 91.2)."""

    mean: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (all(map(isfinite, (self.mean, self.low, self.high))) and self.low <= self.high):
            raise ValueError(f"Interval: expected finite low <= high, got {self!r}. Check what it was computed from.")

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the limits."""
        return self.low > 0 or self.high < 0

    def __neg__(self) -> "Interval":
        return Interval(-self.mean, -self.high, -self.low)

    def __str__(self) -> str:
        return f"{100 * self.mean:z.1f} % [{100 * self.low:z.1f}, {100 * self.high:z.1f}]"


def accuracy_interval(correct: ArrayLike, *, confidence: float = 0.95, samples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean accuracy over seeds.

    Args:
        correct: Whether each seed answers each image rightly. Bool, shape (S, N). With S = 1 only images are resampled.
        confidence: How often the interval shall cover the truth, in (0, 1).
        samples: Number of bootstrap draws.
        seed: Of the bootstrap; the same seed gives the same interval.

    Raises:
        ValueError: If `correct` is empty or not a bool matrix, or an option is out of its range.
    """
    runs = _runs(correct, "correct")
    rng = _generator(confidence, samples, seed)
    (right,) = _image_draws([runs], samples, rng)
    return _percentile(runs.mean(), _seed_mean(right, _seed_draws(len(runs), samples, rng)), confidence)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean accuracy of method a minus that of method b.

    Both see the same draw of images, so that what is hard for both cancels; their seeds are drawn separately.

    Args:
        a: Whether each seed of a answers each image rightly. Bool, shape (Sa, N).
        b: The same of b, on the same images in the same order. Bool, shape (Sb, N).
        confidence: How often the interval shall cover the truth, in (0, 1).
        samples: Number of bootstrap draws.
        seed: Of the bootstrap.

    Raises:
        ValueError: As `accuracy_interval`, and if the numbers of images differ.
    """
    runs = [_runs(a, "a"), _runs(b, "b")]
    rng = _generator(confidence, samples, seed)
    right_a, right_b = _image_draws(runs, samples, rng)
    mean_a = _seed_mean(right_a, _seed_draws(len(runs[0]), samples, rng))
    mean_b = _seed_mean(right_b, _seed_draws(len(runs[1]), samples, rng))
    return _percentile(runs[0].mean() - runs[1].mean(), mean_a - mean_b, confidence)


def frontier_area(compute: ArrayLike, accuracy: ArrayLike, low: float, high: float) -> float:
    """Return the mean height of the frontier of accuracy over compute between two limits of compute.

    The frontier joins by straight lines the points that no other of at most their compute matches in accuracy (mixing
    two policies attains the line between them), and goes on flat to the right.

    Args:
        compute: Of each point, in any order. Shape (P,).
        accuracy: Of each point. Shape (P,).
        low: Lower limit of compute.
        high: Upper limit of compute.

    Raises:
        ValueError: If there are no points, one is not finite, the shapes or limits do not fit, or the cheapest point
            lies above `low`, where the frontier would be a guess.
    """
    x, y = np.asarray(compute, dtype=float), np.asarray(accuracy, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or not x.size or not np.isfinite([x, y]).all():
        raise ValueError(f"points: expected finite pairs, got compute {x}, accuracy {y}. Leave out runs that failed.")
    _check_limits(low, high, float(x.min()))
    return _area(x, y, low, high)


def area_interval(
    points: Sequence[tuple[ArrayLike, ArrayLike]],
    low: float,
    high: float,
    *,
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the `frontier_area` of a method that was trained for several budgets; a point is a mean over seeds.

    All budgets see the same draw of images and, if they have equally many seeds, the same draw of seeds (row i of one
    budget belongs to row i of the others); else the seeds of each are drawn separately.

    Args:
        points: For each budget the mean compute of each seed, shape (S,), and whether it answers each image rightly,
            bool, shape (S, N). N is the same for all.
        low: Lower limit of compute. All seeds of some budget must keep to it, so that every draw does.
        high: Upper limit of compute.
        confidence: How often the interval shall cover the truth, in (0, 1).
        samples: Number of bootstrap draws.
        seed: Of the bootstrap.

    Raises:
        ValueError: As `accuracy_interval` and `frontier_area`, and if the shapes do not fit each other.
    """
    if not points:
        raise ValueError("points: expected at least one budget, got none. Evaluate the method first.")
    runs = [_runs(correct, f"points[{i}] correct") for i, (_, correct) in enumerate(points)]
    compute = [_seed_compute(c, len(r), f"points[{i}]") for i, ((c, _), r) in enumerate(zip(points, runs, strict=True))]
    _check_limits(low, high, min(float(c.max()) for c in compute))
    rng = _generator(confidence, samples, seed)
    right = _image_draws(runs, samples, rng)
    shared = _seed_draws(len(runs[0]), samples, rng) if len({len(r) for r in runs}) == 1 else None
    seeds = [_seed_draws(len(r), samples, rng) if shared is None else shared for r in runs]
    x = np.stack([_seed_mean(c, drawn) for c, drawn in zip(compute, seeds, strict=True)], axis=1)
    y = np.stack([_seed_mean(r, drawn) for r, drawn in zip(right, seeds, strict=True)], axis=1)
    draws = np.array([_area(*draw, low, high) for draw in zip(x, y, strict=True)])
    estimate = _area(np.array([c.mean() for c in compute]), np.array([r.mean() for r in runs]), low, high)
    return _percentile(estimate, draws, confidence)


@dataclass(frozen=True)
class InputDependence:
    """How much the decisions of a policy vary over the images.

    Attributes:
        marginal_entropy: Entropy of the gates given the block, in bits: of executed against skipped where the piece
            was decided, mean over pieces. In [0, 1].
        path_entropy: Entropy of the whole path through the network, in bits. At most log2(N).
        unique_paths: Number of different paths.
        constant_pieces: Number of pieces that are executed in at most 1 % or at least 99 % of all images.
    """

    marginal_entropy: float
    path_entropy: float
    unique_paths: int
    constant_pieces: int


def gate_entropy(execution: ArrayLike) -> float:
    """Return the mean binary entropy, in bits, of how often each piece is executed.

    Raises:
        ValueError: If there are no rates, or one lies outside [0, 1].
    """
    rates = np.asarray(execution, dtype=float)
    if rates.ndim != 1 or not rates.size or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"execution: expected rates in [0, 1], got {rates}. Pass `Measured.execution`.")
    return float((_bits(rates) + _bits(1 - rates)).mean())


def input_dependence(actions: ArrayLike) -> InputDependence:
    """Return how much decisions vary over images.

    Args:
        actions: 0 where a piece is skipped, more where it is executed, -1 where that was not decided. Integer, shape
            (N, pieces).

    Raises:
        ValueError: If `actions` is empty or not an integer matrix.
    """
    taken = np.asarray(actions)
    if taken.ndim != 2 or not taken.size or not np.issubdtype(taken.dtype, np.integer):
        got = f"{taken.dtype} of shape {taken.shape}"
        raise ValueError(f"actions: expected integers of shape (images, pieces), got {got}. Pass `Decision.actions`.")
    executed, decided = (taken > 0).sum(0), (taken >= 0).sum(0)
    share = executed / len(taken)
    counts = np.unique(taken, axis=0, return_counts=True)[1]
    return InputDependence(
        marginal_entropy=gate_entropy(executed / np.maximum(decided, 1)),
        path_entropy=float(_bits(counts / len(taken)).sum()),
        unique_paths=len(counts),
        constant_pieces=int(((share <= 0.01) | (share >= 0.99)).sum()),
    )


def verdict(
    name_a: str, name_b: str, difference: Interval, compute_a: float, compute_b: float, *, tolerance: float = 0.01
) -> str:
    """Return in words what a comparison shows, and no more than its interval allows.

    Args:
        name_a: The first method.
        name_b: The second method.
        difference: Accuracy of a minus that of b, from `paired_difference`.
        compute_a: What a spends, as a share of the full network.
        compute_b: What b spends.
        tolerance: Difference of compute up to which the two count as equal.

    Raises:
        ValueError: If a compute or the tolerance is negative or not finite.
    """
    if not all(isfinite(value) and value >= 0 for value in (compute_a, compute_b, tolerance)):
        got = f"{compute_a}, {compute_b}, {tolerance}"
        raise ValueError(f"compute and tolerance: expected shares of at least 0, got {got}. Pass the rows' `compute`.")
    if difference.high < 0:
        return verdict(name_b, name_a, -difference, compute_b, compute_a, tolerance=tolerance)
    points, spent_a, spent_b = _points(difference), f"{100 * compute_a:.1f} %", f"{100 * compute_b:.1f} %"
    start, end = "", f" at {spent_a if spent_a == spent_b else f'{spent_a} against {spent_b}'} of compute"
    if abs(compute_a - compute_b) > tolerance + _SLACK:
        favoured = name_a if compute_a > compute_b else name_b
        start = f"Not at the same compute: {name_a} spends {spent_a}, {name_b} {spent_b}, which favours {favoured}. "
        end = "" if difference.low <= 0 else " although it spends less"
    if difference.low <= 0:
        between = f"between {name_a} and {name_b}{end} ({name_a} minus {name_b}: {points})"
        return f"{start}No difference can be told {between}."
    if start and compute_a > compute_b:
        return f"{start}{name_a} is more accurate than {name_b} by {points}, which its greater compute may explain."
    return f"{start}{name_a} is better than {name_b} by {points}{end}."


def _points(difference: Interval) -> str:
    """Return an interval in percentage points, with digits enough to show that it excludes zero."""
    nearest = 100 * min(abs(difference.low), abs(difference.high))
    digits = next((d for d in (1, 2, 3) if difference.excludes_zero and round(nearest, d)), 1)
    mean, low, high = (f"{100 * value:z.{digits}f}" for value in (difference.mean, difference.low, difference.high))
    return f"{mean} points [{low}, {high}]"


def _image_draws(methods: Sequence[Bools], samples: int, rng: np.random.Generator) -> list[Floats]:
    """Return the accuracy of every seed in each draw of images, the same draws for all. Shapes (samples, S).

    Images that the same seeds answer rightly are alike to every statistic here, so it is enough to draw how often each
    such pattern occurs: exact, with far fewer weights than images.
    """
    images = [runs.shape[1] for runs in methods]
    if len(set(images)) > 1:
        raise ValueError(f"images: expected as many for all, got {images}. Evaluate on the same images in one order.")
    patterns, counts = np.unique(np.concatenate(methods), axis=1, return_counts=True)
    chunk = max(1, _CHUNK // len(counts))
    sizes = [min(chunk, samples - start) for start in range(0, samples, chunk)]
    weights = (rng.multinomial(images[0], counts / images[0], size=size).astype(float) for size in sizes)
    right = np.concatenate([drawn @ patterns.T.astype(float) for drawn in weights]) / images[0]
    return np.split(right, np.cumsum([len(runs) for runs in methods])[:-1], axis=1)


def _seed_draws(seeds: int, samples: int, rng: np.random.Generator) -> Counts:
    """Return how often each seed occurs in draws of S - 1 seeds. Shape (samples, S)."""
    return rng.multinomial(max(seeds - 1, 1), np.full(seeds, 1 / seeds), size=samples)


def _seed_mean(values: Floats, drawn: Counts) -> Floats:
    return (values * drawn).sum(1) / drawn.sum(1)


def _percentile(estimate: float, draws: Floats, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    # Rounded, lest the last bit of a mean make equal methods differ.
    low, high = np.quantile(draws, [tail, 1 - tail]).round(12)
    return Interval(round(float(estimate), 12), float(low), float(high))


def _area(x: Floats, y: Floats, low: float, high: float) -> float:
    order = np.lexsort((-y, x))  # of equally cheap points the best first
    x, y = x[order], y[order]
    undominated = np.r_[True, y[1:] > np.maximum.accumulate(y)[:-1]]
    x, y = x[undominated], y[undominated]
    knots = np.r_[low, x[(x > low) & (x < high)], high]
    heights = np.interp(knots, x, y)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(knots)).sum() / (high - low))


def _bits(shares: Floats) -> Floats:
    """Return p log2(1 / p), and 0 at 0."""
    return shares * np.log2(1 / np.where(shares > 0, shares, 1))


def _runs(correct: ArrayLike, name: str) -> Bools:
    runs = np.asarray(correct)
    if runs.ndim != 2 or not runs.size or runs.dtype != np.bool_:
        got = f"{runs.dtype} of shape {runs.shape}"
        raise ValueError(f"{name}: expected bool of shape (seeds, images), got {got}. Stack `Measured.correct`.")
    return runs


def _seed_compute(values: ArrayLike, seeds: int, name: str) -> Floats:
    compute = np.asarray(values, dtype=float)
    if compute.shape != (seeds,) or not np.isfinite(compute).all():
        raise ValueError(f"{name} compute: expected {seeds} finite values, got {compute}. Pass one for each seed.")
    return compute


def _check_limits(low: float, high: float, cheapest: float) -> None:
    if not (isfinite(low) and isfinite(high) and low < high):
        raise ValueError(f"limits: expected finite low < high, got {low} and {high}. Swap or widen them.")
    if cheapest > low + _SLACK:
        remedy = f"Raise `low` to {cheapest}, or add a cheaper point."
        raise ValueError(
            f"low: expected a point at {low} of compute or below, got {cheapest} as the cheapest. {remedy}"
        )


def _generator(confidence: float, samples: int, seed: int) -> np.random.Generator:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a share in (0, 1), got {confidence}. Pass 0.95 for 95 %.")
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}. Leave it at 2000.")
    return np.random.default_rng(seed)
