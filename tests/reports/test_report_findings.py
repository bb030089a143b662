"""What a report derives: changes, differences, signal, what is missing."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fake_runs
import pytest

from selfedit.documents import Document
from selfedit.editors.base import Edit
from selfedit.methods.selection import select
from selfedit.reports import findings, format, html, table, watching
from selfedit.reports.documents import document_list
from selfedit.reports.records import RunRecords, read_run
from selfedit.runs.records import recited_condition, retried_condition
from selfedit.runs.summary import ConditionSummary, DifferenceSummary, empty_summary


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("right",), True),
        (("wrong",), False),
        (("right", "wrong"), False),  # half is not more than half
        (("right", "right", "wrong"), True),
        (("right", "ungraded", "ungraded"), True),
        (("ungraded",), None),
        (("",), None),
        ((), None),
    ],
)
def test_known(values: tuple[str, ...], expected: bool | None) -> None:
    assert findings.known(values) is expected


def test_difference_is_given_in_the_direction_asked_for() -> None:
    recorded = [DifferenceSummary(a="self", b="none", difference=-0.2, ci95=(-0.3, -0.1), larger_than_noise=True)]
    found = findings.difference(recorded, "none", "self")
    assert found is not None
    assert (found.difference, found.ci95, found.larger_than_noise) == (0.2, (0.1, 0.3), True)
    assert findings.difference(recorded, "self", "none") == recorded[0]
    assert findings.difference(recorded, "self", "passage") is None


def changes(run: RunRecords) -> dict[str, Counter[str]]:
    return document_list(run, findings.compared(run)).changes


def test_changes_count_every_question_once(tmp_path: Path) -> None:
    folder = fake_runs.write_compare(tmp_path / "run", documents=3, conditions=("none", "passage"), replicates=1)
    with sqlite3.connect(folder / "run.sqlite") as store:
        # Base: question 0 of each document right.  Passage: questions 1 and 2 right.
        store.execute("UPDATE grades SET value = 'wrong', score = 0")
        for fit, question in (
            ("LIKE '%|none|0'", "%/q0"),
            ("NOT LIKE '%|none|0'", "%/q1"),
            ("NOT LIKE '%|none|0'", "%/q2"),
        ):
            store.execute(
                "UPDATE grades SET value = 'right', score = 1 WHERE answer_id IN"
                f" (SELECT id FROM answers WHERE fit_id {fit} AND question_id LIKE ?)",
                (question,),
            )
    assert changes(read_run(folder)) == {"passage": {"learned": 6, "lost": 3, "unknown": 6}}


def test_what_is_looked_up_is_not_learned_and_lacks_no_fits(tmp_path: Path) -> None:
    names = ("none", "open-book", "passage")
    run = read_run(fake_runs.write_compare(tmp_path / "run", conditions=names, replicates=2))
    assert list(changes(run)) == ["passage"]
    shown, scores = document_list(run, findings.compared(run)), {"none": 0.1, "open-book": 0.9, "passage": 0.5}
    for best in ("passage", "open-book"):  # the second where nothing is learned
        view = replace(shown.documents[0], scores={(0, name): score for name, score in scores.items()})
        assert replace(shown, documents=[view]).best == (0, best)
        scores.pop("passage", None)
    unfinished = read_run(
        fake_runs.write_compare(
            tmp_path / "part", conditions=names, replicates=2, planned=(*names, "retrieval"), finished=False
        )
    )
    lines = findings.missing(unfinished)
    assert not any("open-book" in line for line in lines)
    assert "retrieval:3: 6 of 6 documents lack fits." in lines


def test_answers_about_other_documents_are_no_rivals(compare_run: Path) -> None:
    run = read_run(compare_run)
    assert run.summary is not None
    earlier = ConditionSummary(name="earlier documents, before", accuracy=0.99, correct=99, graded=100)
    said = html._headline(run.summary.conditions, run.summary)
    assert html._headline([*run.summary.conditions, earlier], run.summary) == said
    assert "api:gpt-5" in said
    shown = document_list(run, findings.compared(run))
    other = replace(shown.documents[0], scores={(0, earlier.name): 1.0})
    columns = {**shown.columns, (0, earlier.name): earlier.name}
    assert replace(shown, documents=[*shown.documents, other], columns=columns).best == shown.best == (0, "api:gpt-5")


def test_what_was_not_graded_was_neither_learned_nor_lost(tmp_path: Path) -> None:
    folder = fake_runs.write_compare(tmp_path / "run", documents=2, conditions=("none", "passage"), ungraded=1.0)
    assert changes(read_run(folder)) == {}


def test_missing_names_what_is_not_there(partial_run: Path, compare_run: Path) -> None:
    lines = findings.missing(read_run(partial_run))
    assert "self:implications: 3 of 6 documents lack fits." in lines
    assert "replay:notes#x: 6 of 6 documents lack fits." in lines  # asked for and not begun
    assert not any(line.startswith("passage") for line in lines)
    assert any("no grade yet" in line for line in lines)
    assert findings.missing(read_run(compare_run)) == []


def test_unfinished_training_says_how_many_rounds_have_ended(tmp_path: Path) -> None:
    folder = fake_runs.write_train(tmp_path / "run", documents=2, edits=2, rounds=2, replicates=1, finished=False)
    with sqlite3.connect(folder / "run.sqlite") as store:
        store.execute("DELETE FROM rounds WHERE round = 2")
    assert "1 of 2 rounds have ended." in findings.missing(read_run(folder))


def test_round_0_is_the_untrained_editor(train_run: Path, tmp_path: Path) -> None:
    run = read_run(train_run)
    assert [entry.round for entry in run.rounds] == [1, 2, 3]
    first, *rest = findings.rounds(run)
    assert run.summary is not None
    untrained = run.summary.untrained_validation
    assert untrained is not None
    assert (first.round, first.validation_accuracy, first.validation_ci95) == (0, untrained.accuracy, untrained.ci95)
    assert tuple(rest) == run.rounds
    assert findings.compared(run) == ()  # no adaptation alone is no comparison

    folder = fake_runs.write_train(tmp_path / "run", documents=2, edits=2, rounds=1, replicates=1, finished=False)
    with sqlite3.connect(folder / "run.sqlite") as store:
        (expected,) = store.execute(
            "SELECT AVG(v.score) FROM grades v JOIN answers a ON a.id = v.answer_id JOIN fits f ON f.id = a.fit_id"
            " WHERE f.round = 0 AND f.condition = 'validation'"
        ).fetchone()
    assert findings.rounds(read_run(folder))[0].validation_accuracy == pytest.approx(expected)


def test_documents_without_questions_are_not_unfinished(tmp_path: Path) -> None:
    folder = fake_runs.write_compare(
        tmp_path / "run", documents=2, conditions=("passage",), questions=0, finished=False
    )
    run = read_run(folder)
    assert findings.missing(run) == ["The documents have no questions: there was no exam, so there are no figures."]
    assert findings.finished(run)
    assert not findings.finished(replace(run, fits=[]))
    # But what has not been learned yet is lacking, which a summary does not say of them.
    interrupted = replace(run, fits=[fit for fit in run.fits if fit.document_id == "d0"])
    assert findings.missing(interrupted)[1:] == ["passage: 1 of 2 documents lack fits."]
    assert not findings.finished(interrupted)


def test_what_was_not_missed_is_not_learned_once_more(partial_run: Path) -> None:
    run = read_run(partial_run)
    again = replace(next(fit for fit in run.fits if fit.condition == "passage"), condition=retried_condition("passage"))
    assert findings.missing(replace(run, fits=[*run.fits, again])) == findings.missing(run)


def test_partial_conditions_agree_with_the_store(partial_run: Path) -> None:
    run = read_run(partial_run)
    found = {condition.name: condition for condition in run.figures.conditions}
    with sqlite3.connect(partial_run / "run.sqlite") as store:
        expected = store.execute(
            "SELECT SUM(v.value = 'right'), COUNT(v.score), AVG(v.score) FROM grades v JOIN answers a ON a.id "
            "= v.answer_id"
            " JOIN fits f ON f.id = a.fit_id JOIN questions q ON q.id = a.question_id"
            " WHERE f.condition = 'passage' AND q.document_id IS NOT NULL"
        ).fetchone()
    passage = found["passage"]
    assert (passage.correct, passage.graded) == expected[:2]
    assert passage.accuracy == pytest.approx(expected[2])
    assert passage.ci95 is None
    assert next(iter(found)) == "none"


def test_signal_counts_documents_whose_edits_score_alike(train_run: Path) -> None:
    run = read_run(train_run)
    assert [signal.round for signal in findings.signals(run)] == [1, 2, 3]
    for signal, entry in zip(findings.signals(run), run.rounds, strict=True):
        assert signal.without_signal == entry.documents_without_signal
        assert signal.mean == pytest.approx(entry.train_reward)
        assert signal.best >= signal.mean


def test_the_best_edit_is_also_scored_by_a_fit_that_did_not_choose_it() -> None:
    document = Document("d", "", "Text.")
    edits = tuple(Edit("d", "train", k, f"edit {k}", round=1, reward=reward) for k, reward in enumerate((0.5, 0.6)))
    scores = {edits[0].id: {0: 1.0, 1: 0.0}, edits[1].id: {0: 0.4, 1: 0.8}}
    signal = findings.Signal(1, (findings.DocumentRewards(document, edits),), scores)
    assert signal.best == 0.6
    # Fit 0 chooses edit 0, of which fit 1 scores 0; fit 1 chooses edit 1, of which fit 0 scores 0.4.
    assert signal.best_unseen == pytest.approx(0.2)
    assert findings.Signal(1, signal.documents, {edit.id: {0: 1.0} for edit in edits}).best_unseen is None
    # A third fit of the worse edit, where the better one's has failed, chooses nothing.
    some = {edits[0].id: dict.fromkeys(range(3), 0.4), edits[1].id: dict.fromkeys(range(2), 0.6)}
    assert findings.Signal(1, signal.documents, some).best_unseen == pytest.approx(0.6)


def test_an_empty_edit_is_not_the_best_one_since_it_cannot_be_kept() -> None:
    document, other = Document("d", "", "Text."), Document("e", "", "Text.")
    edits = tuple(Edit("d", "train", k, "edit" * k, round=1, reward=reward) for k, reward in ((1, 0.5), (0, 1.0)))
    empty = Edit("e", "train", 0, "", round=1, reward=1.0)
    scores = {edits[0].id: {0: 0.25, 1: 0.75}, edits[1].id: {0: 1.0, 1: 1.0}, empty.id: {0: 1.0, 1: 1.0}}
    rewarded = (findings.DocumentRewards(document, edits), findings.DocumentRewards(other, (empty,)))
    signal = findings.Signal(1, rewarded, scores)
    assert signal.best == signal.best_unseen == 0.5
    assert signal.mean == (0.75 + 1.0) / 2
    assert findings.Signal(1, rewarded[1:], scores).best_unseen is None
    # A page with a round of which nothing was left at all.
    assert findings.Signal(1, rewarded[1:], scores).best is None
    # What is shown as the best is not an empty edit, either.
    assert (rewarded[0].best, rewarded[0].spread) == (edits[0], 0.0)
    assert findings.DocumentRewards(other, (empty,)).spread == 0.0


def test_of_edits_that_score_alike_the_one_that_was_kept_is_the_best(train_run: Path) -> None:
    run = read_run(train_run)
    document = run.documents[0]
    long, short = (Edit(document.id, "train", k, "edit", round=9, reward=1.0, kept=k == 1) for k in (0, 1))
    run = replace(run, edits=(long, short))  # as `--ties shorter` keeps the second, if it has fewer tokens
    ((rewards,),) = (signal.documents for signal in findings.signals(run))
    assert (rewards.document, rewards.best) == (document, short)


def test_an_empty_edit_gives_no_signal() -> None:
    edits = tuple(Edit("d", "train", k, text, round=1, reward=0.2 * k) for k, text in enumerate(("", "a", "b")))
    rewards = findings.DocumentRewards(Document("d", "", "Text."), edits)
    assert findings.Signal(1, (rewards,)).without_signal == 0
    for some, counted in ((edits[:2], 1), (edits[:1], 0)):
        rewards = findings.DocumentRewards(Document("d", "", "Text."), some)
        written = [edit for edit in some if edit.text]
        assert findings.Signal(1, (rewards,)).without_signal == counted
        assert len(select(written, rule="best-of-k").without_signal) == counted, "as the table has it"


def test_what_was_recited_is_no_fit_and_scores_no_edit(compare_run: Path) -> None:
    run = read_run(compare_run)
    fit = next(fit for fit in run.fits if fit.edit_id is not None and fit.answers)
    recital = replace(fit, condition=recited_condition(fit.condition), sequences=("What it wrote down.",), steps=0)
    given = next(answer for answer in run.answers if answer.fit_id == fit.id)
    more = [
        replace(given, fit_id=recital.id, condition=recital.condition, score=100.0),
        replace(given, document_id="d5" if given.document_id != "d5" else "d4", score=100.0),  # of another document
    ]
    recited = replace(run, fits=[*run.fits, recital], scored=[*run.scored, *more])

    def score(records: RunRecords) -> float | None:
        shown = document_list(records, findings.compared(records)).documents
        return next(view.score for d in shown for view in d.edits if view.edit.id == fit.edit_id)

    own = [a.score for a in run.answers if a.edit_id == fit.edit_id and a.score is not None]
    assert score(recited) == score(run) == pytest.approx(sum(own) / len(own))
    assert html._counts(recited)["fits"] == html._counts(run)["fits"]
    assert watching._facts(recited)["fits"] == watching._facts(run)["fits"]
    page = html.render_run(recited, {})
    assert "1 text recited" in page
    assert f"fit {fit.replicate + 1} · by recitation" in page


def test_best_and_worst_are_the_widest_gaps(train_run: Path) -> None:
    signals = findings.signals(read_run(train_run))
    chosen = findings.best_and_worst(signals, 3)
    widest = max(rewards.spread for signal in signals for rewards in signal.documents)
    assert chosen[0][1].spread == widest > 0
    assert len({rewards.document.id for _, rewards in chosen}) == len(chosen) == 3
    for _, rewards in chosen:
        assert rewards.edits[0].reward == min(rewards.rewards)
        assert rewards.edits[-1].reward == max(rewards.rewards)
        assert rewards.edits[-1].kept, "of those that score alike the one that was sampled first"


def test_api_estimate_prices_one_edit_a_document(train_run: Path) -> None:
    run = read_run(train_run)
    live, batch = next(row[1:3] for row in table.api_estimates(run).rows if row[0] == "gpt-5")
    # gpt-5: 1.25 and 10 US dollars a million tokens; every made-up edit has 150 and 90.
    usd = len({edit.document_id for edit in run.edits}) * (150 * 1.25 + 90 * 10) / 1e6
    assert (live, batch) == (format.usd(usd), format.usd(usd / 2))


def test_model_row_finds_the_editors() -> None:
    names = {"none": 0.1, "passage": 0.2, "self": 0.3, "trained:runs/b": 0.38, "api:gpt-5": 0.5, "api:small": 0.2}
    found = [ConditionSummary(name=name, accuracy=accuracy) for name, accuracy in names.items()]
    recorded = DifferenceSummary(
        a="trained:runs/b", b="self", difference=-0.08, ci95=(-0.1, -0.01), larger_than_noise=True
    )
    summary = empty_summary("m", found).model_copy(update={"differences": (recorded,)})
    row = findings.model_row("run", summary)
    assert row.untrained is not None
    assert row.untrained.name == "self"
    assert row.external is not None
    assert row.external.name == "api:gpt-5"
    assert row.improvement is not None
    assert row.improvement.difference == pytest.approx(0.08)
    assert row.improvement.ci95 == (0.01, 0.1)
    for selected, shown in (("trained:p round 1 (selected)", 0.3), ("trained:p round 1", 0.4)):
        policies = [
            ConditionSummary(name=selected, accuracy=0.3),
            ConditionSummary(name="trained:p round 2", accuracy=0.4),
        ]
        trained = findings.model_row("run", empty_summary("m", policies)).trained
        assert trained is not None
        assert trained.accuracy == shown
    bare = findings.model_row("run", summary.model_copy(update={"differences": ()}))
    assert bare.improvement is not None
    assert bare.improvement.difference == pytest.approx(0.08)
    assert bare.improvement.ci95 is None
