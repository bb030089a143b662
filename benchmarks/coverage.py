"""How often the 95 % intervals hold the truth, and how often nothing is called a finding: simulated, as a table.

    python -m benchmarks.coverage [--trials 2000]

A document has five questions; documents differ by a beta distribution with an intra-class correlation of 0, 0.3 or 0.8
(0: every question is alike; 0.8: nearly all of a document's questions are right together).  For differences, questions
that were answered wrong become right with a chance that varies over documents as much, and right ones become wrong with
a chance of 0.1."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfedit.evaluation.statistics import DocumentScore, accuracy_interval, paired_difference

QUESTIONS = 5
DOCUMENTS = (3, 6, 12, 50)
CORRELATIONS = (0.0, 0.3, 0.8)
ACCURACIES = (0.02, 0.1, 0.45, 0.98)
DIFFERENCES = ((0.02, 0.0), (0.02, 0.05), (0.45, 0.0), (0.45, 0.1), (0.45, 0.3), (0.9, 0.05))
"""(accuracy before, difference)"""


@dataclass(frozen=True)
class Row:
    """`covered` is the share of intervals that hold the truth, `width` their mean width, `found` the share of
    differences that are called larger than noise."""

    documents: int
    accuracy: float
    difference: float | None
    correlation: float
    covered: float
    width: float
    found: float | None


def rates(rng: np.random.Generator, mean: float, correlation: float, documents: int) -> NDArray[np.float64]:
    """Each document's chance of a right answer."""
    if correlation == 0 or mean in (0.0, 1.0):
        return np.full(documents, mean)
    spread = (1 - correlation) / correlation
    return rng.beta(mean * spread, (1 - mean) * spread, documents)


def scores(right: NDArray[np.int64]) -> dict[str, DocumentScore]:
    return {str(number): DocumentScore(float(count), QUESTIONS) for number, count in enumerate(right)}


def accuracy_row(documents: int, accuracy: float, correlation: float, trials: int) -> Row:
    rng = np.random.default_rng(0)
    hits, width = 0, 0.0
    for _ in range(trials):
        found = accuracy_interval(scores(rng.binomial(QUESTIONS, rates(rng, accuracy, correlation, documents))))
        hits += found.lo <= accuracy <= found.hi
        width += found.hi - found.lo
    return Row(documents, accuracy, None, correlation, hits / trials, width / trials, None)


def difference_row(documents: int, accuracy: float, difference: float, correlation: float, trials: int) -> Row:
    rng = np.random.default_rng(0)
    lost = 0.1 if accuracy + difference < 0.95 - 0.1 * accuracy else 0.0
    gained = (difference + accuracy * lost) / (1 - accuracy)
    hits, width, larger = 0, 0.0, 0
    for _ in range(trials):
        before = rng.binomial(QUESTIONS, rates(rng, accuracy, correlation, documents))
        kept = rng.binomial(before, 1 - lost)
        learned = rng.binomial(QUESTIONS - before, rates(rng, gained, correlation, documents))
        found = paired_difference(scores(before), scores(kept + learned))
        hits += found.lo <= difference <= found.hi
        width += found.hi - found.lo
        larger += found.larger_than_noise
    return Row(documents, accuracy, difference, correlation, hits / trials, width / trials, larger / trials)


def simulate(trials: int, documents: tuple[int, ...] = DOCUMENTS) -> Iterator[Row]:
    for count in documents:
        for accuracy in ACCURACIES:
            for correlation in CORRELATIONS:
                yield accuracy_row(count, accuracy, correlation, trials)
    for count in documents:
        for accuracy, difference in DIFFERENCES:
            for correlation in CORRELATIONS:
                yield difference_row(count, accuracy, difference, correlation, trials)


def table(rows: list[Row]) -> str:
    """Markdown: a line for each truth and correlation, the numbers of documents across."""
    counts = sorted({row.documents for row in rows})
    lines = []
    for title, wanted, cell in (
        ("accuracy", None, _coverage),
        ("difference", True, _coverage),
        ("called larger than noise", True, lambda row: f"{100 * row.found:.1f}"),
    ):
        some = [row for row in rows if (row.difference is None) == (wanted is None)]
        lines += [
            f"| {title} | correlation | " + " | ".join(f"{n} documents" for n in counts) + " |",
            "| --- | --- |" + " --- |" * len(counts),
        ]
        for key in dict.fromkeys((row.accuracy, row.difference, row.correlation) for row in some):
            cells = [cell(row) for row in some if (row.accuracy, row.difference, row.correlation) == key]
            truth = f"{100 * key[0]:g} %" + ("" if key[1] is None else f", {100 * key[1]:+g} points")
            lines.append(f"| {truth} | {key[2]:g} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _coverage(row: Row) -> str:
    return f"{100 * row.covered:.1f} ({100 * row.width:.0f})"


def main(arguments: list[str] | None = None, show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    show(table(list(simulate(parser.parse_args(arguments).trials))))


if __name__ == "__main__":
    main()
