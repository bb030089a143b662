"""Exams: answers become grades, grades become scores with error bars.

Graders (`lexical`, `judge:MODEL`) share one protocol and know strings only.  Nothing here imports torch.
"""

from selfedit.evaluation.check import GradedRow, GraderReport, check_grader, grade_rows, read_graded_rows
from selfedit.evaluation.general import general_questions
from selfedit.evaluation.grade import Grade, GradeItem, Grader, GradeValue
from selfedit.evaluation.graders import GRADERS, judge_model, make_grader
from selfedit.evaluation.judge import Complete, JudgeGrader, JudgeRequest, check_ungraded
from selfedit.evaluation.lexical import LexicalGrader
from selfedit.evaluation.score import Score, score
from selfedit.evaluation.statistics import (
    Difference,
    DocumentScore,
    Interval,
    accuracy_interval,
    assumed_deviation,
    bootstrap,
    cohen_kappa,
    difference_deviation,
    documents_needed,
    kappa_interval,
    paired_difference,
    spearman,
)

__all__ = [
    "GRADERS",
    "Complete",
    "Difference",
    "DocumentScore",
    "Grade",
    "GradeItem",
    "GradeValue",
    "GradedRow",
    "Grader",
    "GraderReport",
    "Interval",
    "JudgeGrader",
    "JudgeRequest",
    "LexicalGrader",
    "Score",
    "accuracy_interval",
    "assumed_deviation",
    "bootstrap",
    "check_grader",
    "check_ungraded",
    "cohen_kappa",
    "difference_deviation",
    "documents_needed",
    "general_questions",
    "grade_rows",
    "judge_model",
    "kappa_interval",
    "make_grader",
    "paired_difference",
    "read_graded_rows",
    "score",
    "spearman",
]
