"""What a run will take, before anything is done: fits, tokens, operations, memory, money, and documents for a finding.

The run is rehearsed: the same method cuts the same tasks and makes the same requests, in a directory that is thrown
away, with the stand-ins of `rehearsal`.  So each figure is the most that the run can take; only replies of an API that
are paid for and cannot be used are asked for again on top.  Beside it stands what is likely: edits as long as they may
be, in lines of 16 tokens, and 4 characters to a token of an API.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfedit.evaluation.statistics import documents_needed
from selfedit.methods.rehearsal import Shape, stand_ins
from selfedit.methods.settings import Settings
from selfedit.models import load_outline
from selfedit.runs.directory import RunDirectory
from selfedit.text import counted

_POINTS = 0.03


@dataclass
class Plan:
    """The most that a run can take, and what is likely (`..._likely`).

    `fits` has the editor's own too.  Tokens are the whole run's, memory is bytes, operations are multiply-adds counted
    as two; `judge_tokens` are a local judge's; `cost_usd` is the price of `calls` calls of APIs (None: a model's price
    is not known), and `edits_usd` what of it is for edits."""

    documents: int = 0
    questions: int = 0
    fits: int = 0
    answers: int = 0
    train_tokens: int = 0
    train_tokens_likely: int = 0
    write_tokens: int = 0
    answer_tokens: int = 0
    judge_tokens: int = 0
    flops: int = 0
    flops_likely: int = 0
    memory_bytes: int = 0
    calls: int = 0
    cost_usd: float | None = 0.0
    cost_usd_likely: float | None = 0.0
    edits_usd: float | None = 0.0
    documents_for_three_points: int = documents_needed(_POINTS)

    def text(self) -> str:

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
                f"documents        {self.documents:,}, with {counted(self.questions, 'question')}",
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


def plan(method: Callable[..., Any], settings: Settings) -> Plan:
    """Counts what a method (`compare`, `sweep`, `learn`, `train`, `continual`) will do.  Errors: UserError, as the run
    would give."""
    with tempfile.TemporaryDirectory() as folder:
        return rehearse(method, settings, Path(folder) / "run")


def rehearse(method: Callable[..., Any], settings: Settings, out: Path) -> Plan:
    """`plan`, in a directory that stays, for methods that read a run before them."""
    found = Plan()
    shape = Shape(
        load_outline(settings.model, instruct=settings.instruct, trust_remote_code=settings.trust_remote_code)
    )
    # What changes no amount is left out.
    aside = {"out": out, "budget": None, "workers": 0, "ray": None, "track": None}
    rehearsed = settings.model_copy(update={k: v for k, v in aside.items() if k in type(settings).model_fields})
    method(rehearsed, **stand_ins(settings, shape, found))
    with RunDirectory.read(rehearsed.out) as run:
        documents = run.store.documents()
    found.documents = len(documents)
    found.questions = sum(len(document.questions) for document in documents)
    return found
