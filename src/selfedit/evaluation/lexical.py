"""The lexical grader: right or wrong by shared words, offline and without a model.

It compares normalised tokens, so a right answer in other words counts as wrong.  docs/grading.md has the rule, and how
often it errs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.evaluation.text import contains, first_answer, is_number, tokens

# Words that carry no answer by themselves.  Negations are not among them.
STOPWORDS = frozenset(
    "of in on at to for by with from and or is was were are be been it its that this as he she they his her "
    "their which who what".split()
)

MINIMUM_RECALL = 0.6
MINIMUM_F1 = 0.5


def content(words: Sequence[str]) -> list[str]:
    """The words that are not stopwords; all of them where there are no others."""
    return [w for w in words if w not in STOPWORDS] or list(words)


def f1(gold: Sequence[str], answer: Sequence[str]) -> float:
    """SQuAD's token F1 of two token lists, in [0, 1]."""
    shared = sum((Counter(gold) & Counter(answer)).values())
    return 2 * shared / (len(gold) + len(answer)) if shared else 0.0


def accepts(question: str, gold: str, answer: str) -> bool:
    """The rule, for one gold answer.  With all texts as normalised tokens, the answer is right if any of these holds:

    1. the gold answer occurs in it, side by side and in order;
    2. every number of the gold answer is in it, and so are at least 60 % of the gold answer's content words (those of
       them that the question does not give away already, if there are such);
    3. every number of the gold answer is in it, and the F1 of content words is at least 0.5.

    An answer without any word is wrong.  What a model writes after it has answered (a new question, say) is not read.
    """
    gold_words, words, asked = tokens(gold), tokens(first_answer(answer)), set(tokens(question))
    if not words or not gold_words:
        return False
    if contains(words, gold_words):
        return True
    needed = set(content(gold_words))
    needed = {w for w in needed if w not in asked} or needed
    present = set(words)
    if any(is_number(w) and w not in present for w in needed):
        return False
    return (
        len(needed & present) >= MINIMUM_RECALL * len(needed) or f1(content(gold_words), content(words)) >= MINIMUM_F1
    )


class LexicalGrader:
    """Decides by `accepts`; an answer is right if any of its accepted answers makes it right.  The score is 1 or 0."""

    name = "lexical"

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        grades = []
        for item in items:
            right = any(accepts(item.question, gold, item.answer) for gold in item.gold)
            grades.append(Grade("right" if right else "wrong", 1.0 if right else 0.0, self.name))
        return grades
