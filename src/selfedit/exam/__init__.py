"""Exams: answers become verdicts, verdicts become scores with error bars.

Graders (`lexical`, `calibrated`, `judge:MODEL`) share one protocol and know strings only.  Nothing here imports torch.
"""

from selfedit.exam.calibrated import CalibratedGrader
from selfedit.exam.check import GraderReport, VerdictRow, check_grader, grade_rows, read_verdict_rows
from selfedit.exam.general import general_questions
from selfedit.exam.graders import DEFAULT_GRADER, judge_model, make_grader
from selfedit.exam.judge import Complete, JudgeGrader, JudgeRequest, check_ungraded
from selfedit.exam.lexical import LexicalGrader
from selfedit.exam.score import Score, score
from selfedit.exam.statistics import (
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
from selfedit.exam.verdict import GradeItem, Grader, Verdict, VerdictValue

__all__ = [
    "DEFAULT_GRADER",
    "CalibratedGrader",
    "Complete",
    "Difference",
    "DocumentScore",
    "GradeItem",
    "Grader",
    "GraderReport",
    "Interval",
    "JudgeGrader",
    "JudgeRequest",
    "LexicalGrader",
    "Score",
    "Verdict",
    "VerdictRow",
    "VerdictValue",
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
    "read_verdict_rows",
    "score",
    "spearman",
]
