"""Error bars: bootstrap over documents, paired differences, how many documents an experiment needs, agreement.

Knows numbers only.  Questions of one document are not independent (one fit answers them all), so what is resampled is
documents, never answers.  Every function that draws numbers is seeded: the same input gives the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
_CHUNK_ELEMENTS = 4_000_000  # documents x resamples drawn at a time: 32 MB of indices


class DocumentScore(NamedTuple):
    """One document's exam: the sum of its answers' credits, and how many of its answers were graded."""

    credit: float
    graded: int


class Interval(NamedTuple):
    """An estimate and its 95 % interval (or that of another level, where one was asked for)."""

    mean: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Difference:
    """A difference of accuracies, `second - first`, paired by document; `documents` is how many both have graded."""

    mean: float
    lo: float
    hi: float
    documents: int

    @property
    def larger_than_noise(self) -> bool:
        """Whether the interval excludes zero.  With fewer than two documents there is no evidence of anything."""
        return self.documents >= 2 and (self.lo > 0 or self.hi < 0)


def bootstrap(
    n: int, statistic: Callable[[NDArray[np.int64]], Floats], *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """`statistic` of `resamples` draws of n units with replacement.  It is given indices [B, n] and returns [B] values.

    Draws come in chunks of bounded memory; their number of rows depends on n alone, so a seed always means the same draws.
    """
    if n < 1:
        raise ValueError("a bootstrap needs at least one unit")
    rng = np.random.default_rng(seed)
    rows = max(1, min(resamples, _CHUNK_ELEMENTS // n))
    values = [
        statistic(rng.integers(0, n, size=(min(rows, resamples - start), n))) for start in range(0, resamples, rows)
    ]
    return np.concatenate(values)


def _percentiles(values: Floats, level: float) -> tuple[float, float]:
    lo, hi = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def _widened(point: float, values: Floats, n: int, level: float) -> tuple[float, float]:
    """The percentile interval, stretched about the estimate for few units.

    A percentile interval of n units is too short by sqrt((n - 1) / n) and by the ratio of the normal to Student's quantile
    (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", section 4.2).  The factor is 1.06 at 20, 1.006 at 200.
    """
    lo, hi = _percentiles(values, level)
    if n < 2:
        return lo, hi
    stretch = math.sqrt(n / (n - 1)) * _student_quantile((1 + level) / 2, n - 1) / NormalDist().inv_cdf((1 + level) / 2)
    return point - stretch * (point - lo), point + stretch * (hi - point)


def _student_quantile(p: float, freedom: int) -> float:
    """Student's t quantile: exact for 1 and 2 degrees, else Cornish-Fisher (error under 1 % for 3 and more)."""
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z, v = NormalDist().inv_cdf(p), float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def _ratio(credit: Floats, graded: Floats, whole: float) -> Callable[[NDArray[np.int64]], Floats]:
    def statistic(index: NDArray[np.int64]) -> Floats:
        weight = graded[index].sum(axis=1)
        # A resample of documents without one graded answer says nothing; it counts as the estimate itself.
        return np.where(weight > 0, credit[index].sum(axis=1) / np.where(weight > 0, weight, 1.0), whole)

    return statistic


def accuracy_interval(
    scores_by_document: Mapping[str, DocumentScore] | Sequence[DocumentScore],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean credit of all graded answers, with its interval by bootstrap over documents.

    Takes a `DocumentScore` (or a plain pair) for each document; documents without a graded answer are left out.  With one
    document there is nothing to resample and the interval is the point.  Raises ValueError where no answer was graded.
    The interval stays within [0, 1] where all credits do.
    """
    values = list(scores_by_document.values()) if isinstance(scores_by_document, Mapping) else list(scores_by_document)
    pairs = np.asarray([(c, n) for c, n in values if n > 0], dtype=np.float64).reshape(-1, 2)
    if not len(pairs):
        raise ValueError("no graded answers: there is no accuracy")
    credit, graded = pairs[:, 0], pairs[:, 1]
    mean = float(credit.sum() / graded.sum())
    draws = bootstrap(len(pairs), _ratio(credit, graded, mean), resamples=resamples, seed=seed)
    lo, hi = _widened(mean, draws, len(pairs), level)
    if (credit >= 0).all() and (credit <= graded).all():
        lo, hi = max(0.0, lo), min(1.0, hi)
    return Interval(mean, lo, hi)


def paired_difference(
    first: Mapping[str, DocumentScore],
    second: Mapping[str, DocumentScore],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Accuracy of `second` minus accuracy of `first` on the documents that both have graded answers for.

    Each resample draws the same documents for both, so that what is hard for both cancels.  Raises ValueError where they
    have no document in common.
    """
    common = sorted(d for d in first if d in second and first[d][1] > 0 and second[d][1] > 0)
    if not common:
        raise ValueError("no document was graded under both conditions: there is no paired difference")
    a = np.asarray([first[d] for d in common], dtype=np.float64)
    b = np.asarray([second[d] for d in common], dtype=np.float64)

    def statistic(index: NDArray[np.int64]) -> Floats:
        # Every common document has graded answers on both sides, so no denominator is zero.
        mean_a = a[:, 0][index].sum(axis=1) / a[:, 1][index].sum(axis=1)
        mean_b = b[:, 0][index].sum(axis=1) / b[:, 1][index].sum(axis=1)
        return mean_b - mean_a

    mean = float(b[:, 0].sum() / b[:, 1].sum() - a[:, 0].sum() / a[:, 1].sum())
    draws = bootstrap(len(common), statistic, resamples=resamples, seed=seed)
    lo, hi = _widened(mean, draws, len(common), level)
    # Widening for few documents may leave what a difference of shares can be.
    return Difference(mean, max(lo, -1.0), min(hi, 1.0), len(common))


def difference_deviation(first: Mapping[str, DocumentScore], second: Mapping[str, DocumentScore]) -> float:
    """Standard deviation over documents of the difference of their accuracies: what `documents_needed` wants.

    Raises ValueError with fewer than two common documents.
    """
    common = [d for d in first if d in second and first[d][1] > 0 and second[d][1] > 0]
    if len(common) < 2:
        raise ValueError("a deviation needs at least two documents graded under both conditions")
    gaps = [second[d][0] / second[d][1] - first[d][0] / first[d][1] for d in common]
    return float(np.std(gaps, ddof=1))


def assumed_deviation(questions: float = 5.0, accuracy: float = 0.45, correlation: float = 0.5) -> float:
    """The deviation of paired document differences where none has been measured yet.

    Assumes that each document has `questions` questions, that both conditions answer about `accuracy` of them, that a
    question's two answers correlate by `correlation` (an easy question is easy for both), and that given a document its
    questions are independent.  The variance of one document's difference is then 2 p (1 - p) (1 - rho) / questions.
    """
    if questions <= 0 or not 0 < accuracy < 1 or not 0 <= correlation < 1:
        raise ValueError("questions must be positive, accuracy between 0 and 1, correlation at least 0 and under 1")
    return math.sqrt(2 * accuracy * (1 - accuracy) * (1 - correlation) / questions)


def documents_needed(
    difference: float = 0.03, *, deviation: float | None = None, power: float = 0.8, level: float = 0.95
) -> int:
    """How many documents show a true `difference` of accuracies (0.03 = 3 points) with the given power.

    `deviation` is the standard deviation over documents of paired differences (`difference_deviation` of an earlier run);
    without it, `assumed_deviation()`.  Normal approximation of a two-sided paired test:
    n = ((z_(1+level)/2 + z_power) * deviation / difference)^2, rounded up; at least 2.
    """
    if difference == 0 or not math.isfinite(difference):
        raise ValueError("no number of documents shows a difference of zero")
    if not 0 < power < 1 or not 0 < level < 1:
        raise ValueError("power and level lie between 0 and 1")
    spread = assumed_deviation() if deviation is None else deviation
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    return max(2, math.ceil((z * spread / difference) ** 2))


def ranks(values: Sequence[float]) -> Floats:
    """Ranks from 1, ties sharing their mean rank."""
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse].astype(np.float64)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation (Pearson's of mean ranks); None where it is undefined (under two values, or one constant)."""
    if len(x) != len(y):
        raise ValueError(f"as many values on both sides: {len(x)} and {len(y)}")
    if len(x) < 2:
        return None
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return None if scale == 0 else max(-1.0, min(1.0, float(a @ b) / scale))


def _kappa(both: Floats, first: Floats, second: Floats, n: Floats) -> Floats:
    """Cohen's kappa from counts: said yes by both, by the first, by the second, of n.  1 where both say one same thing always."""
    neither = n - first - second + both
    observed = (both + neither) / n
    expected = (first * second + (n - first) * (n - second)) / n**2
    # Expected agreement is 1 only where both raters are constant and alike: they agree, as far as one can tell.
    return np.where(expected < 1, (observed - expected) / np.where(expected < 1, 1 - expected, 1.0), 1.0)


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Cohen's kappa of two raters' yes and no: agreement beyond what their rates would give by chance."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"kappa needs as many verdicts on both sides, at least one: {a.size} and {b.size}")
    return float(_kappa(*(np.asarray(v, dtype=np.float64) for v in (a @ b, a.sum(), b.sum(), a.size))))


def kappa_interval(
    first: Sequence[bool],
    second: Sequence[bool],
    clusters: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Cohen's kappa with its interval, by bootstrap over clusters (rows of one question, say); over rows without them."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    point = cohen_kappa(first, second)
    names = range(len(a)) if clusters is None else clusters
    if len(names) != len(a):
        raise ValueError(f"one cluster a row: {len(names)} for {len(a)}")
    _, inverse = np.unique(np.asarray(names), return_inverse=True)
    counts = np.zeros((int(inverse.max()) + 1, 4))
    np.add.at(counts, inverse, np.stack([a * b, a, b, np.ones_like(a)], axis=1))

    def statistic(index: NDArray[np.int64]) -> Floats:
        both, one, other, n = (counts[:, k][index].sum(axis=1) for k in range(4))
        return _kappa(both, one, other, n)

    lo, hi = _percentiles(bootstrap(len(counts), statistic, resamples=resamples, seed=seed), level)
    return Interval(point, lo, hi)
