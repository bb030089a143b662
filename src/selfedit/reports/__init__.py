"""Reports of runs: console tables, charts, and one self-contained HTML page.

`build_report` takes run directories, as `report.report` does for the command line; the modules below take records.
"""

from selfedit.reports.report import build_report as build_report
