"""`report.html`: one self-contained page of a run, or of several side by side.

The templates lie beside this file.  Jinja escapes everything that a document, a model or a user wrote.  A content
security policy forbids every request, every style but the page's own, and all script but the page's own, by its hash.
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

from selfedit.grouping import grouped
from selfedit.reports import documents, findings, format, notes, plots, table
from selfedit.reports.records import RunRecords
from selfedit.runs.costs import Spent
from selfedit.runs.directory import flat
from selfedit.runs.files import write_atomically
from selfedit.runs.summary import ConditionSummary, Summary
from selfedit.text import counted

EXAMPLES = 3
"""Documents whose best and worst edits are shown side by side."""

EVENTS_SHOWN = 40

CURVES_SHOWN = 6


def render_run(run: RunRecords, drawn: Mapping[str, plots.Chart]) -> str:
    """The page of a run, with these charts of it (`plots.charts`)."""
    summary = run.figures
    found = findings.compared(run)
    signals = findings.signals(run)
    names, general = findings.general(run)
    template = _environment().get_template("run.html.jinja")
    return template.render(
        title=f"{run.model or run.name}: {run.procedure or 'run'}",
        run=run,
        summary=summary,
        facts=table.facts(run),
        headline=_headline(found, summary),
        missing=findings.missing(run),
        compared=_compared(found, summary),
        rounds=findings.rounds(run),
        charts=_charts(run, drawn),
        curves=len(run.curves),
        tables=table.tables(run) | {"notes": notes.table(run), "api": table.api_estimates(run)},
        signals=signals,
        examples=findings.best_and_worst(signals, EXAMPLES),
        general_names=names,
        general=general,
        list=documents.document_list(run, found, signals),
        costs=findings.costs(run),
        spent=Spent.of(run.costs),
        counts=_counts(run),
        events=_events(run),
        settings=_flat({key: value for key, value in run.config.items() if key != "recipe_settings"}),
        recipe=_flat(summary.recipe or run.config.get("recipe_settings") or {}),
        versions=_flat(run.versions),
    )


def write_runs(
    runs: Sequence[RunRecords],
    page: Path,
    *,
    rows: Sequence[findings.ModelRow],
    title: str = "",
    bars: Sequence[tuple[str, Sequence[ConditionSummary]]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Writes the page that compares several runs, by these rows of models, with links to the runs' own reports; and
    beside it its grouped bar chart.  A title and bars may be given, and notes on the rows."""
    recipes = {json.dumps(run.figures.recipe, sort_keys=True, default=str) for run in runs if run.figures.recipe}
    entries = [
        {
            "run": run,
            "facts": table.facts(run),
            "compared": _compared(run.figures.conditions, run.figures),
            "missing": findings.missing(run),
            "link": _link(run.path / "report.html", page),
            "recipe": "" if run.figures.sweep else format.recipe_line(run.figures.recipe),
        }
        for run in runs
    ]
    with plots.style():
        side_by_side = ""
        if chart := plots.grouped(bars or _labelled(runs)):
            side_by_side = plots.inline(plots.Chart(chart, "", "Accuracy of each run's conditions"), "grouped")
            plots.save(chart, page.with_suffix(""))
    template = _environment().get_template("runs.html.jinja")
    shown = template.render(
        title=title or f"{len(runs)} runs compared",
        models=table.models(rows),
        notes=notes,
        runs=entries,
        side_by_side=side_by_side,
        # The conditions of a sweep have a recipe each.
        recipes=0 if any(run.figures.sweep for run in runs) else len(recipes),
    )
    write_atomically(page, to_bytes(shown))


def _labelled(runs: Sequence[RunRecords]) -> list[tuple[str, Sequence[ConditionSummary]]]:
    """Each run's conditions so far under its model's name, and its own where one model comes several times."""
    models = [run.model or run.name for run in runs]
    alike = len(set(models)) < len(models)
    labels = [f"{model} ({run.name})" if alike else model for model, run in zip(models, runs, strict=True)]
    return [(label, run.figures.conditions) for label, run in zip(labels, runs, strict=True)]


def _charts(run: RunRecords, shared: Mapping[str, plots.Chart]) -> dict[str, Any]:
    """The charts of the files beside the page, and those of steps, fits and exams on the way.  An empty text where
    there are no figures to draw."""
    earlier = [(s.step, s.earlier.accuracy, s.earlier.ci95) for s in run.figures.steps if s.earlier]
    looks = [(look.step, look.accuracy, look.ci95) for look in run.figures.on_the_way]
    with plots.style():
        drawn = dict(shared)
        for name, points, label in (
            ("steps", earlier, "Accuracy on earlier documents by step; the same figures are in the table"),
            ("looks", looks, "Accuracy by training step"),
        ):
            if figure := plots.line(points, "step", "accuracy, %"):
                drawn[name] = plots.Chart(figure, "", label)
        charts: dict[str, Any] = defaultdict(str)
        charts |= {name: plots.inline(chart, name) for name, chart in drawn.items()}
        charts["matrices"] = [(drawn[name].title, charts[name]) for name in drawn if name.startswith("matrix-")]
        charts["losses"] = []
        for id, curve in [one for one in list(run.curves.items())[:CURVES_SHOWN] if len(one[1]) > 1]:
            fit = next(fit for fit in run.fits if fit.id == id)
            (first, begin), (last, end) = curve[0], curve[-1]
            label = f"Loss of {fit.condition}: {begin:.2f} at step {first}, {end:.2f} at step {last}"
            chart = plots.Chart(plots.loss(curve), "", label)
            charts["losses"].append((fit, plots.inline(chart, f"loss-{len(charts['losses'])}")))
    return charts


def to_bytes(page: str) -> bytes:
    """UTF-8; a lone surrogate, which has none, is written as its escape."""
    return page.encode("utf-8", "backslashreplace")


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("selfedit.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = ("percent", "points", "points_interval", "seconds", "usd", "count")
    environment.filters |= {name: getattr(format, name) for name in numbers}
    environment.filters |= {"fit_line": documents.fit_line, "edit_line": documents.edit_line}
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    environment.globals |= {"style": Markup(style), "script": Markup(script), "policy": policy}
    environment.globals |= {"BASE": documents.BASE, "counted": counted}
    return environment


def _asset(name: str) -> str:
    # A text ends where the template puts it: what is hashed must be what stands between the tags.
    return Path(__file__).with_name("templates").joinpath(name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _headline(conditions: Sequence[ConditionSummary], summary: Summary) -> str:
    """One sentence on the best condition, no stronger than its interval allows; nothing where there is none."""
    reference = findings.reference([condition.name for condition in conditions])
    base = next((condition for condition in conditions if condition.name == reference), None)
    others = [c for c in conditions if c.name != reference and c.accuracy is not None]
    if base is None or base.accuracy is None or not others or summary.documents == 0:
        return ""
    # What was asked about other documents (an earlier run's, say) is not to be compared.
    others = [c for c in others if findings.difference(summary.differences, reference, c.name)] or others
    # What looks answers up is what the others are held against, not a rival of theirs.
    others = [c for c in others if findings.role(c.name) not in findings.REFERENCE_LINES] or others
    best = max(others, key=lambda condition: condition.accuracy or 0.0)
    found = findings.difference(summary.differences, reference, best.name)
    start = (
        f"Accuracy: “{best.name}” {format.percent(best.accuracy)} %, “{reference}” {format.percent(base.accuracy)} %"
    )
    share = ""
    if best.of_open_book is not None and best.name != "open-book":
        share = f" That is {format.percent(best.of_open_book)} % of what “open-book” reaches."
    if found is None:
        return f"{start}.{share}"
    if not found.larger_than_noise:
        few = f"; {found.documents} documents are too few for a finding" if findings.too_few([found]) else ""
        return f"{start}: a difference within noise ({format.points_interval(found.ci95)} points{few}).{share}"
    gain = f"{format.points(found.difference)} points, 95 % interval {format.points_interval(found.ci95)}"
    leads = {c.name: findings.difference(summary.differences, c.name, best.name) for c in others if c is not best}
    rivals = [name for name, lead in leads.items() if lead is not None and not lead.larger_than_noise]
    tied = f" Its lead over {' and '.join(f'“{name}”' for name in rivals)} is within noise." if rivals else ""
    return f"{start}: {gain}.{tied}{share}"


def _compared(conditions: Sequence[ConditionSummary], summary: Summary) -> dict[str, Any]:
    return {
        "conditions": conditions,
        "table": table.conditions_table(conditions, summary.differences, format.count),
        "references": table.references(conditions),
        "intervals": any(condition.ci95 for condition in conditions),
    }


def _counts(run: RunRecords) -> dict[str, int]:
    return {
        "edits": len(run.edits),
        "cut off": sum(edit.truncated for edit in run.edits),
        "lines dropped": sum(edit.dropped_lines for edit in run.edits),
        "fits": sum(bool(fit.sequences) and not fit.recital for fit in run.fits),
        "failed": sum(fit.status == "failed" for fit in run.fits),
        "answers": len(run.answers),
        "ungraded": sum(answer.value == "ungraded" for answer in run.answers),
    }


def _events(run: RunRecords) -> list[tuple[str, int, list[Any]]]:
    """By kind: how many there are, and the first of them.  Kinds that only the summary counts have no list."""
    kinds = grouped((event.kind, event) for event in run.events)
    counted = {kind: len(events) for kind, events in kinds.items()}
    for kind, number in (run.summary.events if run.summary else {}).items():
        counted.setdefault(kind, number)
    return [(kind, number, kinds[kind][:EVENTS_SHOWN]) for kind, number in counted.items()]


def _flat(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) pairs."""

    def shown(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return ", ".join(map(str, value))
        return format.DASH if value is None else str(value)

    return [(name, shown(value)) for name, value in flat(settings).items()]


def _link(target: Path, page: Path) -> str:
    """A relative address from one file to another; nothing where the target is not there or on another tree."""
    there, folder = target.resolve(), page.resolve().parent
    if not there.exists() or not there.is_relative_to(folder):
        return ""
    return "./" + quote(os.fsencode(there.relative_to(folder)))
