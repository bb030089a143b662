"""The recipes that a sweep tries, and which of them teaches most and harms least."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfedit.errors import UserError
from selfedit.evaluation.statistics import DocumentScore, paired_difference
from selfedit.methods.settings import SweepSettings
from selfedit.training.recipes import Recipe, load_recipe
from selfedit.yaml_file import parse_value


@dataclass(frozen=True)
class Candidate:
    """A recipe, its number (from 1), and what tells it from the others."""

    number: int
    settings: dict[str, Any]
    recipe: Recipe


def list_candidates(settings: SweepSettings) -> list[Candidate]:
    """Errors: UserError for fewer than two recipes, or one that is there twice."""
    names = [settings.recipe, *settings.recipes]
    found: list[Candidate] = []
    for name, changes in itertools.product(names, parse_grid(settings.grid)):
        recipe = load_recipe(name).with_settings({**settings.set, **changes})
        for other in found:
            if recipe.model_copy(update={"name": other.recipe.name}) == other.recipe:
                raise UserError(f"two of the recipes to try are one and the same ({name} {changes}); leave one out")
        told = {"recipe": name} if len(names) > 1 else {}
        found.append(Candidate(len(found) + 1, told | changes, recipe))
    if len(found) < 2:
        raise UserError("a sweep tries at least 2 recipes: add --recipes NAME, or --grid NAME=A,B,C")
    return found


def parse_grid(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of `NAME=A,B,C` settings; a value may be a list (`[a,b]`).  Errors: UserError for another
    form."""
    axes = []
    for text in texts:
        name, _, given = text.partition("=")
        values = parse_value(f"[{given}]")
        if not name.strip() or not isinstance(values, list) or not values:
            raise UserError(f"--grid {text}: write NAME=A,B,C, such as learning_rate=1e-3,2e-3")
        axes.append([(name.strip(), parse_value(value) if isinstance(value, str) else value) for value in values])
    return [dict(combination) for combination in itertools.product(*axes)]


@dataclass(frozen=True)
class Trial:
    """How a recipe did: scores by document over all editors; of the general questions, by what counts as sampled
    (`general_scores`); training tokens per fit; how many fits failed; how far adapters have moved from the model (KL,
    nats per token; None: not measured)."""

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
    gained = paired_difference(before, chosen.scores) if before else None
    if gained and not (gained.larger_than_noise and gained.mean > 0):
        why += " It has learned nothing that is larger than noise."
    return (
        f"Recipe {chosen.number}: {chosen.accuracy:.1%} right, of the general questions {lost},"
        f" {chosen.tokens:,.0f} training tokens per document.{why}\n"
        f"The rule: most learned among the recipes that lose at most {100 * most_lost:g}% of the general questions; of"
        " those within noise of it (paired by document), the one with the fewest training tokens.  It was chosen on"
        " these documents, so what it came to on them is a little too good: `selfedit compare --recipe` on others shows"
        " what it is worth."
    )


def _most_learned(trial: Trial) -> tuple[float, float, int]:
    return -trial.accuracy, trial.tokens, trial.number
