"""`report.html`: one self-contained page of a run, or of several side by side.

Knows the records and findings, and the templates beside this file.  Everything that a document, a model or a user wrote
is escaped twice over: Jinja escapes what stands in the page, and what the page's script shows is JSON that it writes as
text, never as HTML.  A content security policy forbids every request and all script but the page's own, by its hash.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from selfedit.reports import findings, format, table
from selfedit.reports.data import Answer, Condition, Edit, Fit, RunData, Summary, finite
from selfedit.runs.costs import Spent
from selfedit.runs.summary import empty_summary

EXAMPLES = 3
"""Documents whose best and worst edits are shown side by side."""

EVENTS_SHOWN = 40

CURVES_SHOWN = 6


def render_run(run: RunData) -> str:
    """The page of one run, finished or not."""
    summary = run.figures
    found = findings.compared(run)
    rounds = findings.rounds(run)
    selected = findings.selected(rounds, run.summary)
    signal = findings.signals(run)
    return _render(
        "run.html.jinja",
        title=f"{run.model or run.name}: {run.procedure or 'run'}",
        run=run,
        summary=summary,
        facts=table.facts(run),
        headline=_headline(found, summary),
        missing=findings.missing(run),
        bars=_bars(found, summary),
        conditions=found,
        reference=findings.reference([condition.name for condition in found]),
        rounds=rounds,
        selected=selected,
        reward_chart=_line_chart([(r.round, r.train_reward, r.train_reward_ci95) for r in rounds]),
        validation_chart=_line_chart([(r.round, r.validation_accuracy, r.validation_ci95) for r in rounds]),
        steps_chart=_line_chart(
            [
                (s.step, s.earlier.accuracy if s.earlier else None, s.earlier.ci95 if s.earlier else None)
                for s in summary.steps
            ]
        ),
        losses=[(curve, chart) for curve in run.curves[:CURVES_SHOWN] if (chart := _loss_chart(curve.points))],
        curves=len(run.curves),
        looks_chart=_line_chart([(look.step, look.accuracy, look.ci95) for look in summary.on_the_way]),
        sweep=summary.sweep,
        swept=list(dict.fromkeys(name for row in summary.sweep for name in row.accuracy)),
        ties=[note for entry in rounds if (note := findings.kept_without_signal(entry))],
        signals=[_strip(entry) for entry in signal],
        examples=findings.best_and_worst(signal, EXAMPLES),
        api_estimates=findings.api_estimates(run) if run.rounds else [],
        changes=findings.changes(run),
        general=_general(run),
        costs=run.costs,
        spent=Spent.of(run.costs),
        counts=_counts(run),
        events=_events(run),
        events_shown=EVENTS_SHOWN,
        settings=_flat({key: value for key, value in run.config.items() if key not in ("versions", "recipe_settings")}),
        recipe=_flat(summary.recipe or run.config.get("recipe_settings") or {}),
        versions=_flat(run.config.get("versions") or {}),
        data=embed(_payload(run, found)),
    )


def render_runs(runs: Sequence[RunData], page: Path) -> str:
    """The page that compares several runs; `page` is where it will be, for links to the runs' own reports."""
    shown = [(run, run.summary or empty_summary(run.model, findings.conditions(run))) for run in runs]
    highest = _ceiling([condition for _, summary in shown for condition in summary.conditions])
    recipes = {
        json.dumps(finite(summary.recipe), sort_keys=True, default=str) for _, summary in shown if summary.recipe
    }
    entries = [
        {
            "run": run,
            "summary": summary,
            "facts": table.facts(run),
            "bars": _bars(summary.conditions, summary, highest),
            "reference": findings.reference([condition.name for condition in summary.conditions]),
            "missing": findings.missing(run),
            "link": _link(run.path / "report.html", page),
            "recipe": format.recipe_line(summary.recipe),
        }
        for run, summary in shown
    ]
    return _render(
        "runs.html.jinja",
        title=f"{len(runs)} runs compared",
        rows=[findings.model_row(run.name, summary.model_copy(update={"model": run.model})) for run, summary in shown],
        runs=entries,
        compared=[entry for entry, (_, summary) in zip(entries, shown, strict=True) if summary.conditions],
        recipes=len(recipes),
    )


def embed(data: Any) -> Markup:
    """`data` as JSON that can stand in a script element: no character in it can end the element or open another."""
    text = json.dumps(finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def to_bytes(page: str) -> bytes:
    """UTF-8; a lone surrogate, which has none, is written as its escape."""
    return page.encode("utf-8", "backslashreplace")


def _render(template: str, **context: Any) -> str:
    return _environment().get_template(template).render(**context)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("selfedit.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "percent",
        "interval",
        "points",
        "points_interval",
        "seconds",
        "usd",
        "count",
        "p_value",
        "recipe_line",
    ):
        environment.filters[name] = getattr(format, name)
    environment.filters["mark"] = table.mark
    environment.globals["estimated_note"] = table.ESTIMATED
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    environment.globals |= {"style": Markup(style), "script": Markup(script), "policy": policy}
    return environment


def _asset(name: str) -> str:
    # A text ends where the template puts it: what is hashed must be what stands between the tags.
    return Path(__file__).with_name("templates").joinpath(name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _headline(conditions: Sequence[Condition], summary: Summary) -> str:
    """One sentence on the best condition, no stronger than its interval allows; nothing where there is none."""
    reference = findings.reference([condition.name for condition in conditions])
    base = next((condition for condition in conditions if condition.name == reference), None)
    others = [c for c in conditions if c.name != reference and c.accuracy is not None]
    if base is None or base.accuracy is None or not others or summary.documents == 0:
        return ""
    best = max(others, key=lambda condition: condition.accuracy or 0.0)
    found = findings.difference(summary.differences, reference, best.name)
    if findings.estimated([base, best]):
        told = [f"{format.percent(c.accuracy)} % ({c.correct} of {c.graded} answers right)" for c in (best, base)]
        start = f"“{best.name}”: estimated accuracy {told[0]}; “{reference}”: {told[1]}"
    else:
        start = (
            f"“{best.name}” answers {format.percent(best.accuracy)} % right, “{reference}” "
            f"{format.percent(base.accuracy)} %"
        )
    if found is None:
        return f"{start}."
    if not found.larger_than_noise:
        few = f"; {found.documents} documents are too few for a finding" if findings.too_few([found]) else ""
        return f"{start}: a difference within noise ({format.points_interval(found.ci95)} points{few})."
    gain = f"{format.points(found.difference)} points, 95 % interval {format.points_interval(found.ci95)}"
    rivals = [c.name for c in others if c is not best and _level(c.name, best.name, summary)]
    tied = f" Its lead over {' and '.join(f'“{name}”' for name in rivals)} is within noise." if rivals else ""
    return f"{start}: {gain}.{tied}"


def _level(name: str, best: str, summary: Summary) -> bool:
    found = findings.difference(summary.differences, name, best)
    return found is not None and not found.larger_than_noise


def _ceiling(conditions: Sequence[Condition]) -> float:
    """The end of the bars' scale: the next ten per cent above the highest interval, at least ten."""
    highest = max([max(c.accuracy or 0.0, c.ci95[1] if c.ci95 else 0.0) for c in conditions], default=0.0)
    return min(1.0, max(0.1, -(-highest * 10 // 1) / 10))


def _bars(conditions: Sequence[Condition], summary: Summary, ceiling: float | None = None) -> dict[str, Any]:
    """Bars and their scale, as percentages of the chart's width."""
    end = ceiling or _ceiling(conditions)
    reference = findings.reference([condition.name for condition in conditions])
    rows: list[dict[str, Any]] = []
    for condition in conditions:
        low, high = condition.ci95 or (None, None)
        rows.append(
            {
                "condition": condition,
                "difference": findings.difference(summary.differences, reference, condition.name),
                "width": _share(condition.accuracy or 0.0, end),
                "low": None if low is None else _share(low, end),
                "high": None if high is None else _share(high, end),
            }
        )
    step = 0.05 if end <= 0.2 else 0.1 if end <= 0.5 else 0.2
    ticks = [round(index * step, 2) for index in range(int(end / step + 1e-9) + 1)]
    marks = {table.mark(row["difference"]) for row in rows}
    return {
        "rows": rows,
        "estimated": findings.estimated(conditions),
        "note": table.noise_note(marks, reference, summary.differences) if summary.differences else "",
        "ticks": [(_share(tick, end), f"{100 * tick:.0f}") for tick in ticks],
    }


def _share(value: float, end: float) -> str:
    return f"{100 * value / end:.2f}"


_PLOT_TOP, _PLOT_BOTTOM = 18.0, 186.0


def _line_chart(entries: Sequence[tuple[int, float | None, tuple[float, float] | None]]) -> dict[str, Any] | None:
    """Points of a curve: across in percent of the width, down in pixels; None where there is nothing to draw."""
    points = [(number, value, ci95) for number, value, ci95 in entries if value is not None]
    if not points:
        return None
    lowest = min(min(value, *(ci95 or ())) if ci95 else value for _, value, ci95 in points)
    highest = max(max(value, *(ci95 or ())) if ci95 else value for _, value, ci95 in points)
    bottom, top = max(0.0, lowest - 0.03), min(1.0, highest + 0.03)

    def down(value: float) -> float:
        return round(_PLOT_BOTTOM - (value - bottom) / (top - bottom) * (_PLOT_BOTTOM - _PLOT_TOP), 1)

    count = len(points)
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.5) if (top - bottom) / step <= 5.5)
    first = int(bottom / step) + (bottom % step > 1e-9)
    ticks = [index * step for index in range(first, int(top / step + 1e-9) + 1)]
    drawn = [
        {
            "round": number,
            "x": f"{10 + 84 * (index + 0.5) / count:.2f}",
            "y": down(value),
            "value": value,
            "ci95": ci95,
            "low": down(ci95[0]) if ci95 else None,
            "high": down(ci95[1]) if ci95 else None,
        }
        for index, (number, value, ci95) in enumerate(points)
    ]
    return {"points": drawn, "ticks": [(down(tick), f"{100 * tick:.0f}") for tick in ticks]}


def _loss_chart(points: Sequence[tuple[int, float]]) -> dict[str, Any] | None:
    """A line from the first step to the last; down in pixels, across in thousandths of the width."""
    if len(points) < 2:
        return None
    top = max(loss for _, loss in points) or 1.0
    first, last = points[0][0], points[-1][0]

    def down(loss: float) -> float:
        return round(_PLOT_BOTTOM - max(0.0, loss) / top * (_PLOT_BOTTOM - _PLOT_TOP), 1)

    line = " ".join(f"{1000 * (step - first) / (last - first):.0f},{down(loss)}" for step, loss in points)
    ticks = [(down(top * k / 4), f"{top * k / 4:.2f}") for k in range(5)]
    return {"line": line, "ticks": ticks, "first": first, "last": last, "begin": points[0][1], "end": points[-1][1]}


def _strip(signal: findings.Signal) -> dict[str, Any]:
    """One round's rewards within documents, drawn like `_line_chart`: a column a document."""
    count = len(signal.documents)

    def down(value: float) -> float:
        return round(_PLOT_BOTTOM - value * (_PLOT_BOTTOM - _PLOT_TOP), 1)

    columns = [
        {
            "x": f"{10 + 88 * (index + 0.5) / count:.2f}",
            "title": entry.document.title,
            "dots": sorted({down(reward) for reward in entry.rewards}),
            "low": down(entry.rewards[0]),
            "high": down(entry.rewards[-1]),
        }
        for index, entry in enumerate(signal.documents)
    ]
    return {"signal": signal, "columns": columns, "ticks": [(down(t / 4), f"{25 * t}") for t in range(5)]}


def _general(run: RunData) -> dict[str, Any]:
    """General questions as rows, conditions as columns: the share of fits that answered right."""
    found = {entry.condition for entry in run.general}
    compared = [condition.name for condition in findings.conditions(run)]
    names = [name for name in dict.fromkeys([findings.BASE, *compared, *sorted(found)]) if name in found]
    rows: dict[str, dict[str, Any]] = {}
    for entry in run.general:
        row = rows.setdefault(entry.question_id, {"question": entry.question, "answers": entry.answers, "by": {}})
        row["by"][entry.condition] = entry
    return {"names": names, "rows": list(rows.values())}


def _counts(run: RunData) -> dict[str, int]:
    return {
        "edits": len(run.edits),
        "truncated": sum(edit.truncated for edit in run.edits),
        "dropped": sum(edit.dropped_lines for edit in run.edits),
        "fits": sum(bool(fit.sequences) for fit in run.fits),
        "failed": sum(fit.failed for fit in run.fits),
        "answers": len(run.answers),
        "ungraded": sum(answer.value == "ungraded" for answer in run.answers),
    }


def _events(run: RunData) -> list[tuple[str, int, list[Any]]]:
    """By kind: how many there are, and the first of them.  Kinds that only the summary counts have no list."""
    kinds: dict[str, list[Any]] = defaultdict(list)
    for event in run.events:
        kinds[event.kind].append(event)
    counted = {kind: len(events) for kind, events in kinds.items()}
    for kind, number in (run.summary.events if run.summary else {}).items():
        counted.setdefault(kind, number)
    return [(kind, number, kinds[kind][:EVENTS_SHOWN]) for kind, number in counted.items()]


def _flat(settings: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) pairs."""
    if not isinstance(settings, Mapping):
        return [(prefix, str(settings))]
    pairs: list[tuple[str, str]] = []
    for key, value in settings.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            pairs += _flat(value, name)
        elif isinstance(value, (list, tuple)):
            pairs.append((name, ", ".join(str(item) for item in value)))
        else:
            pairs.append((name, format.DASH if value is None else str(value)))
    return pairs


def _link(target: Path, page: Path) -> str:
    """A relative address from one file to another; nothing where the target is not there or on another tree."""
    if not target.exists():
        return ""
    try:
        relative = target.resolve().relative_to(page.resolve().parent)
    except ValueError:
        return ""
    return "./" + quote(os.fsencode(relative))


def _payload(run: RunData, conditions: Sequence[Condition]) -> dict[str, Any]:
    """What the page's script shows of each document.  Keys are short: 200 documents have 15,000 answers.

    groups: names of the columns (condition, or round and condition in Step B); documents: see `_document`.
    """
    by_rounds = any(fit.round for fit in run.fits) or any(edit.round for edit in run.edits)
    word = "step" if run.procedure == "continual" else "round"
    order = {condition.name: index for index, condition in enumerate(conditions)}
    groups = sorted(
        {(fit.round, fit.condition) for fit in run.fits} | {(edit.round, edit.writer) for edit in run.edits},
        key=lambda group: (group[1] != findings.BASE, group[0], order.get(group[1], len(order)), group[1]),
    )
    index_of = {group: index for index, group in enumerate(groups)}
    fits_of: dict[str | None, list[Fit]] = defaultdict(list)
    for fit in run.fits:
        fits_of[fit.document_id].append(fit)
    edits_of: dict[str, list[Edit]] = defaultdict(list)
    for edit in run.edits:
        edits_of[edit.document_id].append(edit)
    fit_by_id = {fit.id: fit for fit in run.fits}
    answers_of: dict[str, list[Answer]] = defaultdict(list)
    credit_of: dict[str, list[float]] = defaultdict(list)  # by edit
    for answer in run.answers:
        answers_of[answer.question_id].append(answer)
        edit_id = fit_by_id[answer.fit_id].edit_id
        if edit_id is not None and answer.score is not None:
            credit_of[edit_id].append(answer.score)
    questions_of: dict[str, list[Any]] = defaultdict(list)
    for question in run.questions.values():
        questions_of[question.document_id or ""].append(question)

    def group_of(fit: Fit) -> int:
        return index_of[fit.round, fit.condition]

    def answers(question_id: str) -> list[list[Any]]:
        """[group, text, value, score, how many fits said so, note], like answers of a group merged."""
        merged: dict[tuple[Any, ...], int] = {}
        for answer in answers_of[question_id]:
            score = None if answer.score is None else round(answer.score, 3)
            key = (group_of(fit_by_id[answer.fit_id]), answer.text, answer.value, score, answer.note)
            merged[key] = merged.get(key, 0) + 1
        return [
            [*key[:4], number, key[4]]
            for key, number in sorted(merged.items(), key=lambda item: (item[0][0], -item[1]))
        ]

    def shown_fits(fits: Sequence[Fit], edit_index: Mapping[str, int]) -> tuple[list[list[str]], list[list[Any]]]:
        sequences: dict[tuple[str, ...], int] = {}
        rows = []
        for fit in fits:
            if not fit.sequences and not fit.failed:
                continue  # the base model's exam trained nothing
            rows.append(
                [
                    group_of(fit),
                    edit_index.get(fit.edit_id or "", -1),
                    fit.replicate,
                    fit.error or "failed" if fit.failed else "",
                    sequences.setdefault(fit.sequences, len(sequences)),
                    fit.train_tokens,
                    fit.steps,
                    fit.first_loss,
                    fit.last_loss,
                    round(fit.seconds, 2),
                ]
            )
        return [list(texts) for texts in sequences], rows

    documents = []
    for document in run.documents:
        edits = sorted(edits_of[document.id], key=lambda edit: (index_of[edit.round, edit.writer], edit.index))
        sequences, fits = shown_fits(fits_of[document.id], {edit.id: index for index, edit in enumerate(edits)})
        documents.append(
            {
                "title": document.title,
                "split": document.split,
                "text": document.text,
                "questions": [
                    {"q": question.question, "gold": list(question.answers), "a": answers(question.id)}
                    for question in questions_of[document.id]
                ],
                "edits": [
                    {
                        "g": index_of[edit.round, edit.writer],
                        "i": edit.index,
                        "prompt": edit.prompt,
                        "text": edit.text,
                        "cut": edit.truncated,
                        "dropped": edit.dropped_lines,
                        "tokens": edit.output_tokens,
                        "kept": edit.kept,
                        "score": edit.reward if edit.reward is not None else _mean(credit_of[edit.id]),
                    }
                    for edit in edits
                ],
                "seqs": sequences,
                "fits": fits,
            }
        )
    shared = [fit for fit in fits_of[None] if fit.sequences]
    sequences, fits = shown_fits(shared, {})
    return {
        "groups": [_group_name(number, name, word if by_rounds else "") for number, name in groups],
        "base": index_of.get((0, findings.BASE), -1),
        "documents": documents,
        "shared": {"seqs": sequences, "fits": fits},
    }


def _group_name(number: int, name: str, word: str) -> str:
    """A column's name: the condition, and where there are rounds or steps (`word`), which one."""
    if not word or name == findings.BASE:
        return name
    return f"{word} {number} · {name}" if number else f"before training · {name}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
