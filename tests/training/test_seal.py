"""Cutting as the published code does: edits as they were written, by lines and whole; alone and many together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfedit.documents import Document
from selfedit.errors import UserError
from selfedit.models import load_tokenizer
from selfedit.prompts import Prompts
from selfedit.training.cutting import cut
from selfedit.training.jobs import Jobs
from selfedit.training.objectives import TrainingSequence
from selfedit.training.recipes import Recipe, load_recipe
from selfedit.training.seal import seal_texts
from tiny_world import model_folder

KITE = Document("k", "Kites", " Ada made a kite. It is new. ")
LAMP = Document("l", "Lamps", "Bo made a lamp.")
PAIRS = "Question 1: Who?\nAnswer: Ada\n\nQuestion 2: What?\nAnswer: A kite"


@pytest.mark.parametrize(
    ("edit", "lines"),
    [
        # Marks, repeated lines and a line that was cut off stay; blank lines go.
        ("1. Ada.\n\n 2. Ada. \n- A ki", ["1. Ada.", "2. Ada.", "- A ki"]),
        # A line that announces a list goes if the list's first number follows it, and only then.
        ("Sure, a list:\n1. Ada.\n2. Kite.", ["1. Ada.", "2. Kite."]),
        ("Sure, a list:\n- Ada.\n- Kite.", ["Sure, a list:", "- Ada.", "- Kite."]),
        ("Sure, a list:\n\n1. Ada.", ["1. Ada."]),
        # Numbered questions keep their answers, and the blank line between them.
        (PAIRS, ["Question 1: Who?\nAnswer: Ada\n", "Question 2: What?\nAnswer: A kite"]),
        ("A?\nAnswer: B\nQuestion 2: C?\nAnswer: D", ["Question 1: A?\nAnswer: B", "Question 2: C?\nAnswer: D"]),
        # Without a number they are lines.
        ("Question: Who?\nAnswer: Ada", ["Question: Who?", "Answer: Ada"]),
        ("Ada.\nBo.\n---\nCy.", ["Ada.", "Bo.", "Cy."]),
        ("I think.\nImplications:\n1. Ada.", ["1. Ada."]),
        ("", []),
        (" \n---\n ", []),
    ],
)  # fmt: skip
def test_texts_by_line(edit: str, lines: list[str]) -> None:
    assert seal_texts(edit, by_line=True) == lines
    assert seal_texts(edit, by_line=True, most=1) == lines[:1]


def test_a_whole_edit_is_parted_by_dashes_alone() -> None:
    assert seal_texts(" Sure:\n1. Ada.\n\n2. Bo. ", by_line=False) == ["Sure:\n1. Ada.\n\n2. Bo."]
    assert seal_texts("Ada.\n---\nBo.", by_line=False) == ["Ada.", "Bo."]
    assert seal_texts(PAIRS, by_line=False) == [PAIRS]


def words(text: str) -> int:
    return len(text.split())


def test_the_passage_is_the_last_and_nothing_is_trimmed() -> None:

    def learned(edit: str, **settings: Any) -> list[TrainingSequence]:
        return cut(KITE, edit, Recipe(cutting="seal", **settings), max_tokens=1000, count_tokens=words)

    found = learned(PAIRS)
    assert [one.text for one in found] == [*seal_texts(PAIRS, by_line=True), KITE.text.strip()]
    assert [one.of_document for one in found] == [False, False, True]
    assert [one.text for one in learned("")] == [KITE.text.strip()]
    assert [one.text for one in learned("", document_copies=2)] == [KITE.text.strip()] * 2
    assert [one.text for one in learned(PAIRS, most_texts=1)][1:] == [KITE.text.strip()]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(load_tokenizer(model_folder(tmp_path_factory.getbasetemp())), 1024, Prompts())


def test_one_adapter_for_many_documents_learns_the_passage_with_each_edit(jobs: Jobs) -> None:
    documents, edits = [KITE, LAMP], [("A\nB", "C"), ("D",)]
    _, shown = jobs.job(documents, edits, load_recipe("seal-joint"), seed=0)
    kite, lamp = "Kites\nAda made a kite. It is new.", "Lamps\nBo made a lamp."
    assert shown == ("Kites\nA\nB", kite, "Kites\nC", kite, "Lamps\nD", lamp)
    stepped = load_recipe("seal-joint").with_settings({"steps": 5, "document_copies": 2})
    assert jobs.job(documents, edits, stepped, seed=0)[0].steps == 10, "five for each document"
    # Elsewhere the edits of a document are cut together, and it is learned once.
    _, shown = jobs.job(documents, edits, load_recipe("default").with_settings({"cutting": "whole"}), seed=0)
    assert shown == ("Kites\nA\nB\nC", kite, "Lamps\nD", lamp)


def test_a_chat_model_too_learns_plain_texts(jobs: Jobs) -> None:
    job, _ = jobs.job([LAMP], ["It burns."], load_recipe("seal"), seed=0)
    assert jobs.tokenizer.instruct
    assert [jobs.tokenizer.decode(one.ids) for one in job.sequences] == ["Lamps\nIt burns.", "Lamps\nBo made a lamp."]
    assert all(one.prompt_length == 0 for one in job.sequences)


def test_plain_texts_are_distilled_as_plain_texts(jobs: Jobs) -> None:
    recipe = Recipe(form="text", objectives=("distill",), document_copies=0)
    (one,) = jobs.job([LAMP], ["It burns."], recipe, seed=0)[0].sequences
    end = jobs.tokenizer.hf.eos_token
    assert jobs.tokenizer.hf.decode(one.ids) == f"Lamps\nIt burns.{end}"
    assert jobs.tokenizer.hf.decode(one.teacher) == "Lamps\nBo made a lamp.\n\nLamps\n"


def test_published_cutting_knows_texts_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recipe: cutting = 'seal': goes with objectives text alone"):
        load_recipe("seal").with_settings({"objectives": ["text", "answers"]})
