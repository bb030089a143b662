"""Reports of runs: console tables, charts, and one self-contained HTML page.

`build_report`, `write_charts`, `print_summary` and `print_comparison` take run directories; the modules below them take
records.
"""

from selfedit.reports.report import build_report, print_comparison, print_summary, write_charts

__all__ = ["build_report", "print_comparison", "print_summary", "write_charts"]
