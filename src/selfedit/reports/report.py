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
from selfedit.runs.files import check_file, write_atomically


def build_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes the page and returns its path: `report.html` in the run's directory, or for several runs `comparison.html`
    beside the first one, with its grouped bar chart `comparison.png` and `.svg`.  `out` is another place for the page.

    An unfinished run gets a page too: it says what is missing and shows what is there.
    Errors: UserError for a directory that is no run, and a page that cannot be written.
    """
    from selfedit.reports import html

    runs = [read_run(Path(path)) for path in run_dirs]
    if not runs:
        raise UserError("no run given; name at least one run directory")
    if out is not None:
        check_file(out)
    if len(runs) == 1:
        page = out or runs[0].path / "report.html"
        write_atomically(page, html.to_bytes(html.render_run(runs[0])))
        return page
    page = out or runs[0].path.resolve().parent / "comparison.html"
    html.write_runs(runs, page, rows=_rows(runs))
    return page


def write_charts(run_dir: Path) -> list[Path]:
    """Writes a run's charts (PNG and SVG) into its directory: `chart`, for a sweep `frontier`, and for Step B `reward`,
    `validation` and `signal-N` for each round.  Errors: UserError where it is no run, or cannot be written."""
    from selfedit.reports import plots

    return plots.write_charts(read_run(Path(run_dir)), Path(run_dir))


def print_summary(run_dir: Path, console: Console | None = None) -> None:
    """Prints a run's tables: as wide as the terminal, or as plain text of at most 100 columns.  Errors: UserError."""
    print_wide(table.summary_view(read_run(Path(run_dir))), console or Console())


def print_comparison(run_dirs: Sequence[Path], console: Console | None = None) -> None:
    """Prints several runs: the table of models, then each run's conditions.  Errors: UserError."""
    runs = [read_run(Path(path)) for path in run_dirs]
    print_wide(Group(table.models(_rows(runs)), *(table.summary_view(run) for run in runs)), console or Console())


def _rows(runs: Sequence[RunRecords]) -> list[findings.ModelRow]:
    return [findings.model_row(run.name, run.figures) for run in runs]
