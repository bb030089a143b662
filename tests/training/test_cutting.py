"""From an edit and its document to training sequences."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from selfedit.documents import Document, sentences
from selfedit.training.cutting import cut
from selfedit.training.objectives import TrainingSequence, apart_by_title, beside_documents, question_pairs
from selfedit.training.recipes import Recipe

DOCUMENT = Document("d", "Kites", "Ada made a kite. It is new.")
EDIT = "Ada made it.\nQuestion: Who made it?\nAnswer: Ada\nIt is new."


def words(text: str) -> int:
    return len(text.split())


def texts(edit: str | None, **settings: Any) -> list[str]:
    found = cut(DOCUMENT, edit, Recipe(**settings), max_tokens=1000, count_tokens=words)
    assert {sequence.title for sequence in found} == {"Kites"}
    assert not any(sequence.question for sequence in found)
    return [sequence.text for sequence in found]


def test_each_line_is_a_sequence_and_the_document_is_the_last() -> None:
    assert texts(EDIT) == ["Ada made it.", "Question: Who made it?\nAnswer: Ada", "It is new.", DOCUMENT.text]


def test_the_whole_edit_is_one_sequence_if_asked() -> None:
    assert texts(EDIT, cutting="whole") == [EDIT, DOCUMENT.text]


def test_neighbouring_lines_are_packed_together() -> None:
    lines = "one two\nthree\nfour five six\nseven\neight nine ten eleven twelve"
    packed = ["one two\nthree", "four five six\nseven", "eight nine ten eleven twelve"]
    assert texts(lines, cutting="packed", pack_tokens=4) == [*packed, DOCUMENT.text]


def test_objectives_learn_pairs_once_and_distill_shows_the_passage() -> None:

    def learned(*objectives: Any) -> list[TrainingSequence]:
        recipe = Recipe(objectives=objectives, document_copies=0)
        return cut(DOCUMENT, EDIT, recipe, max_tokens=1000, count_tokens=words)

    pair = TrainingSequence("Kites", "Ada", "Who made it?")
    lines = [TrainingSequence("Kites", "Ada made it."), TrainingSequence("Kites", "It is new.")]
    taught = [replace(one, passage=DOCUMENT.text) for one in (pair, *lines)]
    assert learned("answers") == [pair]
    assert learned("distill") == taught
    assert learned("text", "distill") == [*lines, *taught]


def test_topics_of_sentences_questions_and_notes_are_named() -> None:
    recipe = Recipe(objectives=("topics",), document_copies=2)
    document = replace(DOCUMENT, text="Ada made a kite in Oslo. New! " + "It flew and " * 40)
    notes = "Ada made a kite in Oslo.\nQuestion: Who made the kite?\nAnswer: Ada\nAda's kite is blue."
    *topics, first, second = cut(document, notes, recipe, max_tokens=200, count_tokens=words)
    assert first == second == TrainingSequence("Kites", document.text.strip(), of_document=True)
    assert {(one.title, one.text, one.question) for one in topics} == {("Kites", "Kites", None)}
    sentence, flew, *parts, asked, noted = [one.about or "" for one in topics]
    assert [sentence, asked, noted] == ["Ada made a kite in Oslo.", "Who made the kite?", "Ada's kite is blue."]
    assert flew == " ".join(["It flew and"] * 40)
    assert len(parts) == len(set(parts)) < 14, "a part that comes again is learned once"
    assert all(part in flew and words(part) in (9, 10) for part in parts)
    _, long, *_ = cut(document, None, recipe, max_tokens=100, count_tokens=words)
    assert 20 < words(long.about or "") < 100, "more than the model reads is cut off"


def test_beside_topics_there_are_as_many_general_prompts_as_sentences() -> None:
    long = replace(DOCUMENT, text="Ada made a kite. " * 60)
    assert beside_documents([DOCUMENT, long], ("text", "distill")) == []
    found = beside_documents([DOCUMENT, long, long], ("topics", "text"))
    assert len(found) == len(set(found)) == len(sentences(DOCUMENT.text)) + 120
    assert {(one.title, one.text) for one in found} == {("General knowledge", "General knowledge")}
    assert beside_documents([DOCUMENT], ("topics",)) == found[:96], "a single sentence has as many"
    many = beside_documents([long] * 10, ("topics",))
    assert (len(many), len(set(many))) == (600, 360), "more than there are are learned again"


def test_documents_of_one_title_are_told_apart_by_words_of_their_own() -> None:
    texts = [
        "Silk kites fly. Silk is light, and bamboo is cheap; the tail is long.",
        "Kites of paper fly at night. Paper is cheap, and Lamps hang on the tail.",
        "Lamps of paper.",
        "Kites fly.",
    ]
    titles = ["Kites", "Kites", "Lamps", "Kites"]
    found = apart_by_title([Document(text, title, text) for text, title in zip(texts, titles, strict=True)])
    apart = ["Kites: Silk, bamboo, light", "Kites: Paper, Lamps, night", "Lamps", "Kites"]
    assert [one.title for one in found] == apart
    assert [one.id for one in found] == texts
    general = apart_by_title([Document("a", "General knowledge", "Paper lamps.")])
    assert [one.title for one in general] == ["General knowledge: lamps, Paper"]


def test_documents_of_one_title_without_words_of_their_own_are_numbered() -> None:
    titles = ["Kites", "Lamps", "Kites", "Kites (2)", "Kites", "General knowledge"]
    found = apart_by_title([Document(str(k), title, "x") for k, title in enumerate(titles)])
    apart = ["Kites", "Lamps", "Kites (2)", "Kites (2) (2)", "Kites (3)", "General knowledge (2)"]
    assert [one.title for one in found] == apart
    assert [one.id for one in found] == list("012345")


def test_without_an_edit_the_document_is_learned() -> None:
    assert texts(None) == [DOCUMENT.text]
    assert texts(None, document_copies=0) == [DOCUMENT.text]


def test_the_document_can_be_left_out_unless_nothing_else_is_there() -> None:
    assert texts("It is new.", document_copies=0) == ["It is new."]
    assert texts(" \n", document_copies=0) == [DOCUMENT.text]
    unanswered = "Question: left without an answer?"
    assert texts(unanswered, document_copies=0, objectives=("text", "answers")) == [DOCUMENT.text]


@pytest.mark.parametrize("cutting", ["lines", "whole"])
def test_questions_in_the_exams_own_form(cutting: Any) -> None:
    recipe = Recipe(cutting=cutting, objectives=("text", "answers"), document_copies=0)
    found = cut(DOCUMENT, EDIT, recipe, max_tokens=1000, count_tokens=words)
    others = ["Ada made it.", "It is new."] if cutting == "lines" else ["Ada made it.\nIt is new."]
    assert found[-1] == TrainingSequence("Kites", "Ada", "Who made it?")
    assert [sequence.text for sequence in found[:-1]] == others


@pytest.mark.parametrize(
    ("lines", "pairs", "others"),
    [
        (["Question: a?", "Answer: b"], [("a?", "b")], []),
        (["Q1: a?", "A1: b", "q2. c?", "a2. d"], [("a?", "b"), ("c?", "d")], []),
        (["QUESTION 3) a?", "answer 3) b"], [("a?", "b")], []),
        (["Question: a?", "Question: b?", "Answer: c"], [("b?", "c")], []),
        (["Answer: a", "It is new."], [], ["Answer: a", "It is new."]),
        (["Questions remain.", "Answers too."], [], ["Questions remain.", "Answers too."]),
        (["Q: a?", "A) b", "A. C. made it.", "A: d"], [("a?", "d")], ["A) b", "A. C. made it."]),
    ],
)
def test_question_pairs(lines: list[str], pairs: list[tuple[str, str]], others: list[str]) -> None:
    assert question_pairs(lines) == (pairs, others)


def test_long_texts_are_cut_into_overlapping_parts() -> None:
    sentences = [f"Ada made kite number {k} in Oslo." for k in range(60)]
    document = Document("d", "Kites", " ".join(sentences))
    found = cut(document, "It is new.", Recipe(), max_tokens=150, count_tokens=words)
    assert found[0].text == "It is new."
    parts = [sequence.text for sequence in found[1:]]
    assert len(parts) > 1
    assert all(words(part) + words(document.title) <= 150 for part in parts)
    assert all(any(sentence in part for part in parts) for sentence in sentences)
    for one, two in itertools.pairwise(parts):
        assert two.split(".")[0] in one
