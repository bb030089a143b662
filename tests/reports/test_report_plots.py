"""Charts: which are written, that they say what they should, and that the same run gives the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import fake_runs
import pytest
from PIL import Image

from selfedit.reports import plots
from selfedit.reports.records import read_run
from selfedit.reports.report import report
from selfedit.runs.summary import ConditionSummary, SweepRow, empty_summary


def text_of(svg: Path) -> str:
    return " ".join("".join(node.itertext()) for node in ElementTree.parse(svg).iter() if node.tag.endswith("text"))


@pytest.fixture
def copy(compare_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compare_run, tmp_path / "copy"))


def test_comparison_has_every_condition_and_value(copy: Path) -> None:
    paths = report([copy], charts=True)[1]
    assert [path.name for path in paths] == ["chart.png", "chart.svg"]
    text = text_of(copy / "chart.svg")
    summary = read_run(copy).summary
    assert summary is not None
    for condition in summary.conditions:
        assert f"{100 * (condition.accuracy or 0):.1f}" in text
    assert "passage" in text
    with Image.open(copy / "chart.png") as image:
        assert image.width > 600


def test_a_line_is_drawn_where_open_book_is() -> None:
    found = [ConditionSummary(name=name, accuracy=value) for name, value in (("none", 0.1), ("open-book", 0.6))]
    drawn = []
    for conditions in (found, found[:1]):
        figure = plots.comparison(conditions)
        assert figure is not None
        drawn.append([list(line.get_xdata()) for line in figure.axes[0].lines if line.get_linestyle() == "--"])
    assert drawn == [[[60, 60]], []]


def test_charts_are_the_same_bytes_again(copy: Path) -> None:
    first = {path.name: path.read_bytes() for path in report([copy], charts=True)[1]}
    second = {path.name: path.read_bytes() for path in report([copy], charts=True)[1]}
    assert first == second
    assert b"<dc:date>" not in first["chart.svg"]


def test_bars_differ_without_colour(tmp_path: Path) -> None:
    looks = [plots._look(index) for index in range(10)]
    assert len(set(looks)) == len(looks)
    for fill, _ in looks:
        red, green, blue = fill[1:3], fill[3:5], fill[5:7]
        assert red == green == blue


@pytest.mark.parametrize("name", [r"api:$\frac{", "replay:笔记"])
@pytest.mark.filterwarnings("error")
def test_names_are_text_not_mathematics_in_any_script(tmp_path: Path, name: str) -> None:
    with plots.style():
        figure = plots.comparison([ConditionSummary(name=name, accuracy=0.5)])
        assert figure is not None
        plots.save(figure, tmp_path / "chart")
    assert name.partition(":")[2] in text_of(tmp_path / "chart.svg")


def test_no_axis_shows_shares_that_cannot_be() -> None:
    figure = plots.line([(k, 0.0, (0.0, 1.0)) for k in (1, 2)], "round", "mean reward, %")
    assert figure is not None
    low, high = figure.axes[0].get_ylim()
    assert -5 <= low <= 0
    assert 100 <= high <= 110


def test_there_are_no_halves_of_steps() -> None:
    figure = plots.loss([(1, 3.0), (2, 2.0)])
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())


def test_step_b_gets_its_charts(tmp_path: Path) -> None:
    folder = fake_runs.write_train(tmp_path / "train", documents=3, edits=2, rounds=1, replicates=1)
    names = {path.name for path in report([folder], charts=True)[1]}
    assert names == {f"{stem}.{kind}" for stem in ("reward", "validation", "signal-1") for kind in ("png", "svg")}
    assert "selected" in text_of(folder / "validation.svg")
    assert "without signal" in text_of(folder / "signal-1.svg")


def test_unfinished_run_is_drawn_without_error_bars(partial_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(partial_run, tmp_path / "part"))
    report([folder], charts=True)
    assert "95 % interval" not in text_of(folder / "chart.svg")


def test_the_frontier_shows_what_was_learned_and_lost(tmp_path: Path) -> None:
    rows = [
        SweepRow(number=1, settings={}, accuracy=0.2, lost=0.0, train_tokens=100.0, validated=True),
        SweepRow(number=2, settings={}, accuracy=0.5, lost=0.04, train_tokens=400.0, validated=True, chosen=True),
        SweepRow(number=3, settings={}, accuracy=0.6, lost=0.3, train_tokens=1600.0),
        SweepRow(number=4, settings={}, accuracy=0.6, lost=0.3, failed_fits=2),
        SweepRow(number=5, settings={}, accuracy=None),
    ]
    lines = [ConditionSummary(name="none", accuracy=0.1), ConditionSummary(name="open-book", accuracy=0.7)]
    summary = empty_summary("m", lines).model_copy(update={"sweep": tuple(rows), "most_lost": 0.05})
    with plots.style():
        figure = plots.frontier(summary)
        assert figure is not None
        plots.save(figure, tmp_path / "frontier")
    (axes,) = figure.axes
    points = [line for line in axes.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "none"]
    # Large ones first, so that small ones lie on top; a point's area goes with its tokens.
    assert [(*line.get_xdata(), *line.get_ydata()) for line in points] == [(30, 60), (4, 50), (0, 20)]
    assert [line.get_markersize() for line in points] == [20, 10, 10]  # but a number has to stand in it
    assert points[0].get_markerfacecolor() != points[1].get_markerfacecolor() == points[2].get_markerfacecolor()
    assert [text.get_text() for text in axes.texts] == ["3", "chosen", "2", "1", "no adaptation", "open book"]
    (limit,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert list(limit.get_xdata()) == [5, 5]
    assert [list(line.get_ydata()) for line in axes.lines if line.get_linestyle() == "--"] == [[10, 10], [70, 70]]
    assert "general questions lost, %" in text_of(tmp_path / "frontier.svg")
    assert plots.frontier(empty_summary()) is None
    assert plots.frontier(empty_summary().model_copy(update={"sweep": tuple(rows[3:])})) is None
