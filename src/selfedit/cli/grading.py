"""`selfedit grade`: grades rows of answers, and compares a grader's grades with labels."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfedit.cli import interrupt
from selfedit.errors import UserError
from selfedit.evaluation.check import check_grader, read_graded_rows
from selfedit.evaluation.grade import Grader
from selfedit.evaluation.graders import engine_judge, judge_model, make_grader
from selfedit.evaluation.judge import Ask, api_judge, local_judge
from selfedit.evaluation.statistics import DocumentScore, accuracy_interval, pooled
from selfedit.text import counted

REPLIES = Path("runs/grade")  # where replies of an API are kept as they come: the same command asks for the rest


def check_file(arguments: argparse.Namespace, path: Path, say: Callable[[str], None]) -> Any:
    """Agreement of a grader with labelled rows."""
    rows = read_graded_rows(path)
    with _grader(arguments) as grader:
        report = check_grader(grader, rows)
    say(
        f"{counted(report.n, 'answer')} to {counted(report.questions, 'question')},"
        f" {report.grader} against the labels\n"
        f"agreement: {report.agreement:.1%}\n"
        f"kappa:     {report.kappa:.3f} ({_interval(report.kappa_ci95, '.3f')})\n"
        f"bias:      {100 * report.bias:+.2f} points of accuracy ({_interval(report.bias_ci95, '+.2f', 100)})\n"
        f"ungraded:  {report.ungraded}\n"
        "                 graded right  graded wrong"
    )
    for label, found in report.confusion.items():
        say(f"labelled {label}  {found['right']:>12}  {found['wrong']:>12}")
    return asdict(report)


def _interval(ci95: tuple[float, float] | None, form: str, scale: float = 1.0) -> str:
    if ci95 is None:
        return "no interval: too few questions, or all alike"
    return f"95 % interval {scale * ci95[0]:{form}} to {scale * ci95[1]:{form}}"


def grade_file(arguments: argparse.Namespace, path: Path) -> Any:
    """Writes each row with `value` and `score`; returns counts, and the accuracy with its interval."""
    from selfedit.runs.files import check_writable, write_atomically

    rows = read_graded_rows(path, labelled=False)
    if arguments.out:
        check_writable(Path(arguments.out))  # before a judge is paid
    with _grader(arguments) as grader:
        grades = grader.grade([row.item for row in rows])
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
    # Rows of one title are of one document; those without a title have a question in common at the most.
    scores = pooled(
        (row.title or f"\n{row.question}", DocumentScore(grade.score, 1))
        for row, grade in zip(rows, grades, strict=True)
        if grade.score is not None
    )
    if arguments.out:
        write_atomically(arguments.out, lines)
    elif not arguments.json:
        sys.stdout.write(lines)
    told = ", ".join(f"{counts[value]} {value}" for value in ("right", "wrong", "ungraded"))
    found: dict[str, Any] = {"accuracy": None, "ci95": None}
    shown = ""
    if scores:
        accuracy, low, high = accuracy_interval(scores)
        found = {"accuracy": accuracy, "ci95": [low, high]}
        over = f"{len(scores)} document{'s' * (len(scores) > 1)}"
        shown = f"; accuracy {accuracy:.1%} (95 % interval over {over} {low:.1%} to {high:.1%})"
    print(f"{len(rows)} answers: {told}{shown}", file=sys.stderr)
    return {"n": len(rows), **{value: counts[value] for value in ("right", "wrong", "ungraded")}, **found}


@contextmanager
def _grader(arguments: argparse.Namespace) -> Iterator[Grader]:
    model = judge_model(arguments.grader)
    if model is None:
        yield make_grader(arguments.grader)
        return
    if (engine := engine_judge(model)) is not None:
        if not engine:
            raise UserError("--grader judge:local is a run's own model; here name one: judge:model:NAME")
        yield make_grader(arguments.grader, complete=_engine(engine))
        return
    from selfedit.editors.api import ApiClient
    from selfedit.editors.endpoint import Endpoint
    from selfedit.runs.files import begin_privately
    from selfedit.runs.store import SCHEMA_VERSION, Store

    endpoint = Endpoint(base_url=arguments.api_base, effort=arguments.judge_reasoning_effort)
    endpoint.address(model)  # a missing key is told before anything is written
    begin_privately(REPLIES)
    file = REPLIES / f"replies-{SCHEMA_VERSION}.sqlite"  # what another version wrote is none that this one must read
    with Store(file) as store, closing(ApiClient(model, endpoint, store=store)) as client:
        interrupt.resumable = True
        yield make_grader(arguments.grader, complete=api_judge(lambda: client, lambda reply: None))


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
