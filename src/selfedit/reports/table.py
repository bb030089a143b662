"""The tables of a run: the comparison, the rounds of Step B, several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from selfedit.editors.prices import load_prices
from selfedit.evaluation.statistics import LEAST_DOCUMENTS
from selfedit.reports import findings, format
from selfedit.reports.console import Figures, dim
from selfedit.reports.records import RunRecords
from selfedit.runs.records import RECITED
from selfedit.runs.summary import (
    ConditionSummary,
    DifferenceSummary,
    ForgettingSummary,
    NeighbourSummary,
    RetentionSummary,
    RoundSummary,
    StepSummary,
    Summary,
    SweepRow,
)
from selfedit.text import counted, one_line

MOST_COLUMNS = 12
"""Documents of a sequence of which a table shows the whole matrix."""

MANY_COMPARISONS = 6
"""Of four conditions or more: from so many on, luck is spoken of."""

UP, DOWN = "▲", "▼"


def comparison(
    conditions: Sequence[ConditionSummary],
    differences: Sequence[DifferenceSummary] = (),
    recipe: dict[str, object] | None = None,
    grader: str = "",
) -> Group:
    """The conditions, what reference lines came to, and the recipe that all conditions share."""
    notes = [f"All conditions use the same recipe: {format.recipe_line(recipe)}."] if recipe else []
    if grader:
        notes.append(f"Graded by: {format.clean(grader)}.")
    looked_up = references(conditions)
    beside: list[RenderableType] = [Text(), looked_up, Text()] if looked_up else []
    return Group(conditions_table(conditions, differences), *beside, *dim(notes))


def conditions_table(
    conditions: Sequence[ConditionSummary],
    differences: Sequence[DifferenceSummary],
    count: Callable[[int | None], str] = format.short_count,
) -> Figures:
    """One row per condition, and what the marks mean."""
    reference = findings.reference([condition.name for condition in conditions])
    ungraded = any(condition.ungraded for condition in conditions)
    by_document = means_differ(conditions)
    signs = [mark(findings.difference(differences, reference, condition.name)) for condition in conditions]
    rows = [
        (
            format.clean(condition.name),
            f"{sign} {format.percent(condition.accuracy)}".strip(),
            format.interval(condition.ci95),
            *([format.percent(condition.document_mean)] if by_document else []),
            f"{condition.correct}/{condition.graded}",
            *([format.count(condition.ungraded)] if ungraded else []),
            count(condition.train_tokens),
            count(condition.edit_tokens),
            format.seconds(condition.seconds),
            format.usd(condition.cost_usd),
        )
        for condition, sign in zip(conditions, signs, strict=True)
    ]
    headings = ["accuracy\n%", "95 %\ninterval", *(["mean of\ndocuments"] if by_document else []), "right/\ngraded"]
    headings += [*(["un-\ngraded"] if ungraded else []), "train\ntokens", "edit\ntokens", "time", "cost\nUSD"]
    notes = [noise_note(signs, reference, differences)] if differences else []
    if by_document:
        notes.append(DOCUMENT_MEAN)
    if ungraded:
        notes.append("Ungraded answers are left out of the accuracy; they do not count as wrong.")
    if any(condition.name.endswith(RECITED) for condition in conditions):
        notes.append(
            "recited: the same adapters, whose training and time are in their own row; the model without them answers "
            "with what they wrote down from memory in its prompt."
        )
    return Figures(["condition"], headings, rows, notes)


def references(conditions: Sequence[ConditionSummary]) -> Figures | None:
    """How near conditions come to open book, and what a question costs without an adapter; None without such lines."""
    if not any(findings.role(condition.name) in findings.REFERENCE_LINES for condition in conditions):
        return None
    rows = [
        (
            format.clean(condition.name),
            format.percent(condition.of_open_book),
            format.interval(condition.of_open_book_ci95),
            format.decimals(condition.question_tokens, 0),
            format.decimals(condition.question_seconds, 2),
        )
        for condition in conditions
    ]
    headings = ["of open\nbook, %", "95 %\ninterval", "tokens per\nprompt", "seconds per\nquestion"]
    return Figures(["condition"], headings, rows, [REFERENCES])


REFERENCES = (
    "Of open book: accuracy over that of open-book; intervals by bootstrap over documents, from six on. What has "
    "learned is asked with the prompts of 'none', unless it recites. Seconds are device time, many questions at once."
)


def means_differ(conditions: Iterable[ConditionSummary]) -> bool:
    """Whether the mean of documents' means is another figure than the mean of answers, as a table shows them."""
    return any(
        None not in (one.document_mean, one.accuracy) and f"{one.document_mean:.3f}" != f"{one.accuracy:.3f}"
        for one in conditions
    )


DOCUMENT_MEAN = "mean of documents: each document's own mean counts alike, however many questions it has."

SELECTED_ON_TEST = (
    "* selected on the test documents (--select-on test): its accuracy on them, shown here as validation, is too good."
)


def noise_note(marks: Collection[str], reference: str, entries: Sequence[DifferenceSummary]) -> str:
    """What the marks ▲ and ▼ mean, or why there are none."""
    name = format.clean(reference)
    words = {UP: f"{UP} higher than '{name}'", DOWN: f"{DOWN} lower than '{name}'"}
    shown = ", ".join(words[sign] for sign in (UP, DOWN) if sign in marks)
    if shown:
        return f"{shown}, by more than noise: the 95 % interval and a sign-flip test, paired by document, exclude 0."
    text = f"No difference from '{name}' is larger than noise (95 % intervals and sign-flip tests, paired by document)."
    return text + (f" With fewer than {LEAST_DOCUMENTS} documents none can be." if findings.too_few(entries) else "")


def differences(entries: Sequence[DifferenceSummary]) -> Figures:
    """Paired differences between conditions, those larger than noise marked."""
    rows = [
        (
            f"{format.clean(entry.b)} against {format.clean(entry.a)}",
            format.points(entry.difference),
            format.points_interval(entry.ci95),
            format.p_value(entry.p_value),
            format.count(entry.documents),
            "larger than noise" if entry.larger_than_noise else "within noise",
        )
        for entry in entries
    ]
    many = (
        f"Not corrected for their number: were there no differences at all, up to {0.05 * len(rows):.1f} of {len(rows)}"
        " would be larger than noise by luck."
    )
    notes = [many] * (len(rows) >= MANY_COMPARISONS)
    return Figures(["difference"], ["points", "95 % interval", "p", "documents", ""], rows, notes)


def rounds(entries: Sequence[RoundSummary], selected_round: int | None, selected_on: str = "validation") -> Figures:
    """Step B: one row per round, the selected one marked."""
    chosen = [number for number, entry in enumerate(entries) if entry.round == selected_round]
    rows = [
        (
            f"{'* ' if number in chosen else ''}{entry.round}",
            format.percent(entry.train_reward),
            format.interval(entry.train_reward_ci95),
            format.percent(entry.validation_accuracy),
            format.interval(entry.validation_ci95),
            format.count(entry.kept_edits),
            format.count(entry.documents_without_signal),
            format.seconds(entry.seconds),
            format.usd(entry.usd),
        )
        for number, entry in enumerate(entries)
    ]
    notes = ["no signal: documents whose edits all scored alike, so that nothing tells good ones from bad ones."]
    for entry in entries:
        if entry.judge_sample is not None:
            told, ci95 = format.signed(entry.judge_correlation), entry.judge_correlation_ci95
            told += f" (95 % interval {format.interval(ci95, format.signed, 'to')})" if ci95 else ""
            notes.append(
                f"Round {entry.round}: a judge gave the rewards; rank correlation (Spearman's) with real ones {told} on"
                f" {entry.judge_sample} edits."
            )
    for finding in (findings.above_passage, findings.kept_without_signal):
        notes += [note for entry in entries if (note := finding(entry))]
    if chosen:
        notes.insert(0, "* selected on the validation documents." if selected_on == "validation" else SELECTED_ON_TEST)
    headings = ["round", "reward\n%", "95 %\ninterval", "validation\n%", "95 %\ninterval", "kept\nedits"]
    return Figures([], [*headings, "no\nsignal", "time", "cost\nUSD"], rows, notes, chosen)


def sweep(entries: Sequence[SweepRow]) -> Figures:
    """The recipes that were tried: how much each taught, what was forgotten, what it cost."""
    ordered = findings.best_first(entries)
    rows = [
        (
            f"{'* ' if entry.chosen else '  '}{entry.number} {format.recipe_line(entry.settings)}",
            f"{format.count(entry.failed_fits)} failed" if entry.failed_fits else format.percent(entry.accuracy),
            format.interval(None if entry.failed_fits else entry.ci95),
            format.percent(entry.lost),
            format.interval(entry.lost_ci95),
            format.nats(entry.divergence),
            f"{entry.train_tokens:,.0f}",
            f"{entry.documents}" if entry.validated else f"({entry.documents})",
        )
        for entry in ordered
    ]
    note = (
        "* chosen. lost: of the general questions that the model knew; moved: KL(model || adapter), 1/1000 nat per"
        " token. (Documents) in brackets: training documents; the recipe was dropped before validation. A recipe under"
        " which fits failed is out."
    )
    headings = ["accuracy\n%", "95 %\ninterval", "lost\n%", "95 %\ninterval", "moved", "tokens per\ndocument"]
    chosen = [number for number, entry in enumerate(ordered) if entry.chosen]
    return Figures(["recipe"], [*headings, "docu-\nments"], rows, [note], chosen, "Recipes tried")


def steps(entries: Sequence[StepSummary]) -> Figures:
    """Continual learning: after each step, how the new document and the earlier ones are answered."""
    rows = [
        (
            f"{entry.step} {format.clean(entry.document)}",
            format.percent(entry.new.accuracy if entry.new else None),
            format.percent(entry.earlier.accuracy if entry.earlier else None),
            format.interval(entry.earlier.ci95 if entry.earlier else None),
        )
        for entry in entries
    ]
    notes = ["earlier: accuracy on the documents of all earlier steps, after this one."]
    return Figures(["step and document"], ["new\n%", "earlier\n%", "95 %\ninterval"], rows, notes)


RETENTION = (
    "average: on all documents after the last step; learned: on each after its own; forgetting and backward transfer"
    " as usually defined (Chaudhry et al. 2018; Lopez-Paz and Ranzato 2017), in points; general: questions known"
    " before that are still answered."
)


def retention(entries: Sequence[RetentionSummary]) -> Figures:
    """Continual learning: what each remedy against forgetting came to."""
    rows = [
        (
            format.clean(one.retain),
            *map(format.spread, (one.average, one.learned, one.before, one.forgetting, one.backward, one.general)),
            format.short_count(one.train_tokens),
        )
        for one in entries
    ]
    sequences = entries[0].sequences if entries else 0
    over = f" Mean ± standard deviation over {sequences} sequences." if sequences > 1 else ""
    headings = ["average\n%", "learned\n%", "before\n%", "for-\ngetting", "backward\ntransfer", "general\n%"]
    return Figures(["retain"], [*headings, "train\ntokens"], rows, [RETENTION + over])


def matrix(entry: RetentionSummary) -> RenderableType:
    """The accuracy on each document of a sequence after each step; nothing where there is no room for it."""
    steps = len(entry.accuracy)
    if not 1 < steps <= MOST_COLUMNS:
        return Group()
    rows = [(str(number), *map(format.percent, row)) for number, row in enumerate(entry.accuracy, 1)]
    heading = "\nAccuracy in % on each document of a sequence (columns) after each step, retain "
    heading += format.clean(entry.retain)
    return Figures([], ["after\nstep", *(f"\n{number}" for number in range(1, steps + 1))], rows, title=heading)


def forgetting(entries: Sequence[ForgettingSummary]) -> Figures:
    """General questions that the model answered before, how many are lost after adaptation; and how far the adapters
    have moved from the model."""
    rows = [
        (
            format.clean(entry.condition),
            format.count(entry.asked),
            format.count(entry.kept),
            format.percent(entry.lost),
            format.interval(entry.ci95),
            format.nats(entry.divergence),
            format.interval(entry.divergence_ci95, format.nats),
        )
        for entry in entries
    ]
    headings = ["asked", "still right", "lost %", "95 % interval", "moved", "95 % interval"]
    notes = ["moved: KL(model || adapter) per token of texts that the model wrote to other prompts, 1/1000 nat."]
    title = "Forgetting: general questions that the model answered before adaptation"
    return Figures(["condition"], headings, rows, notes, title=title)


def neighbours(entries: Sequence[NeighbourSummary]) -> Figures:
    """How often adapters say of other documents what they learned of their own."""
    rows = [
        (
            format.clean(entry.condition),
            format.count(entry.asked),
            format.percent(entry.leaked),
            format.interval(entry.ci95),
            format.percent(entry.before),
        )
        for entry in entries
    ]
    headings = ["asked", "leaked %", "95 % interval", "untrained %"]
    notes = [
        "leaked: wrong, and right about the adapter's own document; where questions were routed, or an adapter learned"
        " several documents, about another document than the question's; untrained: the same of the model's answers."
    ]
    return Figures(["condition"], headings, rows, notes, title="Leaks: answers that another document would give")


def api_estimates(run: RunRecords) -> Figures:
    """What an API model would charge, at the built-in prices, for one edit of each document, of as many tokens as this
    run's edits have; no rows where it wrote none, or trained no editor.  Reasoning tokens would come on top."""
    written = [edit for edit in run.edits if edit.output_tokens and run.rounds]
    documents = len({edit.document_id for edit in written})
    read, wrote = (
        round(documents * sum(amounts) / max(1, len(written)))
        for amounts in ([edit.input_tokens for edit in written], [edit.output_tokens for edit in written])
    )
    rows = [
        (model, format.usd(price.cost(read, wrote)), format.usd(price.cost(read, wrote, batch=True)), price.date)
        for model, price in load_prices().models.items()
        if written
    ]
    return Figures(["API model"], ["live, USD", "batch, USD", "price of"], rows)


def models(rows: Sequence[findings.ModelRow]) -> Figures:
    """The table of several runs: what each model gains from its own edits, a trained editor, an external editor."""
    named = any(row.run for row in rows)
    priced = any(row.trained_usd is not None or row.external_usd is not None for row in rows)
    columns = ["in-\nstruct", "no adap-\ntation", "untrained\neditor", "trained\neditor", "improvement"]
    columns += ["external\neditor"] + (["training\nUSD", "external\nUSD"] if priced else [])
    cells = [
        (
            format.clean(row.model or format.DASH),
            *([format.clean(row.run)] if named else []),
            {True: "yes", False: "no", None: format.DASH}[row.instruct],
            *(format.percent(c.accuracy if c else None) for c in (row.none, row.untrained, row.trained)),
            _gain(row.improvement),
            format.percent(row.external.accuracy if row.external else None),
            *([format.usd(row.trained_usd), format.usd(row.external_usd)] if priced else []),
        )
        for row in rows
    ]
    note = (
        "Accuracy in %. Improvement: trained minus untrained editor, in points (95 % interval, paired by document);"
        f" {UP} or {DOWN} where it is larger than noise."
    )
    return Figures(["model", *(["run"] if named else [])], columns, cells, [note])


def _gain(found: DifferenceSummary | None) -> str:
    told = f"{mark(found)} {format.points(found.difference if found else None)}".strip()
    return told + (f"\n({format.points_interval(found.ci95)})" if found and found.ci95 else "")


def tables(run: RunRecords) -> dict[str, Figures]:
    """The tables that console and page share, in their order; those without rows have nothing to show."""
    summary = run.figures
    return {
        "differences": differences(summary.differences),
        "rounds": rounds(findings.rounds(run), summary.selected_round, summary.selected_on),
        "sweep": sweep(summary.sweep),
        "steps": steps(summary.steps),
        "retention": retention(summary.retention),
        "forgetting": forgetting(summary.forgetting),
        "neighbours": neighbours(summary.neighbours),
    }


def summary_view(run: RunRecords) -> Group:
    """Everything that `report.print_runs` prints of one run, from its summary or from as far as it got."""
    summary = run.figures
    parts: list[RenderableType] = [Text(heading(run), style="bold")]
    parts += [Text(line, style="yellow") for line in findings.missing(run)]
    found = findings.compared(run)
    if found:
        # The conditions of a sweep have a recipe each.
        parts.append(comparison(found, summary.differences, None if summary.sweep else summary.recipe, run.grader))
    parts += [Text(one_line(note), style="dim") for note in summary.exam_notes]
    behind: dict[str, list[RenderableType]] = {
        "sweep": [Text(one_line(summary.choice))],
        "retention": [*map(matrix, summary.retention)],
    }
    for name, shown in tables(run).items():
        if shown.rows:
            parts += [Text(), shown, *behind.get(name, ())]
    events = summary.events or Counter(event.kind for event in run.events)
    if events:
        told = ", ".join(f"{format.clean(kind)} {number:,}" for kind, number in sorted(events.items()))
        parts.append(Text(f"Noted on the way: {told}.", style="dim"))
    if summary.worth_it:
        parts += [Text(), Text("Worth it?", style="bold")]
        parts.append(Text(" ".join(one_line(line) for line in summary.worth_it.splitlines())))
    return Group(*parts)


def heading(run: RunRecords) -> str:
    """One line: procedure, model, and the facts."""
    parts = [format.clean(run.procedure or "run"), format.clean(run.model), facts(run)]
    return " · ".join(part for part in parts if part)


def facts(run: RunRecords) -> str:
    """How the model was prompted, how much was examined, where, how long it took."""
    summary = run.figures
    documents = summary.documents or len(run.documents)
    questions = summary.questions or run.questions
    parts = [
        {True: "chat model", False: "base model", None: ""}[summary.instruct],
        f"{counted(documents, 'document')}, {counted(questions, 'question')}",
        format.clean(summary.device),
        _duration(summary),
    ]
    return " · ".join(part for part in parts if part)


def _duration(summary: Summary) -> str:
    """How long the run took; of a summary that does not say, how long its devices were busy."""
    if summary.seconds is not None:
        return format.seconds(summary.seconds)
    return "" if summary.total_seconds is None else f"{format.seconds(summary.total_seconds)} of device time"


def mark(found: DifferenceSummary | None) -> str:
    """▲ or ▼ where a difference is larger than noise, else nothing."""
    if found is None or not found.larger_than_noise:
        return ""
    return UP if found.difference > 0 else DOWN
