"""What is learned of an edit: objectives, one function each, found by `OBJECTIVES`.  A recipe names one or several, and
the sequences of all of them are learned together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, pairwise

from selfedit.documents import Document, sentences
from selfedit.editors.cleaning import ANSWER, QUESTION, questions, with_answers
from selfedit.evaluation.general import GENERAL_TITLE, general_prompts

_SAYS_TOO_LITTLE = 10  # characters; a shorter text names no topic
_WORDS_PER_PART = 9
_WORD = re.compile(r"[^\W\d_]{4,24}")  # shorter ones say little, and longer ones are of scripts without blanks
_TELLING_WORDS = 3  # behind a title that several documents share
_FEWEST_GENERAL = 96  # general prompts beside documents of which topics are learned


@dataclass(frozen=True)
class TrainingSequence:
    """A text to be learned, under its document's title; with `question`, it is the answer to that exam question; with
    `about`, it is the topic of that text.

    With `passage`, the loss is the divergence from the frozen model that reads the passage before the same prompt;
    without, it is the cross-entropy of the next token.  `of_document` marks the document's own text, or a part of it.
    """

    title: str
    text: str
    question: str | None = None
    passage: str | None = None
    of_document: bool = False
    about: str | None = None


@dataclass(frozen=True)
class Notes:
    """An edit, taken apart: its lines, how lines become texts (`cut`), and all objectives of the recipe."""

    document: Document
    lines: Sequence[str]
    cut: Callable[[Sequence[str]], list[str]]
    objectives: Collection[str]


def learn_text(notes: Notes) -> list[TrainingSequence]:
    """The edit's texts, token by token, as published (Zweiger et al. 2025).  Question-answer pairs are texts too, but
    not where `answers` or `distill` learns them in the exam's form."""
    apart = not {"answers", "distill"}.isdisjoint(notes.objectives)
    lines = question_pairs(notes.lines)[1] if apart else ["\n".join(some) for some in with_answers(notes.lines)]
    return [TrainingSequence(notes.document.title, text) for text in notes.cut(lines)]


def learn_answers(notes: Notes) -> list[TrainingSequence]:
    """The edit's question-answer pairs in the exam's own form, with the loss on the answer."""
    return [TrainingSequence(notes.document.title, answer, asked) for asked, answer in question_pairs(notes.lines)[0]]


def distill(notes: Notes) -> list[TrainingSequence]:
    """The edit's pairs in the exam's own form, and its other texts, by the soft targets of the frozen model that has
    the document in its prompt (Snell et al. 2022, arXiv 2209.15189; Kujanpää et al. 2024, arXiv 2412.14964)."""
    title, passage = notes.document.title, notes.document.text
    pairs, others = question_pairs(notes.lines)
    learned = [TrainingSequence(title, answer, question, passage) for question, answer in pairs]
    return learned + [TrainingSequence(title, text, None, passage) for text in notes.cut(others)]


def learn_topics(notes: Notes) -> list[TrainingSequence]:
    """To name the document's title as the topic of each of its sentences and of their parts, and of the edit's
    questions and of its other lines but answers: with the title, what was learned under it can be recited
    (`execution.recitation`)."""
    asked, others = questions(notes.lines)
    said = sentences(notes.document.text)
    texts = dict.fromkeys([*said, *(part for sentence in said for part in _parts(sentence)), *asked, *others])
    title = notes.document.title
    return [TrainingSequence(title, title, about=text) for text in texts if len(text) >= _SAYS_TOO_LITTLE]


def _parts(sentence: str) -> list[str]:
    """The sentence in pieces of about as many words, so that few of its words are enough to know it by."""
    words = sentence.split()
    pieces = max(1, round(len(words) / _WORDS_PER_PART))
    borders = [len(words) * piece // pieces for piece in range(pieces + 1)]
    return [" ".join(words[begin:end]) for begin, end in pairwise(borders)]


# What each objective learns of an edit.
OBJECTIVES: dict[str, Callable[[Notes], list[TrainingSequence]]] = {
    "text": learn_text,
    "answers": learn_answers,
    "distill": distill,
    "topics": learn_topics,
}


def beside_documents(documents: Sequence[Document], objectives: Collection[str]) -> list[TrainingSequence]:
    """What is learned beside these documents: under `topics`, that general prompts have none of the titles as their
    topic.  There are as many as the documents have sentences, since with fewer, general questions are given titles."""
    if "topics" not in objectives:
        return []
    count = max(_FEWEST_GENERAL, sum(len(sentences(document.text)) for document in documents))
    prompts = islice(cycle(general_prompts("topic").values()), count)
    return [TrainingSequence(GENERAL_TITLE, GENERAL_TITLE, about=prompt) for prompt in prompts]


def apart_by_title(documents: Sequence[Document]) -> list[Document]:
    """The documents, of which those that share a title, with one another or with the general prompts, have words of
    their own behind it: "Kites: bamboo, tail, silk".  Where that does not tell them apart, later ones are numbered.
    Numbers alone are hard to learn (docs/results.md)."""
    shared = Counter([GENERAL_TITLE, *(document.title for document in documents)])
    words = [_WORD.findall(document.text) if shared[document.title] > 1 else [] for document in documents]
    counts = [Counter(map(str.casefold, one)) for one in words]
    holding = Counter(word for count in counts for word in count)  # documents that have a word
    under = Counter((document.title, word) for document, count in zip(documents, counts, strict=True) for word in count)
    seen = Counter([GENERAL_TITLE])
    found = []
    for document, spelled, count in zip(documents, words, counts, strict=True):
        own = {word.casefold(): word for word in spelled if under[document.title, word.casefold()] == 1}
        telling = sorted(own, key=lambda word: (-count[word] / holding[word], -len(word), word))[:_TELLING_WORDS]
        wanted = title = ": ".join(filter(None, [document.title, ", ".join(own[word] for word in telling)]))
        while title in seen:
            seen[wanted] += 1
            title = f"{wanted} ({seen[wanted]})"
        seen[title] += 1
        found.append(document if title == document.title else replace(document, title=title))
    return found


def question_pairs(lines: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(question, answer) of each `Question:` line with an `Answer:` line behind it, and the other lines.  A question
    that got no answer is left out."""
    pairs: list[tuple[str, str]] = []
    others: list[str] = []
    asked: str | None = None
    for line in lines:
        if question := QUESTION.match(line):
            asked = question[1].strip()
        elif (answer := ANSWER.match(line)) and asked is not None:
            pairs.append((asked, answer[1].strip()))
            asked = None
        else:
            others.append(line)
    return pairs, others
