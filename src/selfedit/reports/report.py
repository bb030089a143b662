"""What the command line calls: a report of one run or several, charts, and a summary on the console.

Reads runs, never changes their records.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group

from selfedit.errors import UserError
from selfedit.reports import findings, table
from selfedit.reports.console import print_wide
from selfedit.reports.records import RunRecords, read_run
from selfedit.runs.files import check_writable, write_atomically


def build_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page and returns its path: `report.html` in the run's directory, or for several runs `comparison.html`
    beside the first one, with its grouped bar chart `comparison.png` and `.svg`.  `out` is another place for the page.

    An unfinished run gets a page too: it says what is missing and shows what is there.
    Errors: UserError for a directory that is no run, and a page that cannot be written.
    """
    return report(run_dirs, out)[0]


def report(
    run_dirs: Sequence[Path], out: Path | None = None, *, charts: bool = False, console: Console | None = None
) -> tuple[Path, list[Path]]:
    """`build_report`, of runs that are read once for all that is shown of them.

    With `charts` those of a single run are written into its directory (PNG and SVG), and their paths returned: `chart`,
    for a sweep `frontier`, and for Step B `reward`, `validation` and `signal-N` for each round.  On a console it prints
    each run's tables, below the table of models where there are several."""
    runs, written = [read_run(Path(path)) for path in run_dirs], []
    if not runs:
        raise UserError("no run given; name at least one run directory")
    if out is not None:
        check_writable(out)
    from selfedit.reports import html, plots

    if len(runs) == 1:
        page = out or runs[0].path / "report.html"
        with plots.style():
            drawn = plots.charts(runs[0])
            write_atomically(page, html.to_bytes(html.render_run(runs[0], drawn)))  # before the charts have titles
            if charts:
                written = plots.write_charts(drawn, runs[0].path)
    else:
        page = out or runs[0].path.resolve().parent / "comparison.html"
        html.write_runs(runs, page, rows=_rows(runs))
    if console is not None:
        print_runs(runs, console)
    return page, written


def print_runs(runs: Sequence[RunRecords], console: Console) -> None:
    """Prints their tables: as wide as the terminal, or as plain text of at most 100 columns."""
    models = [table.models(_rows(runs))] if len(runs) > 1 else []
    print_wide(Group(*models, *(table.summary_view(run) for run in runs)), console)


def _rows(runs: Sequence[RunRecords]) -> list[findings.ModelRow]:
    return [findings.model_row(run.name, run.figures) for run in runs]
