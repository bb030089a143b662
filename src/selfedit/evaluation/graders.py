"""From a name to a grader: `lexical`, or a judge: `judge:MODEL` of an API, `judge:model:NAME` or `judge:local` of our
engine.

A further grader that needs no model is a class in a file of its own and a line in `GRADERS`.
"""

from __future__ import annotations

from collections.abc import Callable

from selfedit.errors import UserError
from selfedit.evaluation.grade import Grader
from selfedit.evaluation.judge import Ask, JudgeGrader
from selfedit.evaluation.lexical import LexicalGrader
from selfedit.prompts import Prompts

_ENGINE = "model:"
GRADERS: dict[str, Callable[[], Grader]] = {"lexical": LexicalGrader}


def judge_model(spec: str) -> str | None:
    """The model that `judge:MODEL` names; None for a grader that needs none.  Raises UserError on anything unknown."""
    kind, colon, model = spec.partition(":")
    if kind == "judge" and model.strip() not in ("", _ENGINE):
        return model.strip()
    if kind == "judge":
        raise UserError("--grader judge: no model named; write judge:MODEL, for instance judge:gpt-4.1")
    if colon or kind not in GRADERS:
        raise UserError(f"--grader {spec}: unknown grader; choose {', '.join(GRADERS)} or judge:MODEL")
    return None


def engine_judge(judge: str | None) -> str | None:
    """Which model of the engine a judge's name means: that of `model:NAME`, or "", a run's own, for `local`; None for
    another judge, or none."""
    if judge == "local":
        return ""
    return judge.removeprefix(_ENGINE).strip() if judge is not None and judge.startswith(_ENGINE) else None


def make_grader(spec: str, *, complete: Ask | None = None, prompts: Prompts | None = None) -> Grader:
    """The grader of that name.  `judge:MODEL` needs `complete`, and asks with the built-in prompt unless `prompts` are
    given.

    Raises UserError on an unknown name, ValueError for a judge without `complete`.
    """
    model = judge_model(spec)
    if model is None:
        return GRADERS[spec]()
    if complete is None:
        raise ValueError("a judge needs a callable that reaches its model")
    return JudgeGrader(complete, model, prompts or Prompts())
