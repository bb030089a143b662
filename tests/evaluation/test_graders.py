"""Names of graders, and what importing the package costs."""

import subprocess
import sys

import pytest

from selfedit.errors import UserError
from selfedit.evaluation.graders import GRADERS, judge_model, make_grader
from selfedit.evaluation.judge import JudgeGrader
from selfedit.evaluation.lexical import LexicalGrader


def test_names() -> None:
    assert isinstance(make_grader("lexical"), LexicalGrader)
    judge = make_grader("judge:org/model:free", complete=lambda requests: [])
    assert isinstance(judge, JudgeGrader)
    assert judge.name == "judge:org/model:free"
    assert judge_model("judge:gpt-4.1") == "gpt-4.1"
    assert judge_model("lexical") is None
    for name in GRADERS:
        assert make_grader(name).name == name


@pytest.mark.parametrize("spec", ["", "exact", "judge", "judge:", "judge: ", "lexical:x", "calibrated", "Lexical"])
def test_unknown_names_get_one_line(spec: str) -> None:
    with pytest.raises(UserError, match="--grader") as error:
        make_grader(spec, complete=lambda requests: [])
    assert "\n" not in str(error.value)


def test_a_judge_needs_a_way_to_its_model() -> None:
    with pytest.raises(ValueError, match="callable"):
        make_grader("judge:gpt-4.1")


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, selfedit.evaluation.graders as graders; from selfedit.evaluation.grade import GradeItem;"
        "graders.make_grader('lexical').grade([GradeItem('q', ('g',), 'g')]);"
        "print(sorted({'torch', 'transformers', 'openai'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
