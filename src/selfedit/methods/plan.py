"""What a run will take, before anything is done: fits, tokens, operations, memory, money, and documents for a finding.

The run is rehearsed: the same method cuts the same tasks and makes the same requests, in a directory that is thrown
away, with the stand-ins of `rehearsal`.  So each figure is the most that the run can take; only replies of an API that
are paid for and cannot be used are asked for again on top.  Beside it stands what is likely: edits as long as they may
be, in lines of 16 tokens, and 4 characters to a token of an API.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfedit.evaluation.statistics import documents_needed
from selfedit.methods.rehearsal import Begins, Counts, Shape, stand_ins
from selfedit.methods.settings import Settings
from selfedit.models import load_outline
from selfedit.runs.directory import RunDirectory

_POINTS = 0.03


@dataclass(frozen=True)
class Plan:
    """The most that a run can take, and what is likely (`..._likely`).

    `fits` has the editor's own too.  Tokens are the whole run's, memory is bytes, operations are multiply-adds counted
    as two; `judge_tokens` are a local judge's; `cost_usd` is the price of `calls` calls of APIs (None: a model's price
    is not known), and `edits_usd` what of it is for edits."""

    documents: int
    questions: int
    fits: int
    answers: int
    train_tokens: int
    train_tokens_likely: int
    write_tokens: int
    answer_tokens: int
    judge_tokens: int
    flops: float
    flops_likely: float
    memory_bytes: int
    calls: int
    cost_usd: float | None
    cost_usd_likely: float | None
    edits_usd: float | None
    documents_for_three_points: int

    def text(self) -> str:
        """The plan for people."""

        def most(amount: str, likely: str) -> str:
            return amount if amount == likely else f"at most {amount}, likely {likely}"

        judged = f", {self.judge_tokens:,} of grades and ratings" if self.judge_tokens else ""
        if not self.calls:
            money = "none"
        elif self.cost_usd is None:
            money = f"at most {self.calls:,} calls; unknown price (no price for the model)"
        else:
            money = (
                f"at most {self.calls:,} calls for {self.cost_usd:,.2f} US dollars, likely {self.cost_usd_likely:,.2f}"
            )
        return "\n".join(
            [
                f"documents        {self.documents:,}, with {self.questions:,} questions",
                f"fits             {self.fits:,}",
                f"training tokens  {most(f'{self.train_tokens:,}', f'{self.train_tokens_likely:,}')}",
                f"written tokens   at most {self.write_tokens:,} of edits, {self.answer_tokens:,} of answers{judged}",
                f"operations       {most(f'{self.flops / 1e15:,.2f}', f'{self.flops_likely / 1e15:,.2f}')} PFLOP",
                f"memory           about {self.memory_bytes / 1e9:,.1f} GB",
                f"APIs             {money}",
                f"to see {100 * _POINTS:.0f} points     {self.documents_for_three_points:,} documents, if"
                " documents vary as is assumed in docs/grading.md",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(method: Callable[..., Any], settings: Settings) -> Plan:
    """Counts what a method (`compare`, `sweep`, `learn`, `train`, `continual`) will do.  Errors: UserError, as the run
    would give."""
    with tempfile.TemporaryDirectory() as folder:
        return rehearse(method, settings, Path(folder) / "run")


def rehearse(method: Callable[..., Any], settings: Settings, out: Path, *, begin_only: bool = False) -> Plan:
    """`plan`, in a directory that stays, for methods that read a run before them.  With `begin_only` it ends before the
    first task, which is enough to find what a user got wrong, and has counted nothing."""
    counts = Counts()
    shape = Shape(
        load_outline(settings.model, instruct=settings.instruct, trust_remote_code=settings.trust_remote_code)
    )
    # What changes no amount is left out.
    aside = {"out": out, "budget": None, "workers": 0, "ray": None, "track": None}
    rehearsed = settings.model_copy(update={k: v for k, v in aside.items() if k in type(settings).model_fields})
    with suppress(Begins):
        method(rehearsed, **stand_ins(settings, shape, counts, begin_only=begin_only))
    with RunDirectory.read(rehearsed.out) as run:
        documents = run.store.documents()
    bytes_each = 2 if settings.dtype == "bfloat16" else 4
    return Plan(
        documents=len(documents),
        questions=sum(len(document.questions) for document in documents),
        fits=counts.fits,
        answers=counts.answers,
        train_tokens=counts.train_tokens,
        train_tokens_likely=counts.train_tokens_likely,
        write_tokens=counts.written["edits"],
        answer_tokens=counts.written["exam"],
        judge_tokens=counts.written["judge"] + counts.written["ratings"],
        flops=float(counts.flops),
        flops_likely=float(counts.flops_likely),
        # An adapter has float32 parameters, gradients and two moments; another model is gone when adapters come.
        memory_bytes=shape.weights * bytes_each + max(counts.beside * bytes_each, counts.together * 16),
        calls=counts.calls,
        cost_usd=counts.cost if counts.priced else None,
        cost_usd_likely=counts.cost_likely if counts.priced else None,
        edits_usd=counts.cost_edits if counts.priced else None,
        documents_for_three_points=documents_needed(_POINTS),
    )
