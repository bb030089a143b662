"""The table, chart and page of a reproduction: its runs' own figures, and beside them those that others report
(`published.yaml`), marked so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from selfedit.editors.spec import EditorSpec
from selfedit.reports import findings, html, table
from selfedit.reports.console import print_wide
from selfedit.reports.findings import ModelRow
from selfedit.reports.records import RunRecords, read_run
from selfedit.runs.costs import Spent
from selfedit.runs.files import write_atomically
from selfedit.runs.summary import ConditionSummary, DifferenceSummary
from selfedit.text import one_line
from selfedit.yaml_file import read_shipped

BARS = {
    "none": "no adaptation",
    "untrained": "untrained editor",
    "trained": "trained editor",
    "external": "external editor",
}


@dataclass(frozen=True)
class Table:
    """`rows` with the runs of `train` and `compare` that they are made of (none for a reported one), and notes."""

    rows: Sequence[ModelRow]
    runs: Sequence[RunRecords]
    notes: Sequence[str]


def read_reproduction(out: Path, names: Mapping[str, str], *, external: bool, reported: bool) -> Table:
    """The rows of the runs below `out`, by folder; `names` are the rows'.  `external`: the last editor of each
    comparison is the external one.

    Errors: UserError where a run cannot be read.
    """
    rows, runs, notes = [], [], []
    written: float | None = None
    for folder, name in names.items():
        trained, compared = read_run(out / folder / "train"), read_run(out / folder / "compare")
        row = findings.model_row("", compared.figures)
        theirs = None
        if external:
            condition = EditorSpec.parse(str(compared.config["editor"][-1])).name
            theirs = next((one for one in compared.figures.conditions if one.name == condition), None)
            lines = [cost for cost in compared.costs if (cost.condition, cost.what) == (condition, "edits")]
            # What is replayed was written, and paid for, in a run before.
            written = Spent.of(lines).usd if lines else written
        usd = Spent.of(trained.costs).usd
        rows.append(replace(row, model=name, external=theirs, trained_usd=usd, external_usd=written))
        runs += [trained, compared]
        if trained.figures.selected_round == 0:
            notes.append(
                f"{name}: validation selected the untrained editor (round 0); the trained editor shown is the last"
                " round's."
            )
        if trained.figures.selected_on == "test":
            notes.append(f"{name}: the round was selected on the test documents: its figure on them is too good.")
    if reported:
        rows += _reported()
        notes += reported_notes()
    return Table(rows, runs, notes)


def write_reproduction(out: Path, found: Table, console: Console) -> Path:
    """Prints the table, and writes it: `reproduction.html`, `.json`, and the chart as `.png` and `.svg`; the page."""
    page = out / "reproduction.html"
    bars = [(row.model, _bars(row)) for row in found.rows]
    notes = (Text(one_line(note), style="dim") for note in found.notes)
    print_wide(Group(table.models(found.rows), *notes), console)
    html.write_runs(found.runs, page, title="Reproduction", rows=found.rows, bars=bars, notes=found.notes)
    write_atomically(page.with_suffix(".json"), json.dumps(to_json(found), ensure_ascii=False, indent=2) + "\n")
    return page


def to_json(found: Table) -> dict[str, Any]:
    """The table as plain data; accuracies and differences are fractions."""
    rows = [
        asdict(row)
        | {
            field.name: part.model_dump(mode="json", exclude_unset=True)
            for field in fields(row)
            if isinstance(part := getattr(row, field.name), ConditionSummary | DifferenceSummary)
        }
        for row in found.rows
    ]
    return {"schema": 1, "rows": rows, "notes": list(found.notes)}


def _bars(row: ModelRow) -> list[ConditionSummary]:
    shown = [(name, getattr(row, part)) for part, name in BARS.items()]
    return [one.model_copy(update={"name": name}) for name, one in shown if one]


def reported_notes() -> list[str]:
    """Who reports figures, under which conditions, and at what cost."""
    sources = _published()["sources"].items()
    return [f"[{key}] reported by {source['name']}; {source['note']}." for key, source in sources]


def _reported() -> list[ModelRow]:
    rows = []
    for figures in _published()["figures"]:
        shares = {part: ConditionSummary(name=part, accuracy=figures[part] / 100) for part in BARS if part in figures}
        gain = (figures["trained"] - figures["untrained"]) / 100
        row = ModelRow(
            run="",
            model=f"{figures['model']} [{figures['source']}]",
            instruct=figures["instruct"],
            none=shares.get("none"),
            untrained=shares["untrained"],
            trained=shares["trained"],
            improvement=DifferenceSummary(a="untrained", b="trained", difference=gain),
            external=shares.get("external"),
            reported=figures["source"],
        )
        rows.append(row)
    return rows


def _published() -> dict[str, Any]:
    found: dict[str, Any] = read_shipped("selfedit.reports", "published.yaml")
    return found
