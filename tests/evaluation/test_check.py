"""Agreement of a grader with labelled grades, and the files they are read from."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from selfedit.errors import UserError
from selfedit.evaluation.check import GradedRow, check_grader, read_graded_rows
from selfedit.evaluation.grade import Grade, GradeItem
from selfedit.evaluation.lexical import LexicalGrader

ROW = {"title": "Otrar", "question": "Which town?", "gold": "Otrar", "answer": "Otrar", "correct": True}


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Scripted:
    """Returns the grades it was made with."""

    name = "scripted"

    def __init__(self, scores: Sequence[float | None]) -> None:
        self.scores = scores

    def grade(self, items: Sequence[GradeItem]) -> list[Grade]:
        return [
            Grade("ungraded", None, self.name, "no reply")
            if score is None
            else Grade("right" if score >= 0.5 else "wrong", score, self.name)
            for score in self.scores
        ]


def test_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    second = {"question": "Who?", "gold": ["Anna", "Anna Lee"], "answer": "", "correct": False}
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps(second) + "\n", encoding="utf-8")
    found = read_graded_rows(path)
    assert found == [GradedRow.model_validate(ROW), GradedRow.model_validate(second)]
    assert [row.title for row in found] == ["Otrar", ""]
    assert found[0].item == GradeItem("Which town?", ("Otrar",), "Otrar")
    assert found[1].item == GradeItem("Who?", ("Anna", "Anna Lee"), "")


def without(name: str) -> dict[str, object]:
    return {k: v for k, v in ROW.items() if k != name}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without("question"), "question: is missing"),
        (without("gold"), "gold: is missing"),
        (without("answer"), "answer: is missing"),
        (without("correct"), "correct must be true or false"),
        ({**ROW, "question": " "}, "question: is empty"),
        ({**ROW, "gold": []}, "gold: List should have at least 1"),
        ({**ROW, "gold": ["a", ""]}, r"gold\[1\]: is empty"),
        ({**ROW, "answer": 7}, "answer: Input should be a valid string"),
        ({**ROW, "correct": "yes"}, "correct: Input should be a valid boolean"),
        ({**ROW, "answer": "\ud83d"}, "answer: holds half a character"),
        ({**ROW, "gold": ["a", "\ud83d"]}, r"gold\[1\]: holds half a character"),
        ([1], "must be an object"),
    ],
)
def test_a_bad_row_gets_one_line_with_its_number(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "rows.jsonl", [ROW, row])
    with pytest.raises(UserError, match=message) as error:
        read_graded_rows(path)
    assert str(error.value).startswith(f"{path}, row 2: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("\n", "the file is empty"), (json.dumps(ROW) + '\n{"question": "Wh', "line 2: not valid JSON")],
)
def test_a_file_without_rows_gets_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_graded_rows(tmp_path / "rows.jsonl")


def test_rows_to_be_graded_need_no_label(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [without("correct")])
    (row,) = read_graded_rows(path, labelled=False)
    assert row.correct is None
    assert LexicalGrader().grade([row.item])[0].value == "right"


def test_the_report_counts_what_it_says(tmp_path: Path) -> None:
    labels = [True, True, True, False, False, False]
    rows = read_graded_rows(
        write(tmp_path / "r.jsonl", [{**ROW, "question": f"Q{i // 2}", "correct": c} for i, c in enumerate(labels)])
    )
    report = check_grader(Scripted([0.9, 0.8, 0.3, 0.2, 0.6, None]), rows)
    assert (report.grader, report.n, report.ungraded, report.questions) == ("scripted", 5, 1, 3)
    assert report.confusion == {"right": {"right": 2, "wrong": 1}, "wrong": {"right": 1, "wrong": 1}}
    assert report.agreement == pytest.approx(0.6)
    # Chance: 3/5 labelled right, 3/5 said right.
    assert report.kappa == pytest.approx((0.6 - 0.52) / 0.48)
    assert report.bias == pytest.approx(2.8 / 5 - 3 / 5)
    assert report.kappa_ci95 is report.bias_ci95 is None, "three questions give no interval"
    plain = json.loads(json.dumps(asdict(report)))
    assert {"agreement", "kappa", "kappa_ci95", "bias", "n"} <= set(plain)
    many = [row.model_copy(update={"question": f"{n}/{k}"}) for n, row in enumerate(rows[:5]) for k in range(8)]
    found = check_grader(Scripted([score for score in (0.9, 0.8, 0.3, 0.2, 0.6) for _ in range(8)]), many)
    assert (found.questions, found.kappa, found.bias) == (40, pytest.approx(report.kappa), pytest.approx(report.bias))
    for figure, ci95 in ((found.kappa, found.kappa_ci95), (found.bias, found.bias_ci95)):
        assert ci95 is not None
        assert ci95[0] < figure < ci95[1]


def test_nothing_graded_is_an_error(tmp_path: Path) -> None:
    rows = read_graded_rows(write(tmp_path / "r.jsonl", [ROW]))
    with pytest.raises(UserError, match="no reply"):
        check_grader(Scripted([None]), rows)


def test_a_grader_that_loses_answers_is_a_bug(tmp_path: Path) -> None:
    rows = read_graded_rows(write(tmp_path / "r.jsonl", [ROW, ROW]))
    with pytest.raises(ValueError, match="shorter"):
        check_grader(Scripted([1.0]), rows)
