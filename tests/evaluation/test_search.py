"""Which document a question is about, and that most questions are about none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfedit.documents import Document, load_documents
from selfedit.evaluation.general import GENERAL_TITLE, general_questions
from selfedit.evaluation.search import Search

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "squad-val200.jsonl"


def about(texts: list[str], asked: str) -> str | None:
    found = Search([Document(name, "", text) for name, text in zip("abcdefgh", texts, strict=False)]).about(asked)
    return found and found.id


TEXTS = [
    "Ada made a kite in Oslo. It cost 3 coins and the wind took it.",
    "Bo made a lamp in Lima. It cost 4 coins and the wind took it.",
    "Cy made a drum in Rome. It cost 5 coins and the wind took it.",
    "Dee made a boat in Bonn. It cost 6 coins and the wind took it.",
]


def test_a_question_is_about_the_document_with_enough_rare_words() -> None:
    assert about(TEXTS, "Where did Bo make the lamp, if not in Lima?") == "b"
    assert about(TEXTS, "Was the drum that Cy made in Rome a good one?") == "c"


@pytest.mark.parametrize(
    "asked",
    [
        "What is the capital of France?",
        "It cost 7 coins and the wind took it, in a town",  # words that all have
        "Who wrote of a kite?",  # one rare word is not enough
        "",
        "?!",
    ],
)
def test_a_question_is_about_none_where_it_shares_what_all_share(asked: str) -> None:
    assert about(TEXTS, asked) is None


def test_documents_without_words_are_about_nothing() -> None:
    assert about(["", "..."], "Where is Oslo?") is None


def test_of_equal_documents_the_latest_is_taken() -> None:
    assert about([TEXTS[1], TEXTS[0], TEXTS[0], *TEXTS[2:]], "Did Ada see her kite in Oslo, Ada's Oslo kite?") == "c"


@pytest.mark.skipif(not SHARED.exists(), reason="the data of other projects is not here")
def test_on_squad_most_questions_find_their_passage_and_few_general_ones_any() -> None:
    documents = load_documents([str(SHARED)], limit=100, seed=0)
    search = Search(documents)
    found = [
        (found := search.about(f"{document.title}\n{question.question}")) is not None and found.id == document.id
        for document in documents
        for question in document.questions
    ]
    general = [search.about(f"{GENERAL_TITLE}\n{q.question}") is not None for q in general_questions()]
    assert sum(found) > 0.85 * len(found)
    assert sum(general) < 0.05 * len(general)


def test_searching_does_not_start_jax(tmp_path: Path) -> None:
    """JAX, where it is installed, takes most of a GPU's memory when it is imported, and bm25s imports it if it can."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("print('started')")
    told = (
        "from selfedit.documents import Document; from selfedit.evaluation.search import Search\n"
        "print(Search([Document('a', '', 'a kite'), Document('b', '', 'a lamp')]).best('which lamp', 1)[0].id)\n"
        "import sys; print('jax' in sys.modules)"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-c", told], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["b", "False"]
