"""Which recipe teaches most and harms least: what a sweep goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfedit.evaluation.statistics import DocumentScore, paired_difference
from selfedit.methods.candidates import Candidate


@dataclass(frozen=True)
class Trial:
    """How a recipe did: scores by document over all editors; of the general questions, by fit; training tokens per fit;
    how many fits failed; how far adapters have moved from the model (KL, nats per token; None: not measured)."""

    candidate: Candidate
    scores: Mapping[str, DocumentScore]
    general: Mapping[str, DocumentScore]
    tokens: float
    failed: int = 0
    moved: float | None = None

    @property
    def number(self) -> int:
        return self.candidate.number

    @property
    def out(self) -> bool:
        """Whether it has lost already: nobody wants a recipe whose fits fail."""
        return self.failed > 0 or not self.scores

    @property
    def accuracy(self) -> float:
        return sum(score for score, _ in self.scores.values()) / sum(graded for _, graded in self.scores.values())

    @property
    def lost(self) -> float | None:
        """The share of general questions; None where none was known before."""
        if not self.general:
            return None
        asked, kept = (sum(score[k] for score in self.general.values()) for k in (1, 0))
        return (asked - kept) / asked  # 5 of 100 are 0.05, which 1 - 0.95 is not

    def over(self, most_lost: float) -> float:
        """By how much it loses more than it may."""
        return max(0.0, (self.lost or 0.0) - most_lost)


def better_half(trials: Sequence[Trial], most_lost: float) -> list[Trial]:
    """The better half, rounded up, without those that are out: first those that lose no more than they may, the most
    learned first; then the others, the least lost first."""
    left = [trial for trial in trials if not trial.out]
    return sorted(left, key=lambda trial: (trial.over(most_lost), *_most_learned(trial)))[: -(-len(trials) // 2)]


def choose(trials: Sequence[Trial], most_lost: float) -> Trial:
    """The recipe that learned most of those that lose no more than they may.  Those within noise of it (paired by
    document) count as equal, and the one with the fewest training tokens is taken.  Where all lose more, the one that
    loses least."""
    best = better_half(trials, most_lost)[0]
    if best.over(most_lost):
        return best
    level = [
        trial
        for trial in trials
        if not trial.out
        and not trial.over(most_lost)
        and (trial is best or not paired_difference(trial.scores, best.scores).larger_than_noise)
    ]
    return min(level, key=lambda trial: (trial.tokens, *_most_learned(trial)))


def reason(
    trials: Sequence[Trial], chosen: Trial, most_lost: float, before: Mapping[str, DocumentScore] | None = None
) -> str:
    """The rule and what it came to, for people; `before` are the scores without adaptation."""
    best = better_half(trials, most_lost)[0]
    lost = "none was known" if chosen.lost is None else f"{chosen.lost:.1%} lost"
    why = ""
    if chosen.over(most_lost):
        why = " All lose more: it loses least."
    elif best is not chosen:
        why = f" Recipe {best.number}, with {best.accuracy:.1%} right for {best.tokens:,.0f} tokens, is within noise."
    if before and not paired_difference(before, chosen.scores).larger_than_noise:
        why += " It has learned nothing that is larger than noise."
    return (
        f"Recipe {chosen.number}: {chosen.accuracy:.1%} right, of the general questions {lost},"
        f" {chosen.tokens:,.0f} training tokens per document.{why}\n"
        f"The rule: most learned among the recipes that lose at most {most_lost:.0%} of the general questions; of those"
        " within noise of it (paired by document), the one with the fewest training tokens."
    )


def _most_learned(trial: Trial) -> tuple[float, float, int]:
    return -trial.accuracy, trial.tokens, trial.number
