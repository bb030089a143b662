"""Console tables: what they say, how wide they are, and that names cannot steer a terminal."""

from __future__ import annotations

import io
import json
import re
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import fake_runs
import pytest
from rich.console import Console

from selfedit.errors import UserError
from selfedit.reports import build_report, format, table
from selfedit.reports.console import PLAIN_WIDTH, plain_text
from selfedit.reports.records import read_run
from selfedit.reports.report import print_runs, report
from selfedit.runs.summary import (
    ConditionSummary,
    DifferenceSummary,
    ForgettingSummary,
    NeighbourSummary,
    RetentionSummary,
    RoundSummary,
    StepSummary,
    SweepRow,
)

LONG = "replay:../shared/data/a-folder-with-a-long-name/squad-val200.jsonl#gpt-4.1-2025-04-14"
CONDITIONS = [
    ConditionSummary(name="none", accuracy=0.327, ci95=(0.28, 0.37), correct=955, graded=2922, seconds=120),
    ConditionSummary(
        name="passage", accuracy=0.335, ci95=(0.29, 0.38), correct=980, graded=2922, train_tokens=1_234_567,
    ),
    ConditionSummary(
        name=LONG, accuracy=0.463, ci95=(0.41, 0.51), correct=1353, graded=2922, train_tokens=123_456_789,
        edit_tokens=143_673, seconds=120_000, cost_usd=0.746,
    ),
]  # fmt: skip
DIFFERENCES = [
    DifferenceSummary(a="none", b="passage", difference=0.008, ci95=(-0.01, 0.02)),
    DifferenceSummary(a="none", b=LONG, difference=0.136, ci95=(0.1, 0.2), larger_than_noise=True),
]
PAIRED = DifferenceSummary(a="none", b="self", difference=0.01, ci95=(-0.01, 0.03), p_value=0.25, documents=7)


def shown(renderable, width: int = PLAIN_WIDTH) -> str:
    text = plain_text(renderable, width)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    return text


def test_comparison_says_it_all_within_100_columns() -> None:
    text = shown(
        table.comparison(CONDITIONS, DIFFERENCES, {"rank": 32, "targets": ["q", "v"], "rate": 1e-3}, "lexical")
    )
    assert "32.7" in text
    assert "28.0 – 37.0" in text
    assert "955/2922" in text
    assert "0.746" in text
    assert "▲ 46.3" in text
    assert "▲ 33.5" not in text
    assert "more than noise" in text
    assert "All conditions use the same recipe: rank=32, targets=q+v, rate=0.001." in text
    assert "ungraded" not in text


def test_the_share_of_open_book_is_shown_where_a_reference_line_was_examined() -> None:
    assert "open book" not in shown(table.comparison(CONDITIONS))
    opened = ConditionSummary(
        name="open-book", accuracy=0.6, correct=6, graded=10, of_open_book=1.0, question_tokens=231.4,
        question_seconds=0.123,
    )  # fmt: skip
    reached = CONDITIONS[2].model_copy(update={"of_open_book": 0.7717, "of_open_book_ci95": (0.6, 1.02)})
    text = shown(table.comparison([*CONDITIONS[:2], reached, opened], DIFFERENCES, {"rank": 1}, "lexical"))
    (line,) = [line for line in text.splitlines() if re.search(r"\b77\.2\b", line)]
    assert re.search(r"77\.2 +60\.0 – 102\.0 +– +–", line)
    assert re.search(r"open-book +100\.0 +– +231 +0\.12", text)
    assert "bootstrap over documents" in text
    retrieved = opened.model_copy(update={"name": "retrieval:3", "of_open_book": None})
    assert re.search(r"retrieval:3 +– +– +231 +0\.12", shown(table.comparison([CONDITIONS[0], retrieved])))


def test_ungraded_answers_are_shown_where_there_are_some() -> None:
    text = shown(table.comparison([*CONDITIONS[:2], CONDITIONS[2].model_copy(update={"ungraded": 17})]))
    assert "17" in text
    assert "do not count as wrong" in text


def test_no_mark_without_a_difference() -> None:
    text = shown(table.comparison(CONDITIONS[:2], DIFFERENCES[:1]))
    assert "▲" not in text
    assert "No difference from 'none' is larger than noise" in text


def test_a_worse_condition_is_marked_as_worse() -> None:
    worse = DifferenceSummary(a="passage", b="none", difference=0.1, ci95=(0.05, 0.2), larger_than_noise=True)
    assert "▼ 33.5" in shown(table.comparison(CONDITIONS[:2], [worse]))


def test_names_cannot_steer_the_terminal() -> None:
    hostile = ConditionSummary(
        name="\x1b[31m[bold]self[/bold]\x9b\r\u202e:x[link=http://a]", accuracy=0.5, correct=1, graded=2
    )
    text = shown(table.comparison([hostile]))
    assert "[bold]self" in text.replace("\n", "")
    assert "\u202e" not in text
    assert "\x9b" not in text
    retained = RetentionSummary(retain="kl\x1b[2J", sequences=1, accuracy=((1.0, None), (0.5, 1.0)))
    assert "\x1b" not in shown(table.retention([retained])) + shown(table.matrix(retained))


def test_a_name_of_ten_thousand_characters_does_not_flood_the_terminal() -> None:
    name = "x" * 10_000
    hostile = ConditionSummary(name=name, accuracy=0.5, correct=1, graded=2)
    step = StepSummary(step=1, document=name)
    for renderable in (table.comparison([hostile]), table.steps([step])):
        assert shown(renderable).count("x") < 300


@pytest.mark.parametrize("name", ["compare_run", "partial_run", "train_run"])
def test_summary_of_every_kind_of_run_fits_and_is_plain(name: str, request: pytest.FixtureRequest) -> None:
    out = io.StringIO()
    print_runs([read_run(request.getfixturevalue(name))], Console(file=out))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= PLAIN_WIDTH
    assert "\x1b" not in out.getvalue()
    wanted = {"compare_run": "still right", "partial_run": "has not finished", "train_run": "Worth it?"}
    assert wanted[name] in out.getvalue()


def test_without_a_terminal_100_columns_are_used(compare_run: Path) -> None:
    out = io.StringIO()
    print_runs([read_run(compare_run)], Console(file=out, width=80))
    assert max(len(line) for line in out.getvalue().splitlines()) > 80
    narrow = io.StringIO()
    print_runs([read_run(compare_run)], Console(file=narrow, width=80, force_terminal=True, color_system=None))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", narrow.getvalue())
    assert max(len(line) for line in plain.splitlines()) <= 80


def test_the_run_s_duration_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count(0.0, 300.0)
    monkeypatch.setattr("selfedit.runs.database.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    folder = fake_runs.write_compare(tmp_path / "run", documents=1, conditions=("none",))
    out = io.StringIO()
    print_runs([read_run(folder)], Console(file=out))
    assert " · 300 s" in out.getvalue().splitlines()[0]
    assert " · 300 s" in build_report([folder]).read_text(encoding="utf-8")
    # Earlier summaries do not say how long a run took.
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    del summary["seconds"]
    path.write_text(json.dumps(summary | {"total_seconds": 42.0}))
    assert table.facts(read_run(folder)).endswith(" · 42 s of device time")


def test_what_is_not_known_is_a_dash(tmp_path: Path) -> None:
    folder = fake_runs.write_compare(tmp_path / "run", documents=2, conditions=("none", "passage"), ungraded=1.0)
    out = io.StringIO()
    print_runs([read_run(folder)], Console(file=out))
    rows = {
        line.split()[0]: line.split() for line in out.getvalue().splitlines() if line.startswith(("none", "passage"))
    }
    assert rows["none"][1:4] == ["–", "–", "0/0"]
    assert rows["passage"][1:4] == ["–", "–", "0/0"]
    # An earlier version wrote 0.0 (0 to 1) for what it did not know.
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    for condition in summary["conditions"]:
        condition |= {"accuracy": 0.0, "ci95": [0.0, 1.0]}
    path.write_text(json.dumps(summary))
    again = io.StringIO()
    print_runs([read_run(folder)], Console(file=again))
    assert again.getvalue() == out.getvalue()
    assert report([folder], charts=True)[1] == []  # nothing to draw
    page = build_report([folder]).read_text(encoding="utf-8")
    assert '<rect class="fill' not in page
    assert 'class="chart"' not in page
    assert "0.0 –" not in page


def test_few_documents_are_said_to_show_nothing(tmp_path: Path) -> None:
    out = io.StringIO()
    folder = fake_runs.write_compare(tmp_path / "few", documents=5, conditions=("none", "api:gpt-5"))
    print_runs([read_run(folder)], Console(file=out))
    assert "With fewer than 6 documents none can be." in " ".join(out.getvalue().split())
    page = build_report([folder]).read_text(encoding="utf-8")
    assert "5 documents are too few for a finding" in page
    assert "▲" not in page


def test_kept_edits_without_signal_are_told(tmp_path: Path) -> None:
    folder = fake_runs.write_train(tmp_path / "run", documents=2, edits=3, rounds=1, alike=True)
    out = io.StringIO()
    print_runs([read_run(folder)], Console(file=out))
    told = "Round 1: 2 of 2 kept edits are of documents without signal."
    assert told in " ".join(out.getvalue().split())
    assert told in build_report([folder]).read_text(encoding="utf-8")


def test_the_recipes_of_a_sweep_are_shown(tmp_path: Path) -> None:
    shared = {"documents": 8, "validated": True, "train_tokens": 1477.4, "divergence": 0.0123}
    rows = (
        SweepRow(number=1, settings={"learning_rate": 1e30}, failed_fits=4, accuracy=0.1, documents=3),
        SweepRow(number=2, settings={"learning_rate": 1e-3}, accuracy=0.375, lost=0.04, chosen=True, **shared),
        SweepRow(number=3, settings={"learning_rate": 2e-3}, accuracy=0.5, ci95=(0.25, 0.75), lost=0.21, **shared),
    )
    more = {"sweep": rows, "most_lost": 0.05, "choice": "Recipe 2: it is good.\nThe rule: least harm."}
    folder = fake_runs.write_compare(tmp_path / "run", documents=1, more=more)
    out = io.StringIO()
    print_runs([read_run(folder)], Console(file=out))
    told = out.getvalue()
    lines = [line.split() for line in told.splitlines() if "learning_rate=" in line]
    # The validated ones first, the most learned on top; what failed has no accuracy.
    assert lines == [
        ["3", "learning_rate=0.002", "50.0", "25.0", "–", "75.0", "21.0", "–", "12.3", "1,477", "8"],
        ["*", "2", "learning_rate=0.001", "37.5", "–", "4.0", "–", "12.3", "1,477", "8"],
        ["1", "learning_rate=1e+30", "4", "failed", "–", "–", "–", "–", "0", "(3)"],
    ]
    assert "Recipe 2: it is good. The rule: least harm." in " ".join(told.split())
    assert "All conditions use the same recipe" not in told
    page = build_report([folder]).read_text(encoding="utf-8")
    cells = "".join(f"<td>{cell}</td>" for cell in ("37.5", "–", "4.0", "–", "12.3", "1,477", "8"))
    assert f'<tr class="chosen"><th scope="row">* 2 learning_rate=0.001</th>{cells}</tr>' in page
    assert "<td>4 failed</td>" in page
    assert "least harm." in page
    assert "Learned against forgotten" in page
    # Nor does the page of several runs say that they share one.
    beside = fake_runs.write_compare(tmp_path / "beside", documents=1)
    several = build_report([folder, beside]).read_text(encoding="utf-8")
    assert several.count("Recipe, the same for all conditions") == 1
    assert "All runs use the same recipe" not in several


def test_a_difference_names_the_documents_that_it_is_paired_on() -> None:
    rows = [line.split() for line in shown(table.differences([*DIFFERENCES[:1], PAIRED])).splitlines()]
    assert ["passage", "against", "none", "+0.8", "−1.0", "to", "+2.0", "–", "–", "within", "noise"] in rows
    assert ["self", "against", "none", "+1.0", "−1.0", "to", "+3.0", "0.250", "7", "within", "noise"] in rows


def test_many_differences_are_said_to_be_many() -> None:
    assert "by luck" not in shown(table.differences([PAIRED] * 5))
    text = " ".join(shown(table.differences([PAIRED] * 10)).split())
    assert "up to 0.5 of 10 would be larger than noise by luck." in text


def test_a_judges_rewards_are_called_so_even_where_their_correlation_is_not_known() -> None:
    known = RoundSummary(round=3, judge_sample=8, judge_correlation=0.43, judge_correlation_ci95=(-0.4, 0.874))
    rows = [RoundSummary(round=1, judge_sample=2), RoundSummary(round=2), known]
    text = " ".join(shown(table.rounds(rows, 1)).split())
    said = "a judge gave the rewards; rank correlation (Spearman's) with real ones"
    assert f"Round 1: {said} – on 2 edits." in text
    assert "Round 2: a judge" not in text
    assert f"Round 3: {said} +0.43 (95 % interval −0.40 to +0.87) on 8 edits." in text


def test_selected_round_is_marked(train_run: Path) -> None:
    out = io.StringIO()
    print_runs([read_run(train_run)], Console(file=out))
    assert "* 2 " in out.getvalue()
    assert "* selected on the validation documents." in out.getvalue()


def test_several_runs(compare_run: Path, train_run: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    print_runs([read_run(compare_run), read_run(train_run)], Console(file=out))
    assert max(len(line) for line in out.getvalue().splitlines()) <= PLAIN_WIDTH
    assert "untrained" in out.getvalue()
    with pytest.raises(UserError, match="not the directory of a run"):
        print_runs([read_run(compare_run), read_run(tmp_path)], Console(file=out))


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (format.percent, 0.4567, "45.7"),
        (format.percent, None, "–"),
        (format.points, -0.031, "−3.1"),
        (format.points_interval, (-0.01, 0.052), "−1.0 to +5.2"),
        (format.seconds, 0.42, "0.4 s"),
        (format.seconds, 599.4, "599 s"),
        (format.seconds, 3600, "60 min"),
        (format.seconds, 36001, "10.0 h"),
        (format.usd, 0.746, "0.746"),
        (format.usd, 8.8, "8.80"),
        (format.usd, 0.00005, "<0.0001"),
        (format.usd, None, "–"),
        (format.usd, 0, "0"),
        (format.short_count, 999, "999"),
        (format.short_count, 12_345, "12.3k"),
        (format.short_count, 999_999, "1.00M"),
        (format.short_count, 3_100_000, "3.10M"),
    ],
)
def test_numbers_are_written_as_people_read_them(function, value, expected: str) -> None:
    assert function(value) == expected


def test_forgetting_shows_what_was_measured_and_dashes_for_the_rest() -> None:
    moved = ForgettingSummary(condition="passage", measured=3, divergence=0.0234, divergence_ci95=(0.0102, 0.0366))
    lost = ForgettingSummary(condition=LONG, asked=30, kept=27, lost=0.1, ci95=(0.03, 0.21))
    lines = shown(table.forgetting([moved, lost])).splitlines()
    rows = [line.split() for line in lines]
    assert ["passage", "0", "0", "–", "–", "23.4", "10.2", "–", "36.6"] in rows
    assert any(row[-8:] == ["30", "27", "10.0", "3.0", "–", "21.0", "–", "–"] for row in rows)


def test_neighbours_show_leaks_beside_the_untrained_models() -> None:
    entries = [
        NeighbourSummary(condition="passage", asked=40, leaked=0.05, ci95=(0.01, 0.17), before=0.025),
        NeighbourSummary(condition="self", asked=40, leaked=0.0),
    ]
    rows = [line.split() for line in shown(table.neighbours(entries)).splitlines()]
    assert ["passage", "40", "5.0", "1.0", "–", "17.0", "2.5"] in rows
    assert ["self", "40", "0.0", "–", "–"] in rows
