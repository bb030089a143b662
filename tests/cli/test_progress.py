"""What is shown while a command works."""

from __future__ import annotations

import io
import logging

import pytest

from selfedit.cli.main import main
from selfedit.cli.progress import BarProgress, PlainProgress

NASTY = "\x1b[2Jred [bold] " + "x" * 10_000 + "\nselfedit: forged"


@pytest.mark.parametrize("kind", [PlainProgress, BarProgress])
def test_untrusted_text_in_progress_is_short_and_steers_nothing(kind, capsys: pytest.CaptureFixture[str]) -> None:
    progress = kind()
    progress.begin(f"writing edits ({NASTY})", 10)
    progress.advance(5)
    progress.note(f"left out: {NASTY}")
    progress.close()
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert "[bold]" in shown
    assert "left out: [2Jred" in shown
    assert not any(line.startswith("selfedit:") for line in shown.splitlines())
    assert len(shown) < 2500


def test_phases_that_are_over_are_lines_and_leave_the_bar_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    progress = BarProgress()
    for number in range(40):
        progress.begin(f"phase {number}", 10)
        progress.advance(number)
    assert [task.description for task in progress.bar.tasks] == ["phase 39"]
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "phase 0"
    assert [line.split(" in ")[0] for line in lines if line.startswith("phase")][1:40] == [
        f"phase {number}: {number}" for number in range(1, 40)
    ]


def test_untrusted_text_in_a_log_is_short_and_steers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    main(["cost", "--model", "gpt-4.1"])
    logging.getLogger("selfedit.editors").warning("the server says %s", NASTY)
    assert "the server says [2Jred" in said.getvalue()
    assert "\x1b" not in said.getvalue()
    assert len(said.getvalue().splitlines()[-1]) <= 1000
