"""`selfedit grade`: grades rows of answers, and compares a grader's grades with labels."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfedit.errors import UserError
from selfedit.evaluation.check import check_grader, read_graded_rows
from selfedit.evaluation.grade import Grader
from selfedit.evaluation.graders import engine_judge, judge_model, make_grader
from selfedit.evaluation.judge import Ask, api_judge, local_judge


def check_file(arguments: argparse.Namespace, path: Path, say: Callable[[str], None]) -> Any:
    """Agreement of a grader with labelled rows."""
    report = check_grader(_grader(arguments), read_graded_rows(path))
    low, high = report.kappa_ci95
    say(
        f"{report.n} answers to {report.questions} questions, {report.grader} against the labels\n"
        f"agreement: {report.agreement:.1%}\n"
        f"kappa:     {report.kappa:.3f} (95 % interval {low:.3f} to {high:.3f})\n"
        f"bias:      {100 * report.bias:+.2f} points of accuracy\n"
        f"ungraded:  {report.ungraded}\n"
        "                 graded right  graded wrong"
    )
    for label in ("right", "wrong"):
        found = report.confusion[label]
        say(f"labelled {label}  {found.get('right', 0):>12}  {found.get('wrong', 0):>12}")
    return asdict(report)


def grade_file(arguments: argparse.Namespace, path: Path) -> Any:
    """Writes each row with `value` and `score`; returns counts."""
    from selfedit.runs.files import check_writable, write_atomically

    rows = read_graded_rows(path, labelled=False)
    if arguments.out:
        check_writable(Path(arguments.out))  # before a judge is paid
    grades = _grader(arguments).grade([row.item for row in rows])
    lines = "".join(
        json.dumps(
            {
                "title": row.title,
                "question": row.question,
                "gold": row.gold[0] if len(row.gold) == 1 else row.gold,
                "answer": row.answer,
                **({} if row.correct is None else {"correct": row.correct}),
                "value": grade.value,
                "score": grade.score,
                **({"note": grade.note} if grade.note else {}),
            },
            ensure_ascii=False,
        )
        + "\n"
        for row, grade in zip(rows, grades, strict=True)
    )
    counts = Counter(grade.value for grade in grades)
    scores = [grade.score for grade in grades if grade.score is not None]
    if arguments.out:
        write_atomically(arguments.out, lines)
    elif not arguments.json:
        sys.stdout.write(lines)
    told = ", ".join(f"{counts[value]} {value}" for value in ("right", "wrong", "ungraded"))
    accuracy = sum(scores) / len(scores) if scores else None
    shown = "" if accuracy is None else f"; accuracy {accuracy:.1%}"
    print(f"{len(rows)} answers: {told}{shown}", file=sys.stderr)
    return {"n": len(rows), **{value: counts[value] for value in ("right", "wrong", "ungraded")}, "accuracy": accuracy}


def _grader(arguments: argparse.Namespace) -> Grader:
    model = judge_model(arguments.grader)
    if model is None:
        return make_grader(arguments.grader)
    if (engine := engine_judge(model)) is not None:
        if not engine:
            raise UserError("--grader judge:local is a run's own model; here name one: judge:model:NAME")
        return make_grader(arguments.grader, complete=_engine(engine))
    from selfedit.editors.api import ApiClient
    from selfedit.editors.endpoint import Endpoint
    from selfedit.runs.store import Store

    client = ApiClient(
        model, Endpoint(base_url=arguments.api_base, effort=arguments.judge_reasoning_effort), store=Store(None)
    )
    return make_grader(arguments.grader, complete=api_judge(lambda: client, lambda reply: None))


def _engine(name: str) -> Ask:
    from selfedit.execution.pool import InProcess
    from selfedit.execution.tasks import completion_tasks
    from selfedit.execution.worker import ModelSource

    pool = InProcess(ModelSource(name))

    def complete(requests: Any, done: Any, keep: Callable[..., None], fail: Any = None) -> None:
        for task in completion_tasks("judge", (), requests, size=64):
            for result in pool.run([task]):
                for id, completions in task.completions(result).items():
                    keep(id, completions, result.seconds)

    return local_judge(lambda: pool, complete)
