"""Error bars: intervals of accuracies and of paired differences, how many documents an experiment needs, agreement.

Questions of one document are not independent (one fit answers them all), so documents are what is counted, never
answers. The same input gives the same figures.

- An accuracy's interval is Wilson's, on the effective number of answers (answers over the design effect, Kish 1965) and
  with Student's quantile for the number of documents.  It is never empty: 0 of 18 answers is not "0.0 to 0.0".
- A paired difference is what documents gain less what they lose.  Each is a proportion with an interval as above; the
  two are combined by the square-and-add rule (Newcombe 1998; Zou & Donner 2008, "MOVER").
- A difference is larger than noise where a paired sign-flip test (exact up to 13 documents that differ) and the
  interval say so. With fewer than six documents no sign-flip test reaches 5 %, so nothing is called a finding.
- A ratio of accuracies has a bootstrap interval over documents, paired.

`python -m benchmarks.coverage` simulates how often the intervals hold the truth; docs/grading.md has its table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_DOCUMENTS = 6
"""With n documents the smallest two-sided p of a sign-flip test is 2 / 2^n: 0.0625 at five, 0.031 at six."""

_LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK_ELEMENTS = 4_000_000  # documents x resamples drawn at a time: 32 MB of indices


class DocumentScore(NamedTuple):
    """One document's exam: the sum of its answers' scores, and how many of its answers were graded."""

    score: float
    graded: int


def pooled(scores: Iterable[tuple[str, DocumentScore]]) -> dict[str, DocumentScore]:
    """The scores of each document, or of whatever else they are named after, added up."""
    found: dict[str, DocumentScore] = {}
    for name, (score, graded) in scores:
        before = found.get(name, DocumentScore(0.0, 0))
        found[name] = DocumentScore(before.score + score, before.graded + graded)
    return found


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    mean: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Difference:
    """A difference of accuracies, `second - first`, paired by document; `documents` is how many both have graded.

    `p_value` is a two-sided sign-flip test's: how often luck alone, which is as likely to favour either side in each
    document, gives a difference at least as large.
    """

    mean: float
    lo: float
    hi: float
    documents: int
    p_value: float

    @property
    def larger_than_noise(self) -> bool:
        """Whether both the test and the interval exclude zero, on at least `LEAST_DOCUMENTS` documents."""
        excluded = self.lo > 0 or self.hi < 0
        return self.documents >= LEAST_DOCUMENTS and excluded and self.p_value <= 1 - _LEVEL


def bootstrap(
    n: int, statistic: Callable[[NDArray[np.int64]], Floats], *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """`statistic` of `resamples` draws of n tasks with replacement.  It is given indices [B, n] and returns [B] values.

    Draws come in chunks of bounded memory; their number of rows depends on n alone, so a seed always means the same
    draws."""
    if n < 1:
        raise ValueError("a bootstrap needs at least one document")
    rng = np.random.default_rng(seed)
    rows = max(1, min(resamples, _CHUNK_ELEMENTS // n))
    values = [
        statistic(rng.integers(0, n, size=(min(rows, resamples - start), n))) for start in range(0, resamples, rows)
    ]
    return np.concatenate(values)


def accuracy_interval(scores_by_document: Mapping[str, DocumentScore] | Sequence[DocumentScore]) -> Interval:
    """Mean score of all graded answers, with its 95 % interval.

    Takes a `DocumentScore` (or a plain pair) for each document; documents without a graded answer are left out.  One
    document says nothing of others: its interval is 0 to 1.  Raises ValueError where no answer was graded, or where a
    score is not between 0 and 1."""
    values = list(scores_by_document.values()) if isinstance(scores_by_document, Mapping) else list(scores_by_document)
    pairs = np.asarray([(c, n) for c, n in values if n > 0], dtype=np.float64).reshape(-1, 2)
    if not len(pairs):
        raise ValueError("no graded answers: there is no accuracy")
    graded = pairs[:, 1]
    mean, effective = _proportion(graded / graded.sum(), _rates(pairs), float(graded.sum()))
    return Interval(mean, *_wilson(mean, effective, len(pairs)))


def mean_interval(values_by_document: Mapping[str, Sequence[float]]) -> tuple[float, tuple[float, float] | None]:
    """The mean of a measure that has no bounds, each document counting as its own mean, and Student's 95 % interval
    over documents; None for a single one."""
    from scipy.special import stdtrit

    means = np.asarray([np.mean(values) for values in values_by_document.values() if values], dtype=np.float64)
    if not len(means):
        raise ValueError("nothing was measured: there is no mean")
    mean = float(means.mean())
    if len(means) < 2:
        return mean, None
    half = float(stdtrit(len(means) - 1, (1 + _LEVEL) / 2)) * float(means.std(ddof=1)) / math.sqrt(len(means))
    return mean, (mean - half, mean + half)


def paired_difference(first: Mapping[str, DocumentScore], second: Mapping[str, DocumentScore]) -> Difference:
    """Accuracy of `second` minus accuracy of `first` on the documents that both have graded answers for.

    It is the mean over documents of the differences of their accuracies, each weighted by its graded answers, so that
    what is hard for both cancels.  Raises ValueError where they have no document in common."""
    common = sorted(d for d in first if d in second and first[d][1] > 0 and second[d][1] > 0)
    if not common:
        raise ValueError("no document was graded under both conditions: there is no paired difference")
    a = np.asarray([first[d] for d in common], dtype=np.float64)
    b = np.asarray([second[d] for d in common], dtype=np.float64)
    weights = a[:, 1] / a[:, 1].sum() + b[:, 1] / b[:, 1].sum()
    weights /= weights.sum()
    gaps = _rates(b) - _rates(a)
    gaps[np.abs(gaps) < 1e-12] = 0.0  # equal scores that were added in another order are no difference
    mean = float(np.clip(weights @ gaps, -1, 1))
    lo, hi = _difference_interval(weights, gaps, float(min(a[:, 1].sum(), b[:, 1].sum())))
    return Difference(mean, min(lo, mean), max(hi, mean), len(common), _sign_flip(weights * gaps))


def accuracy_ratio(
    first: Mapping[str, DocumentScore], second: Mapping[str, DocumentScore]
) -> tuple[float, tuple[float, float] | None]:
    """Accuracy of `second` over accuracy of `first`, on the documents that both have graded answers for, and its
    bootstrap interval over documents, each drawn with both of its exams: none where in some draws `first` has nothing
    right, and as `bootstrap_interval`.  Raises ValueError where the documents have no ratio."""
    common = sorted(d for d in first if d in second and first[d].graded > 0 and second[d].graded > 0)
    columns = np.asarray([(*first[d], *second[d]) for d in common], dtype=np.float64).reshape(-1, 4).T

    def ratio(sums: Floats) -> Floats:
        right_1, graded_1, right_2, graded_2 = sums
        return (right_2 / graded_2) * (graded_1 / right_1)

    if not columns[0].sum() > 0:
        raise ValueError("no document of which anything was answered rightly: there is no ratio")
    return bootstrap_interval(columns, common, ratio)


def bootstrap_interval(
    columns: Floats, clusters: Sequence[str], statistic: Callable[[Floats], Floats]
) -> tuple[float, tuple[float, float] | None]:
    """A statistic of sums over rows, and its 95 % interval: a percentile bootstrap (Efron & Tibshirani 1993) over
    clusters of rows (those of one question, say).  `statistic` is given the sums of the `columns` [K, rows], as [K] or
    [K, B].

    None stands for an interval that the clusters do not give: fewer than `LEAST_DOCUMENTS`, no variation among draws,
    or draws without a value."""
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.stack([np.bincount(inverse, weights=column) for column in columns])
    mean = float(statistic(sums.sum(axis=1)))
    if len(sums[0]) < LEAST_DOCUMENTS:
        return mean, None
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = bootstrap(
            len(sums[0]), lambda index: statistic(np.stack([column[index].sum(axis=1) for column in sums]))
        )
        lo, hi = np.quantile(draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return mean, (float(lo), float(hi)) if np.isfinite(hi) and hi - lo > 1e-12 else None


def _rates(pairs: Floats) -> Floats:
    rates = pairs[:, 0] / pairs[:, 1]
    if not ((rates > -1e-9) & (rates < 1 + 1e-9)).all():
        raise ValueError("a score is a number between 0 and 1")
    return np.clip(rates, 0, 1)


def _proportion(weights: Floats, rates: Floats, answers: float) -> tuple[float, float]:
    """A weighted mean of documents' rates, and of how many independent answers it is worth: never more than there are.

    Where all documents are at 0 or all at 1 nothing shows how alike a document's answers are: then a document counts as
    one."""
    mean = float(np.clip(weights @ rates, 0, 1))
    documents = len(rates)
    if documents < 2 or rates.max() <= 0 or rates.min() >= 1:
        return mean, 1 / float(weights @ weights)
    variance = documents / (documents - 1) * float(((weights * (rates - mean)) ** 2).sum())
    return mean, min(answers, mean * (1 - mean) / max(variance, 1e-12))


def _wilson(mean: float, effective: float, documents: int) -> tuple[float, float]:
    """Wilson's score interval, with Student's quantile because the effective number is estimated from documents."""
    from scipy.special import stdtrit

    if documents < 2:
        return 0.0, 1.0
    t2 = float(stdtrit(documents - 1, (1 + _LEVEL) / 2)) ** 2
    centre = (mean + t2 / (2 * effective)) / (1 + t2 / effective)
    half = math.sqrt(t2 * (mean * (1 - mean) + t2 / (4 * effective)) / effective) / (1 + t2 / effective)
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def _difference_interval(weights: Floats, gaps: Floats, answers: float) -> tuple[float, float]:
    """What documents gain less what they lose, each a proportion with its interval: square and add, with their
    correlation."""
    documents = len(gaps)
    parts = [np.maximum(gaps, 0), np.maximum(-gaps, 0)]
    found = [_proportion(weights, part, answers) for part in parts]
    known = [effective for (_, effective), part in zip(found, parts, strict=True) if part.any()]
    # Where nothing was lost (or gained), answers are taken to be as much alike as those that were gained (or lost).
    (gain, gain_lo, gain_hi), (loss, loss_lo, loss_hi) = (
        (mean, *_wilson(mean, effective if part.any() or not known else known[0], documents))
        for (mean, effective), part in zip(found, parts, strict=True)
    )
    up, down = weights * (parts[0] - gain), weights * (parts[1] - loss)
    scale = math.sqrt(float(up @ up) * float(down @ down))
    correlation = min(0.0, float(up @ down) / scale) if scale > 0 else 0.0

    def together(one: float, other: float) -> float:
        return math.sqrt(one**2 + other**2 - 2 * correlation * one * other)

    mean = gain - loss
    lo = mean - together(gain - gain_lo, loss_hi - loss)
    hi = mean + together(gain_hi - gain, loss - loss_lo)
    return max(lo, -1.0), min(hi, 1.0)


def _sign_flip(contributions: Floats) -> float:
    """Two-sided p: exact where at most 13 contributions are not zero, else from 9,999 seeded draws."""
    from scipy.stats import permutation_test

    differing = contributions[contributions != 0]
    if len(differing) < 2:
        return 1.0
    test = permutation_test(
        (differing,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        random_state=np.random.default_rng(0),
    )
    return float(test.pvalue)


# Where nothing has been measured: the standard deviation over documents of paired differences, if each document has 5
# questions, both conditions answer about 45 % of them, a question's two answers correlate by 0.5 (an easy question is
# easy for both), and a document's questions are independent: sqrt(2 p (1 - p) (1 - rho) / questions).
ASSUMED_DEVIATION = math.sqrt(2 * 0.45 * 0.55 * (1 - 0.5) / 5)


def documents_needed(difference: float, deviation: float = ASSUMED_DEVIATION) -> int:
    """How many documents show a true `difference` of accuracies (0.03 = 3 points) with 80 % power.

    Normal approximation of a two-sided paired test: n = ((z_0.975 + z_0.8) * deviation / difference)^2, rounded up; at
    least `LEAST_DOCUMENTS`."""
    z = NormalDist().inv_cdf((1 + _LEVEL) / 2) + NormalDist().inv_cdf(0.8)
    return max(LEAST_DOCUMENTS, math.ceil((z * deviation / difference) ** 2))


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where it is undefined (under two values, or one side constant)."""
    from scipy.stats import spearmanr

    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(spearmanr(x, y).statistic)


def spearman_interval(correlation: float, pairs: int) -> tuple[float, float] | None:
    """The 95 % interval of a rank correlation of so many pairs, by Fisher's z with the standard error of Bonett and
    Wright (2000); None for fewer than four pairs, or a perfect correlation, of which z says nothing."""
    if pairs < 4 or abs(correlation) > 1 - 1e-9:
        return None
    half = NormalDist().inv_cdf((1 + _LEVEL) / 2) * math.sqrt((1 + correlation**2 / 2) / (pairs - 3))
    z = math.atanh(correlation)
    return math.tanh(z - half), math.tanh(z + half)


def kappa(counts: Floats) -> Floats:
    """Cohen's kappa, the agreement of two raters beyond what their rates would give by chance, from counts [4] or
    [4, B]: said yes by both, by the first, by the second, of so many.  1 where both say one same thing always."""
    both, first, second, n = counts
    neither = n - first - second + both
    observed = (both + neither) / n
    expected = (first * second + (n - first) * (n - second)) / n**2
    # Expected agreement is 1 only where both raters are constant and alike: they agree, as far as one can tell.
    return np.where(expected < 1, (observed - expected) / np.where(expected < 1, 1 - expected, 1.0), 1.0)
