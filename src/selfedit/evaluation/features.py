"""What the calibrated grader sees of an answer: numbers made from question, gold answer and answer.

Knows strings; nothing of the model that weighs the numbers.  Every feature is cheap and deterministic; `NAMES` fixes
their order, which the file of the trained model repeats."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import pairwise

from selfedit.evaluation.lexical import STOPWORDS, accepts, content, f1
from selfedit.evaluation.text import contains, first_answer, is_number, tokens

_NEGATIONS = frozenset(
    "no not never none neither nor without cannot cant dont doesnt didnt isnt arent wasnt werent non un".split()
)
_REFUSAL = re.compile(
    r"not (?:specif|mention|provide|state|clear|known|given|possible|have|contain|include|sure|available)"
    r"|(?:no|any) (?:specific )?information|unknown|i (?:do not|don't) know|unable to"
    r"|cannot (?:be )?(?:determin|answer|provid)"
    r"|n't (?:specif|mention|provid|state)",
    re.IGNORECASE,
)
_CAPITALISED = re.compile(r"(?<![.!?:]\s)(?<!^)(?<!\n)\b[A-Z][\w'’\-]*", re.MULTILINE)
_ASKS = ("who", "when", "where", "which", "why", "how many", "how much", "how long", "how", "what")
_YEAR = re.compile(r"1\d{3}|20\d{2}")

# Endings, longest first, each with the letters that must be left.
_ENDINGS = (
    *((e, 4) for e in "ization ational fulness iveness ations ation ments ment".split()),
    *((e, 3) for e in "ities ness ings ing ians ity ies ied ers".split()),
    *((e, 4) for e in "ion ive".split()),
    ("ian", 3),
    *((e, 4) for e in "ism ist ous ant ent al er ic ly".split()),
    *((e, 3) for e in "es ed s e y".split()),
)


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A crude stem: plural, past and gerund endings off; enough to match inflections of one word."""
    if is_number(word):
        return word
    for ending, least in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= least:
            return word[: -len(ending)]
    return word


def _grams(word: str, n: int = 3) -> set[str]:
    padded = f"^{word}$"
    return {padded[i : i + n] for i in range(max(1, len(padded) - n + 1))}


def _dice(a: set[str], b: set[str]) -> float:
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 0.0


def _share(part: float, whole: float, empty: float = 0.0) -> float:
    return part / whole if whole else empty


def _value(token: str) -> float | None:
    number = re.match(r"\d+(?:\.\d+)?", token)
    return float(number.group()) if number else None


def _initials(words: Sequence[str]) -> str:
    return "".join(w[0] for w in words if w not in STOPWORDS)


def features(question: str, gold: str, answer: str) -> dict[str, float]:
    """The features of one answer against one gold answer, by name."""
    head = first_answer(answer)
    q, g, a = tokens(question), tokens(gold), tokens(head)
    q_stems, g_stems, a_stems = {stem(w) for w in q}, [stem(w) for w in g], [stem(w) for w in a]
    a_set, as_set = set(a), set(a_stems)
    g_content = content(g)
    new_gold = [w for w in g_content if stem(w) not in q_stems]
    needed = new_gold or g_content
    a_content = content(a) if a else []
    new_answer = [w for w in a_content if stem(w) not in q_stems]
    needed_stems = {stem(w) for w in needed}
    new_answer_stems = {stem(w) for w in new_answer}
    a_grams = {w: _grams(w) for w in a_set}

    def best(word: str) -> float:
        grams = _grams(word)
        return 1.0 if stem(word) in as_set else max((_dice(grams, other) for other in a_grams.values()), default=0.0)

    soft = [best(w) for w in needed] or [0.0]
    needed_weight = sum(len(w) for w in needed)
    g_numbers = [w for w in g if is_number(w)]
    a_numbers = [w for w in a if is_number(w)]
    missing_numbers = [w for w in g_numbers if w not in a_set]
    foreign_numbers = [w for w in a_numbers if w not in g and w not in q]
    gaps = [
        abs(x - y) / max(abs(x), abs(y), 1.0)
        for x in map(_value, (w for w in g_numbers))
        for y in map(_value, (w for w in a_numbers if w not in q))
        if x is not None and y is not None
    ]
    g_names = {w for m in re.findall(r"\b[A-Z][\w'’\-]*", gold) for w in tokens(m)} - STOPWORDS
    a_names = {w for m in _CAPITALISED.findall(head) for w in tokens(m)} - STOPWORDS
    g_text, a_text, q_text = " ".join(g), " ".join(a), " ".join(q)
    first_hit = next((i for i, w in enumerate(a_stems) if w in needed_stems), len(a))
    where_gold = a_text.find(g_text) if g_text else -1
    g_neg, a_neg = sum(w in _NEGATIONS for w in g), sum(w in _NEGATIONS for w in a)
    g_grams, a_grams_text = _grams(g_text), _grams(a_text)
    bigrams = set(pairwise(g_stems))
    a_bigrams = set(pairwise(a_stems))
    lower_question = " " + question.casefold() + " "
    ask = next((k for k, word in enumerate(_ASKS) if f" {word}" in lower_question), len(_ASKS))
    a_first = a[0] if a else ""
    years = {w for w in g_numbers if _YEAR.fullmatch(w)}
    return {
        "rule": float(accepts(question, gold, answer)),
        "contains": float(contains(a, g)),
        "contains_stems": float(contains(a_stems, g_stems)),
        "contained": float(contains(g_stems, a_stems)),
        "contains_new": float(contains(a, new_gold)),
        "same": float(bool(g) and sorted(g_stems) == sorted(a_stems)),
        "f1": f1(g_stems, a_stems),
        "f1_content": f1([stem(w) for w in g_content], [stem(w) for w in a_content]),
        "f1_new": f1(sorted(needed_stems), sorted(new_answer_stems)),
        "recall": _share(sum((Counter(g_stems) & Counter(a_stems)).values()), len(g)),
        "recall_content": _share(sum(stem(w) in as_set for w in g_content), len(g_content)),
        "recall_needed": _share(len(needed_stems & as_set), len(needed_stems)),
        "recall_needed_by_length": _share(sum(len(w) for w in needed if stem(w) in as_set), needed_weight),
        "precision_new": _share(len(needed_stems & new_answer_stems), len(new_answer_stems)),
        "bigram_recall": _share(len(bigrams & a_bigrams), len(bigrams), -1.0),
        "soft_mean": sum(soft) / len(soft),
        "soft_min": min(soft),
        "soft_max": max(soft),
        "soft_last": soft[-1],
        "soft_first": soft[0],
        "missing_needed": float(len(needed_stems - as_set)),
        "trigram_recall": _share(len(g_grams & a_grams_text), len(g_grams)),
        "trigram_dice": _dice(g_grams, a_grams_text),
        "common_run": _share(
            SequenceMatcher(None, g_text, a_text, autojunk=False).find_longest_match().size, len(g_text)
        ),
        "gold_words": float(len(g)),
        "gold_content": float(len(g_content)),
        "gold_needed": float(len(needed_stems)),
        "gold_new_share": _share(len(new_gold), len(g_content)),
        "gold_word_length": _share(needed_weight, len(needed)),
        "answer_words": float(len(a)),
        "answer_log_words": math.log1p(len(a)),
        "answer_new": float(len(new_answer_stems)),
        "answer_foreign": float(len(new_answer_stems - needed_stems)),
        "answer_foreign_share": _share(len(new_answer_stems - needed_stems), len(set(a_stems))),
        "answer_restates": _share(len(q_stems & as_set), len(q_stems)),
        "length_ratio": _share(len(a), len(g)),
        "new_ratio": _share(len(new_answer_stems), len(needed_stems)),
        "question_words": float(len(q)),
        "gold_numbers": float(len(g_numbers)),
        "answer_numbers": float(len(a_numbers)),
        "missing_numbers": float(len(missing_numbers)),
        "foreign_numbers": float(len(foreign_numbers)),
        "number_conflict": float(bool(missing_numbers and foreign_numbers)),
        "number_gap": min(gaps, default=-1.0),
        "year_hit": _share(len(years & a_set), len(years), -1.0),
        "names_missing": float(len(g_names - a_set)),
        "names_recall": _share(len(g_names & a_set), len(g_names), -1.0),
        "names_foreign": float(len(a_names - g_names - set(q))),
        "negation_gold": float(g_neg > 0),
        "negation_answer": float(a_neg),
        "negation_mismatch": float((g_neg > 0) != (a_neg > 0)),
        "refusal": float(bool(_REFUSAL.search(head))),
        "yes_no": float(a_first in {"yes", "no"}) - float(g[:1] in (["yes"], ["no"])),
        "first_hit": float(first_hit),
        "first_hit_share": _share(first_hit, len(a), 1.0),
        "gold_at": _share(where_gold, len(a_text), -1.0) if where_gold >= 0 else -1.0,
        "list_gold": float(gold.count(",") + len(re.findall(r"\band\b|\bor\b|/", gold))),
        "list_answer": float(head.count(",")),
        "sentences": float(len(re.findall(r"[.!?](?:\s|$)", head))),
        "run_on": float(len(head) < len(answer.strip()) - 10),
        "unfinished": float(bool(head) and head[-1] not in ".!?\"')" and len(a) > 25),
        "acronym": float(
            (len(g) > 1 and _initials(g) in a_set)
            or any(len(w) > 1 and w in _initials(a) and len(a) > 1 for w in g if len(w) <= 5 and w not in STOPWORDS)
        ),
        "gold_in_question": _share(sum(s in q_stems for s in g_stems), len(g)),
        "gold_text_in_question": float(bool(g_text) and g_text in q_text),
        "ask": float(ask),
    }


NAMES: tuple[str, ...] = tuple(features("", "", ""))
