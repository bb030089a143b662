"""The API clients of a run, and its grading: by a rule, by a judge behind an API, or by a model of the engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from selfedit.editors.api import ApiClient
from selfedit.editors.replies import ApiResult
from selfedit.evaluation.grade import Grader
from selfedit.evaluation.graders import engine_judge
from selfedit.evaluation.grading import Grading
from selfedit.evaluation.judges import api_judge, local_judge
from selfedit.methods.resuming import completer
from selfedit.runs.records import CostRecord

if TYPE_CHECKING:
    from selfedit.methods.run import Run

Role = Literal["editor", "judge"]


def make_client(run: Run, model: str, role: Role) -> ApiClient:
    """A client as the settings ask for.  Errors: UserError, also where there is a budget and the model has no price."""
    return ApiClient(
        model,
        run.settings.endpoint(role),
        store=run.store,
        price=run.ledger.price(model),
        budget=run.ledger.budget,
        on_poll=lambda batch, status, done, total: run.progress.note(f"batch {batch}: {status}, {done} of {total}"),
    )


def make_grading(run: Run, make_grader: Callable[..., Grader]) -> Grading:
    settings, judge = run.settings, run.judge
    grading = partial(Grading, run.store, max_ungraded=settings.max_ungraded, begin=run.progress.begin)
    if judge is None:
        return grading(grader=make_grader(settings.grader))
    if (model := engine_judge(judge)) is not None:
        # It is asked about one adapter's answers together, whatever else is to be graded, so that a request's
        # neighbours are the same in a resumed run.
        spent: list[CostRecord] = []
        complete = completer(
            run,
            "judge",
            lambda seconds: spent.append(run.ledger.time("grading", "grading", seconds, model=model)),
            model=model,
        )
        ask = local_judge(lambda: run.reader(model), complete)
        grader = make_grader(settings.grader, complete=ask, prompts=run.prompts)
        return grading(grader=grader, together="fit", spent=spent)

    def book(result: ApiResult) -> None:
        if not run.grading.beside:
            run.progress.advance(1)
        run.ledger.book("grading", "grading", judge, result)

    ask = api_judge(lambda: run.client(judge, "judge"), book)
    grader = make_grader(settings.grader, complete=ask, prompts=run.prompts)
    # A batch takes hours, however many requests are in it.
    return grading(grader=grader, together="all" if settings.endpoint("judge").batch else "chunk")
