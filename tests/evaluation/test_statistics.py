"""Intervals cover what they should, pairs cancel what is common, agreement is what the textbooks say."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from benchmarks import coverage
from hypothesis import given, settings
from hypothesis import strategies as st

from selfedit.evaluation.statistics import (
    ASSUMED_DEVIATION,
    Difference,
    DocumentScore,
    accuracy_interval,
    accuracy_ratio,
    bootstrap,
    bootstrap_interval,
    documents_needed,
    kappa,
    mean_interval,
    paired_difference,
    spearman,
    spearman_interval,
)

SCORES = st.lists(
    st.integers(0, 6).flatmap(lambda n: st.tuples(st.integers(0, n).map(float), st.just(n))), min_size=1, max_size=12
)


@settings(max_examples=40, deadline=None)
@given(SCORES)
def test_the_interval_holds_the_mean_and_stays_within_zero_and_one(pairs: list[tuple[float, int]]) -> None:
    scores = [DocumentScore(*pair) for pair in pairs]
    if not any(s.graded for s in scores):
        with pytest.raises(ValueError, match="no graded answers"):
            accuracy_interval(scores)
        return
    mean, lo, hi = accuracy_interval(scores)
    assert mean == pytest.approx(sum(s.score for s in scores) / sum(s.graded for s in scores))
    assert 0 <= lo <= mean <= hi <= 1
    # As far as n answers, all of them independent, could tell: never tighter.
    assert hi - lo >= 3.8 / (sum(s.graded for s in scores) + 3.9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_interval_of_a_difference_is_never_empty_and_turns_with_it(pairs: list[tuple[int, int]]) -> None:
    first = {str(k): DocumentScore(float(a), 5) for k, (a, _) in enumerate(pairs)}
    second = {str(k): DocumentScore(float(b), 5) for k, (_, b) in enumerate(pairs)}
    found, back = paired_difference(first, second), paired_difference(second, first)
    assert -1 <= found.lo <= found.mean <= found.hi <= 1
    assert found.hi - found.lo >= 3.8 / (5 * len(pairs) + 3.9)
    assert (back.mean, back.lo, back.hi) == pytest.approx((-found.mean, -found.hi, -found.lo))
    assert back.p_value == pytest.approx(found.p_value)
    assert found.larger_than_noise == back.larger_than_noise
    if len(pairs) < 6:
        assert not found.larger_than_noise


def test_ungraded_documents_change_nothing_and_one_document_says_nothing_of_others() -> None:
    scores = {"a": DocumentScore(2, 4), "b": DocumentScore(3, 3)}
    with_empty = {**scores, "c": DocumentScore(0, 0)}
    assert accuracy_interval(scores) == accuracy_interval(with_empty)
    assert accuracy_interval([DocumentScore(2, 4)]) == (0.5, 0.0, 1.0)


def test_a_credit_is_between_zero_and_one() -> None:
    with pytest.raises(ValueError, match="score"):
        accuracy_interval([DocumentScore(3, 2)])
    with pytest.raises(ValueError, match="score"):
        accuracy_interval([DocumentScore(float("nan"), 2)])


@pytest.mark.parametrize("right", [0, 6])
@pytest.mark.parametrize(("documents", "least"), [(1, 1.0), (3, 0.5), (12, 0.2), (50, 0.05)])
def test_none_of_many_and_all_of_many_are_not_certain(right: int, documents: int, least: float) -> None:
    mean, lo, hi = accuracy_interval([DocumentScore(float(right), 6)] * documents)
    assert mean == right / 6
    assert hi - lo >= least


def test_wilson_s_interval_where_answers_are_independent() -> None:
    # 50 documents with one question each: Wilson's interval for 20 of 50 with Student's quantile 2.0096 (49 degrees).
    scores = [DocumentScore(float(k < 20), 1) for k in range(50)]
    t2, n, p = 2.009575**2, 50 * 49 / 50, 0.4  # the effective number: the variance estimate divides by n - 1
    centre, half = (p + t2 / (2 * n)) / (1 + t2 / n), math.sqrt(t2 * (p * (1 - p) + t2 / (4 * n)) / n) / (1 + t2 / n)
    assert accuracy_interval(scores) == pytest.approx((p, centre - half, centre + half), abs=1e-6)


@pytest.mark.parametrize("documents", [3, 6, 12, 50])
@pytest.mark.parametrize("accuracy", [0.02, 0.45, 0.98])
@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_coverage_of_the_interval(documents: int, accuracy: float, correlation: float) -> None:
    # 95 % nominal; the standard error of the simulation itself is 1.1 points.
    assert coverage.accuracy_row(documents, accuracy, correlation, 400).covered >= 0.92


@pytest.mark.parametrize("documents", [3, 6, 12, 50])
@pytest.mark.parametrize(("accuracy", "difference"), [(0.02, 0.0), (0.02, 0.05), (0.45, 0.1), (0.9, 0.05)])
def test_coverage_of_the_interval_of_a_difference(documents: int, accuracy: float, difference: float) -> None:
    row = coverage.difference_row(documents, accuracy, difference, 0.3, 150)
    assert row.covered >= 0.9
    assert row.found is not None
    if difference == 0:
        assert row.found <= 0.05
    if documents < 6:
        assert row.found == 0


def by_name(scores: list[DocumentScore]) -> dict[str, DocumentScore]:
    return {str(k): score for k, score in enumerate(scores)}


def test_a_ratio_is_of_accuracies_on_common_documents() -> None:
    first = {"a": DocumentScore(4, 5), "b": DocumentScore(2, 5), "only here": DocumentScore(5, 5)}
    # Twice as many answers, since there were two fits per document; here 9 of 20 and 6 of 10 count.
    second = {
        "a": DocumentScore(6, 10),
        "b": DocumentScore(3, 10),
        "there": DocumentScore(0, 10),
        "c": DocumentScore(0, 0),
    }
    mean, interval = accuracy_ratio(first, second)
    assert mean == pytest.approx(9 / 20 / (6 / 10))
    assert interval is None  # two documents give none


def test_a_ratio_s_interval_is_paired_by_document() -> None:
    rng = np.random.default_rng(0)
    opened = draw_documents(rng, 60)
    # Right where open book is right, but for one answer in five: what documents differ by cancels.
    like = [DocumentScore(0.8 * s.score, s.graded) for s in opened]
    mean, interval = accuracy_ratio(by_name(opened), by_name(like))
    assert (mean, interval) == (pytest.approx(0.8), None), "no draw differs"
    loose = draw_documents(rng, 60)
    mean, interval = accuracy_ratio(by_name(opened), by_name(loose))
    assert interval is not None
    assert interval[0] < mean < interval[1]
    assert interval[1] - interval[0] > 0.1
    assert accuracy_ratio(by_name(opened), by_name(loose)) == (mean, interval)


def test_coverage_of_the_interval_of_a_ratio() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        ease = rng.uniform(0.4, 0.9, 30)
        opened = [DocumentScore(float(rng.binomial(5, p)), 5) for p in ease]
        other = [DocumentScore(float(rng.binomial(5, 0.8 * p)), 5) for p in ease]
        _, interval = accuracy_ratio(by_name(opened), by_name(other))
        assert interval is not None
        held += interval[0] <= 0.8 <= interval[1]
    assert 0.89 <= held / 200 <= 0.99


def test_a_ratio_that_documents_do_not_give() -> None:
    nothing, some = [DocumentScore(0.0, 5)] * 8, draw_documents(np.random.default_rng(0), 8)
    assert accuracy_ratio(by_name(some), by_name(nothing)) == (0.0, None)
    with pytest.raises(ValueError, match="there is no ratio"):
        accuracy_ratio(by_name(nothing), by_name(some))
    with pytest.raises(ValueError, match="there is no ratio"):
        accuracy_ratio(by_name(some), {"other": DocumentScore(1.0, 5)})
    # One document has all that is right with the book open: a draw in thirty lacks it and has no ratio.
    rare = [DocumentScore(5.0, 5), *nothing[:7]]
    assert accuracy_ratio(by_name(rare), by_name(some))[1] is None


def draw_documents(rng: np.random.Generator, documents: int, shift: float = 0.0) -> list[DocumentScore]:
    """Five questions a document; documents differ in difficulty (uniform, mean 0.45), so answers of one are alike."""
    ease = np.clip(rng.uniform(0.1, 0.8, documents) + shift, 0, 1)
    return [DocumentScore(float(rng.binomial(5, p)), 5) for p in ease]


def test_an_interval_over_answers_would_be_too_short() -> None:
    rng = np.random.default_rng(2)
    clustered = [DocumentScore(5.0 if rng.random() < 0.5 else 0.0, 5) for _ in range(60)]
    mean, lo, hi = accuracy_interval(clustered)
    naive = 2 * 1.96 * math.sqrt(mean * (1 - mean) / 300)
    assert hi - lo > 2 * naive


def test_replicates_are_no_more_documents() -> None:
    scores = [DocumentScore(float(k % 6), 5) for k in range(30)]
    again = [DocumentScore(4.0 * s.score, 4 * s.graded) for s in scores]
    assert accuracy_interval(again) == pytest.approx(accuracy_interval(scores), abs=1e-9)


def test_pairing_cancels_what_is_hard_for_both() -> None:
    rng = np.random.default_rng(3)
    base = {str(i): DocumentScore(float(rng.integers(0, 9)), 10) for i in range(30)}
    better = {d: DocumentScore(s.score + 1, 10) for d, s in base.items()}
    difference = paired_difference(base, better)
    assert difference.mean == pytest.approx(0.1)
    # 30 of 300 answers: as wide as for independent answers, though all documents gain alike.
    assert 0.04 < difference.lo < 0.07 < 0.13 < difference.hi < 0.17
    assert difference.larger_than_noise
    assert difference.documents == 30
    back = paired_difference(better, base)
    assert back.mean == pytest.approx(-0.1)
    assert back.larger_than_noise


def gained(documents: int, right: float = 1.0) -> Difference:
    first = {str(k): DocumentScore(1.0, 6) for k in range(documents)}
    second = {str(k): DocumentScore(1.0 + right, 6) for k in range(documents)}
    return paired_difference(first, second)


def test_two_documents_that_gain_alike_are_no_evidence() -> None:
    difference = gained(2)
    assert difference.mean == pytest.approx(1 / 6)
    assert difference.lo < -0.5
    assert difference.hi > 0.5
    assert difference.p_value == 0.5
    assert not difference.larger_than_noise


def test_six_documents_are_the_fewest_that_can_show_anything() -> None:
    assert gained(5, right=5).p_value == 2 / 2**5  # every document gains all there is
    assert not gained(5, right=5).larger_than_noise
    assert gained(6, right=5).p_value == 2 / 2**6
    assert gained(6, right=5).larger_than_noise


def test_the_sign_flip_test_is_the_exact_one() -> None:
    gaps = [3, -1, 2, 2, 1, 0, 3, -2]  # right answers gained, of five
    first = {str(k): DocumentScore(2.0, 5) for k in range(len(gaps))}
    second = {str(k): DocumentScore(2.0 + gap, 5) for k, gap in enumerate(gaps)}
    sums = [abs(sum(sign * gap for sign, gap in zip(signs, gaps, strict=True))) for signs in product((1, -1), repeat=8)]
    expected = sum(value >= sum(gaps) for value in sums) / len(sums)
    assert paired_difference(first, second).p_value == pytest.approx(expected)


def test_noise_is_called_noise() -> None:
    rng = np.random.default_rng(4)
    false_alarms = 0
    for _ in range(200):
        a = dict(enumerate(draw_documents(rng, 30)))
        b = dict(enumerate(draw_documents(rng, 30)))
        named = ({str(k): v for k, v in side.items()} for side in (a, b))
        false_alarms += paired_difference(*named).larger_than_noise
    assert false_alarms / 200 <= 0.08


def test_only_documents_graded_on_both_sides_are_paired() -> None:
    a = {"x": DocumentScore(1, 2), "y": DocumentScore(2, 2), "z": DocumentScore(0, 0)}
    b = {"x": DocumentScore(2, 2), "z": DocumentScore(2, 2), "w": DocumentScore(2, 2)}
    difference = paired_difference(a, b)
    assert (difference.mean, difference.documents, difference.p_value) == (0.5, 1, 1.0)
    assert difference.lo < 0 < difference.hi
    assert not difference.larger_than_noise
    with pytest.raises(ValueError, match="no document"):
        paired_difference({"x": DocumentScore(1, 1)}, {"y": DocumentScore(1, 1)})


def test_documents_needed_keeps_its_promise() -> None:
    deviation = 0.2
    n = documents_needed(0.1, deviation=deviation)
    assert n == math.ceil(((1.959964 + 0.841621) * 2) ** 2)
    rng = np.random.default_rng(5)
    seen = 0
    for _ in range(150):
        gaps = rng.normal(0.1, deviation, n).clip(-0.5, 0.5)
        a = {str(i): DocumentScore(10.0, 20) for i in range(n)}
        b = {str(i): DocumentScore(10.0 + 20 * float(g), 20) for i, g in enumerate(gaps)}
        seen += paired_difference(a, b).larger_than_noise
    assert 0.71 <= seen / 150 <= 0.87


def test_documents_needed_from_the_assumption() -> None:
    assert documents_needed(0.03) == math.ceil((2.801585 * ASSUMED_DEVIATION / 0.03) ** 2) == 432
    assert documents_needed(-0.03) == documents_needed(0.03)
    assert documents_needed(0.03, deviation=0.0) == 6


@settings(deadline=None)  # scipy is imported in the first call
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30, unique=True))
def test_spearman_of_a_monotone_map_is_one(values: list[float]) -> None:
    order = sorted(values)
    cubes = [order.index(v) ** 3 for v in values]
    assert spearman(values, cubes) == pytest.approx(1)
    assert spearman(values, [-c for c in cubes]) == pytest.approx(-1)


def test_spearman_with_ties_and_where_it_is_undefined() -> None:
    # Mean ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 1], [1, 2]) is None
    assert spearman([1], [1]) is None


def test_the_interval_of_a_rank_correlation_holds_it_as_often_as_it_says() -> None:
    # Bonett & Wright: z ± 1.96 sqrt((1 + 0.5²/2) / 8).
    expected = [math.tanh(math.atanh(0.5) + side * 1.959964 * math.sqrt(1.125 / 8)) for side in (-1, 1)]
    assert spearman_interval(0.5, 11) == pytest.approx(expected)
    assert spearman_interval(1.0, 11) is spearman_interval(0.2, 3) is None
    rng, held = np.random.default_rng(8), 0
    truth = 6 / math.pi * math.asin(0.5 / 2)  # of normal pairs that correlate by 0.5
    for _ in range(300):
        x = rng.normal(size=8)
        y = 0.5 * x + math.sqrt(0.75) * rng.normal(size=8)
        found = spearman(x.tolist(), y.tolist())
        assert found is not None
        interval = spearman_interval(found, 8)
        held += interval is not None and interval[0] <= truth <= interval[1]
    assert held / 300 >= 0.9


def counts(first: Sequence[bool], second: Sequence[bool]) -> np.ndarray:
    """What `kappa` counts, row by row."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    return np.stack([a * b, a, b, np.ones(len(a))])


def kappa_of(first: Sequence[bool], second: Sequence[bool]) -> float:
    return float(kappa(counts(first, second).sum(axis=1)))


def test_kappa_of_the_textbook_example() -> None:
    # 20 yes by both, 15 no by both, 5 and 10 disagreements: observed 0.7, expected 0.5.
    first = [True] * 20 + [True] * 5 + [False] * 10 + [False] * 15
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert kappa_of(first, second) == pytest.approx(0.4)
    assert kappa_of([True], [True]) == 1.0
    assert kappa_of([True, False], [False, True]) == pytest.approx(-1)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_kappa_is_symmetric_and_at_most_one(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    assert kappa_of(a, b) == pytest.approx(kappa_of(b, a))
    assert kappa_of(a, b) <= 1
    assert (kappa_of(a, b) == 1) == (a == b)


def test_the_interval_of_kappa_widens_with_clusters() -> None:
    rng = np.random.default_rng(6)
    truth = np.repeat(rng.random(50) < 0.5, 8)
    said = np.repeat(np.where(rng.random(50) < 0.8, truth[::8], ~truth[::8]), 8)
    rows = bootstrap_interval(counts(truth, said), [str(i) for i in range(400)], kappa)
    clusters = bootstrap_interval(counts(truth, said), [str(i // 8) for i in range(400)], kappa)
    assert rows[0] == clusters[0] == kappa_of(truth, said)
    assert rows[1] is not None
    assert clusters[1] is not None
    assert clusters[1][0] < rows[1][0] <= rows[0] <= rows[1][1] < clusters[1][1]


def test_few_questions_or_equal_ones_give_no_interval() -> None:
    truth, said = np.arange(24) % 2 == 0, np.arange(24) % 3 == 0
    for clusters, known in ((5, False), (6, True)):
        mean, interval = bootstrap_interval(counts(truth, said), [str(i % clusters) for i in range(24)], kappa)
        assert mean == kappa_of(truth, said)
        assert (interval is not None) == known
    # 24 of 24 alike: no draw can differ, which is no certainty.
    assert bootstrap_interval(counts(truth, truth), [str(i) for i in range(24)], kappa) == (1.0, None)


def test_the_draws_are_the_seeds_alone() -> None:
    first = bootstrap(7, lambda i: i.sum(axis=1).astype(float), resamples=100, seed=1)
    assert first.shape == (100,)
    assert np.array_equal(first, bootstrap(7, lambda i: i.sum(axis=1).astype(float), resamples=100, seed=1))
    assert not np.array_equal(first, bootstrap(7, lambda i: i.sum(axis=1).astype(float), resamples=100, seed=2))
    with pytest.raises(ValueError, match="at least one"):
        bootstrap(0, lambda i: i.sum(axis=1).astype(float))


def test_a_mean_over_documents_has_students_interval() -> None:
    mean, interval = mean_interval({"a": [1.0, 3.0], "b": [4.0], "c": [6.0], "d": []})
    assert mean == pytest.approx(4.0)  # each document counts as its own mean: 2, 4, 6
    assert interval == pytest.approx((4 - 4.302653 * 2 / 3**0.5, 4 + 4.302653 * 2 / 3**0.5), rel=1e-5)
    assert mean_interval({"a": [1.0, 3.0]}) == (2.0, None)
    with pytest.raises(ValueError, match="nothing was measured"):
        mean_interval({"a": []})


def test_equal_scores_that_were_added_in_another_order_are_no_difference() -> None:
    one, other = by_name([DocumentScore(0.1 + 0.2 + 0.3, 3)] * 8), by_name([DocumentScore(0.3 + 0.2 + 0.1, 3)] * 8)
    assert one != other
    found = paired_difference(one, other)
    assert (found.mean, found.p_value) == (0, 1)


def test_gains_and_losses_of_different_documents_vary_together() -> None:
    # One question each, half gained and half lost: the differences' deviation is 1, so 1.98 (Student's) / sqrt(100).
    first = by_name([DocumentScore(float(k % 2), 1) for k in range(100)])
    second = by_name([DocumentScore(float(1 - k % 2), 1) for k in range(100)])
    found = paired_difference(first, second)
    assert (found.lo, found.mean, found.hi) == pytest.approx((-0.198, 0, 0.198), abs=0.006)
