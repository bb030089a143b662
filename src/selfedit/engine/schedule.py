"""Which fits step together, and how a step is cut into forward passes.

Both are pure functions of the job list and the token budget, so that a plan counts exactly what a run does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from selfedit.engine.jobs import FitJob, TokenSequence

# (number among the fits that step together, place in that fit's step)
Pass = list[tuple[int, int]]


class Course:
    """A fit's way through its data: which sequences come next, how many tokens are left."""

    def __init__(self, job: FitJob, adapter: int) -> None:
        self.job = job
        self.adapter = adapter
        self.order = job.order()
        self.done = 0
        self.tokens_left = job.tokens

    @property
    def finished(self) -> bool:
        return self.done == len(self.order)

    @property
    def batch(self) -> list[TokenSequence]:
        return [self.job.sequences[k] for k in self.order[self.done]]

    @property
    def batch_tokens(self) -> int:
        return sum(len(sequence.ids) for sequence in self.batch)

    @property
    def batch_labelled(self) -> int:
        return sum(sequence.labelled for sequence in self.batch)

    def advance(self) -> None:
        self.tokens_left -= self.batch_tokens
        self.done += 1


C = TypeVar("C", bound=Course)


def choose(active: Sequence[C], token_budget: int) -> list[C]:
    """The fits of the next step: those with the most tokens left first, until the budget is full; in the bank's
    order."""
    chosen: list[C] = []
    tokens = 0
    for course in sorted(active, key=lambda c: (-c.tokens_left, c.adapter)):
        size = course.batch_tokens
        if not chosen or tokens + size <= token_budget:
            chosen.append(course)
            tokens += size
    return sorted(chosen, key=lambda c: c.adapter)


def passes(chosen: Sequence[Course], token_budget: int) -> list[Pass]:
    """The step's sequences, cut into forward passes of at most the budget (a longer sequence goes alone)."""
    cut: list[Pass] = [[]]
    tokens = 0
    for k, course in enumerate(chosen):
        for place, sequence in enumerate(course.batch):
            if cut[-1] and tokens + len(sequence.ids) > token_budget:
                cut.append([])
                tokens = 0
            cut[-1].append((k, place))
            tokens += len(sequence.ids)
    return cut


def simulate(jobs: Sequence[FitJob], token_budget: int) -> Iterator[list[int]]:
    """For each step of `fit` on these jobs the tokens of its forward passes."""
    active = [Course(job, adapter) for adapter, job in enumerate(jobs)]
    while active := [course for course in active if not course.finished]:
        chosen = choose(active, token_budget)
        yield [sum(len(chosen[k].batch[place].ids) for k, place in one) for one in passes(chosen, token_budget)]
        for course in chosen:
            course.advance()
