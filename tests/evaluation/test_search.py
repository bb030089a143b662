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
        "Who wrote of a kite, or sang of a kite, or spoke of a kite?",  # nor is it when it is said again
        "",
        "?!",
    ],
)
def test_a_question_is_about_none_where_it_shares_what_all_share(asked: str) -> None:
    assert about(TEXTS, asked) is None


def test_a_follow_up_is_about_the_document_of_the_talk_with_fewer_words() -> None:
    search = Search([Document(name, "", text) for name, text in zip("abcd", TEXTS, strict=True)])
    asked, other = "Where did Bo make the lamp, if not in Lima?", "Was the drum that Cy made in Rome a good one?"
    follow = "Who has written of Bo's lamp?"
    assert search.about(follow) is None
    assert search.about(follow, [asked]) is search.documents[1]
    assert search.about(follow, [asked, "Thanks!"]) is search.documents[1]
    assert search.about(follow, [asked, other]) is None, "the talk is about something else by now"
    assert search.about("Who has written of Cy's drum?", [asked]) is None
    assert search.about("What is the capital of France?", [asked]) is None


@pytest.mark.parametrize(
    ("asked", "document"),
    [
        ("谁重建了伊尔莫桥的桥墩？", "bridge"),
        ("海藻每公斤多少钱？", "kelp"),
        ("拉斯滕市图书馆的馆长是谁？", "library"),
        ("中国的首都是哪里？", None),
        ("太阳系最大的行星是什么？", None),
    ],
)
def test_scripts_without_blanks_are_searched_too(asked: str, document: str | None) -> None:
    texts = {
        "bridge": "塔恩河上的伊尔莫桥于三月三日重新开放。工程师奥达·布里克斯用玄武岩重建了桥墩。",
        "union": "芬内堡的面包师工会在五月投票决定每天早上五点开始工作。会长是玛尔塔·科尔。",
        "kelp": "科林岛的渔民建起了第一座海藻农场。海藻被卖给一家公司，每公斤六欧元。",
        "library": "拉斯滕市图书馆取消了逾期罚款。馆长李安娜希望更多孩子回来借书。",
    }
    found = Search([Document(id, "", text) for id, text in texts.items()]).about(asked)
    assert (found and found.id) == document


def test_words_are_compared_as_graders_compare_them() -> None:
    assert about([*TEXTS[:3], "Beyoncé sold 3,000 records in Bonn."], "Did Beyonce sell 3000 records?") == "d"


def test_documents_without_words_are_about_nothing() -> None:
    assert about(["", "..."], "Where is Oslo?") is None


def test_of_equal_documents_the_latest_is_taken() -> None:
    assert about([TEXTS[1], TEXTS[0], TEXTS[0], *TEXTS[2:]], "The kite Ada made in Oslo: 3 coins?") == "c"


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
