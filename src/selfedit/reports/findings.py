"""What a report says about a run, derived from its records: what was learned and lost, how much signal there is, what
is missing, what it cost.  Intervals are not computed here: they come with the summary.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from selfedit.documents import Document, Question
from selfedit.editors.base import Edit
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.evaluation.statistics import LEAST_DOCUMENTS
from selfedit.grouping import grouped
from selfedit.reports import format
from selfedit.reports.records import RunRecords, mean_score
from selfedit.runs.costs import Spent
from selfedit.runs.records import RECITED, CostRecord, ScoredAnswer, retried_condition
from selfedit.runs.summary import (
    ConditionSummary,
    DifferenceSummary,
    RoundSummary,
    Summary,
    SweepRow,
)
from selfedit.text import counted

BASE = "none"
"""The condition without adaptation, against which the others are held."""

REFERENCE_LINES = ("open-book", "retrieval")
"""Roles of conditions in which nothing is learned and passages are in the prompt."""

EXTERNAL = ("api", "model", "replay")
"""Roles of conditions in which another than the model writes the edits."""


def compared(run: RunRecords) -> tuple[ConditionSummary, ...]:
    """The conditions that are there to be compared: none where a run trains an editor or learns step by step."""
    found = run.figures.conditions
    sequential = run.rounds or (run.summary and run.summary.steps)
    return () if sequential and len(found) < 2 else found


def rounds(run: RunRecords) -> Sequence[RoundSummary]:
    """Step B's rounds.  Round 0, the untrained editor on the validation documents, is put before them where it is
    known."""
    if not run.rounds or run.rounds[0].round == 0:
        return run.rounds
    untrained = run.summary.untrained_validation if run.summary else None
    if untrained is not None:
        first = RoundSummary(round=0, validation_accuracy=untrained.accuracy, validation_ci95=untrained.ci95)
        return (first, *run.rounds)
    found = mean_score(one for one in run.answers if (one.round, one.condition) == (0, "validation"))
    return run.rounds if found is None else (RoundSummary(round=0, validation_accuracy=found), *run.rounds)


def best_first(rows: Iterable[SweepRow]) -> list[SweepRow]:
    """A sweep's recipes: those that were validated first, then those that got furthest, by what they learned."""
    return sorted(rows, key=lambda row: (not row.validated, -row.documents, -(row.accuracy or 0.0), row.number))


def reference(names: Sequence[str]) -> str:
    """The condition that the others are compared with: no adaptation, or the first where that was not examined."""
    return BASE if BASE in names or not names else names[0]


def too_few(differences: Iterable[DifferenceSummary]) -> bool:
    """Whether there are too few documents for any difference to be larger than noise."""
    counts = [found.documents for found in differences if found.documents is not None]
    return bool(counts) and max(counts) < LEAST_DOCUMENTS


def kept_without_signal(entry: RoundSummary) -> str:
    """A sentence on edits that were kept though nothing told them from the others; nothing where there are none."""
    if not entry.kept_without_signal:
        return ""
    return (
        f"Round {entry.round}: {entry.kept_without_signal} of {entry.kept_edits or 0} kept edits are of "
        "documents without signal."
        " All edits of such a document scored alike: nothing told those kept from the others (--no-keep-ties "
        "keeps none of them)."
    )


def above_passage(entry: RoundSummary) -> str:
    """A sentence on what edits gained over the passage alone; nothing where they were not compared with it."""
    if entry.passage_alone is None or entry.above_passage is None:
        return ""
    return (
        f"Round {entry.round}: the passage alone earns {format.percent(entry.passage_alone.accuracy)} %"
        f" ({format.interval(entry.passage_alone.ci95)}); of {entry.above_passage} of {entry.passage_alone.documents}"
        " documents an edit earned more, and was kept. The others teach nothing."
    )


def difference(differences: Iterable[DifferenceSummary], a: str, b: str) -> DifferenceSummary | None:
    """Accuracy of `b` minus that of `a`, whichever way round it is recorded."""
    for found in differences:
        if (found.a, found.b) == (a, b):
            return found
        if (found.a, found.b) == (b, a):
            ci95 = (-found.ci95[1], -found.ci95[0]) if found.ci95 else None
            return found.model_copy(update={"a": a, "b": b, "difference": -found.difference, "ci95": ci95})
    return None


def known(values: Iterable[str]) -> bool | None:
    """Whether more than half of a question's graded answers (one per fit) are right; None where none is graded."""
    counts = Counter(values)
    graded = counts["right"] + counts["wrong"]
    return 2 * counts["right"] > graded if graded else None


@dataclass(frozen=True, slots=True)
class DocumentRewards:
    document: Document
    edits: tuple[Edit, ...]  # with a reward, worst first; of those that score alike, kept ones last

    @property
    def rewards(self) -> list[float]:
        return [edit.reward for edit in self.edits if edit.reward is not None]

    @property
    def written(self) -> list[Edit]:
        """Those that can be kept: of which something was left.  The best is last."""
        return [edit for edit in self.edits if edit.text]

    @property
    def best(self) -> Edit | None:
        return self.written[-1] if self.written else None

    @property
    def spread(self) -> float:
        """From the worst edit to the best that can be kept."""
        return (self.best.reward or 0.0) - self.rewards[0] if self.best else 0.0


@dataclass(frozen=True, slots=True)
class Signal:
    """The rewards of one round of Step B, within each document."""

    round: int
    documents: tuple[DocumentRewards, ...]  # by mean reward, lowest first
    scores: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # of each edit's fits, by replicate

    @property
    def without_signal(self) -> int:
        """Documents whose edits all scored alike, as selection counts them: one of which no edit was left is none."""
        return sum(len({edit.reward for edit in document.written}) == 1 for document in self.documents)

    @property
    def mean(self) -> float:
        return fmean([fmean(d.rewards) for d in self.documents])

    @property
    def best(self) -> float | None:
        """Mean over documents of the best edit's reward (its luck included); None where nothing was left of any."""
        found = [d.best.reward or 0.0 for d in self.documents if d.best]
        return fmean(found) if found else None

    @property
    def best_unseen(self) -> float | None:
        """The same without the luck: each fit in turn is left out, and scores the edit that the other fits choose; None
        where edits have one fit each."""
        found = []
        for document in self.documents:
            scores = [self.scores.get(edit.id, {}) for edit in sorted(document.written, key=lambda edit: edit.index)]
            replicates = sorted(set.intersection(*map(set, scores))) if scores else []
            if len(replicates) > 1:
                # Of fits that are there for every edit alone: a sum of more would choose the edit of which none failed.
                others = [[sum(one[k] for k in replicates if k != r) for one in scores] for r in replicates]
                best = [scores[rest.index(max(rest))] for rest in others]
                found.append(fmean([one[r] for one, r in zip(best, replicates, strict=True)]))
        return fmean(found) if found else None


def signals(run: RunRecords) -> list[Signal]:
    """One per round in which several edits of a training document were rewarded."""
    documents = {d.id: d for d in run.documents if run.splits[d.id] != "validation"}
    grouped: dict[int, dict[str, list[Edit]]] = defaultdict(lambda: defaultdict(list))
    for edit in run.edits:
        if edit.reward is not None and edit.document_id in documents:
            grouped[edit.round][edit.document_id].append(edit)
    answers: dict[str, dict[int, list[ScoredAnswer]]] = defaultdict(lambda: defaultdict(list))
    for answer in run.answers:
        if answer.edit_id and answer.score is not None and run.config.get("reward") == "fit":
            answers[answer.edit_id][answer.replicate].append(answer)
    scores = {edit: {k: mean_score(some) or 0.0 for k, some in fits.items()} for edit, fits in answers.items()}
    result = []
    for number, by_document in sorted(grouped.items()):
        rewarded = [
            DocumentRewards(documents[key], tuple(sorted(edits, key=_worst_first)))
            for key, edits in by_document.items()
        ]
        if any(len(d.edits) > 1 for d in rewarded):
            rewarded.sort(key=lambda d: (fmean(d.rewards), d.rewards[-1], d.document.id))
            result.append(Signal(number, tuple(rewarded), scores))
    return result


def _worst_first(edit: Edit) -> tuple[float, bool, int]:
    return edit.reward or 0.0, bool(edit.kept), -edit.index


def best_and_worst(found: Sequence[Signal], limit: int) -> list[tuple[int, DocumentRewards]]:
    """The `limit` widest gaps between a document's best and worst edit, each document once, with their round."""
    everything = [(signal.round, rewards) for signal in found for rewards in signal.documents if rewards.spread > 0]
    everything.sort(key=lambda item: (-item[1].spread, item[0], item[1].document.id))
    chosen: dict[str, tuple[int, DocumentRewards]] = {}
    for number, rewards in everything:
        chosen.setdefault(rewards.document.id, (number, rewards))
    return list(chosen.values())[:limit]


NO_EXAM = "The documents have no questions: there was no exam, so there are no figures."


def missing(run: RunRecords) -> list[str]:
    """What an unfinished run still lacks, one sentence each, of which the first says why there are no figures; empty
    for one that has finished with an exam."""
    if run.summary is not None:
        return []
    lines = ["The run has not finished: there is no summary.json, so there are no intervals yet."]
    if not run.documents:
        return [*lines, "No documents have been stored yet."]
    if not run.questions:
        lines = [NO_EXAM]
    if run.procedure == "train" or run.rounds:
        planned = run.config.get("rounds")
        done = sum(entry.train_reward is not None for entry in run.rounds)
        lines.append(f"{done}{f' of {planned}' if isinstance(planned, int) else ''} rounds have ended.")
    elif run.procedure != "sweep":  # which fits a sweep takes is seen on the way
        lines += _missing_fits(run)
    used = {fit.edit_id for fit in run.fits}
    waiting = sum(edit.id not in used for edit in run.edits)
    several = _of_all_edits(run) or any(fit.document_id is None and fit.sequences for fit in run.fits)
    if waiting and not several:
        lines.append(f"{counted(waiting, 'edit is', 'edits are')} written and not trained on yet.")
    if run.questions and not any(fit.condition == BASE for fit in run.fits):
        lines.append("The model has not been examined without adaptation yet.")
    unjudged = sum(not answer.value for answer in run.answers)
    if unjudged:
        lines.append(f"{counted(unjudged, 'answer has', 'answers have')} no grade yet.")
    return lines


def finished(run: RunRecords) -> bool:
    """Whether nothing is left to do: there is a summary, or nothing to examine and all is learned."""
    return run.summary is not None or (bool(run.fits) and missing(run) == [NO_EXAM])


def _missing_fits(run: RunRecords) -> list[str]:
    """Per condition that was asked for or begun: documents whose fits are not all there."""
    done: dict[str, Counter[str | None]] = defaultdict(Counter)
    for fit in run.fits:
        done[fit.condition][fit.document_id] += 1
    # No fits are lacking of exams on the way, each recorded as a fit without texts, nor of what was recited in fits
    # that are there, nor once more of what was not missed.
    others = {fit.condition for fit in run.fits if fit.steps and not fit.sequences and fit.status == "done"}
    others |= {BASE, *map(retried_condition, done), *(name for name in done if name.endswith(RECITED))}
    lines = []
    for name in dict.fromkeys([*planned(run), *(edit.writer for edit in run.edits), *done]):
        joint = any(fit.document_id is None and fit.sequences and fit.condition == name for fit in run.fits)
        if name in others or joint:
            continue
        wanted = fits_per_document(run, role(name))
        learns = role(name) not in REFERENCE_LINES  # which ask questions, and nothing of a document that has none
        lacking = sum(done[name][one.id] < wanted for one in run.documents if one.questions or learns)
        if lacking:
            lines.append(f"{format.clean(name)}: {lacking} of {len(run.documents)} documents lack fits.")
    return lines


def fits_per_document(run: RunRecords, kind: str) -> int:
    """How many fits, or exams, a condition of this role takes of each document."""
    edits, replicates = (n if isinstance(n, int) else 1 for n in map(run.config.get, ("edits", "replicates")))
    if kind in REFERENCE_LINES:
        return 1
    return replicates if kind == "passage" or _of_all_edits(run) else edits * replicates


def _of_all_edits(run: RunRecords) -> bool:
    """Whether a fit learns all edits of its document."""
    adapters = (run.config.get("resolved") or {}).get("adapters", run.config.get("adapters"))
    return run.config.get("regime") == "document" or adapters == "per-document"


def planned(run: RunRecords) -> list[str]:
    """The conditions that the settings ask for, as far as they can be read."""
    editors = run.config.get("editor")
    if not isinstance(editors, list):
        return []
    try:
        return [EditorSpec.parse(str(editor)).name for editor in editors]
    except UserError:  # settings edited by hand: the report goes by what is in the store
        return []


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model in the table of several runs.  A condition that was not examined is None."""

    run: str
    model: str
    instruct: bool | None
    none: ConditionSummary | None
    untrained: ConditionSummary | None
    trained: ConditionSummary | None
    improvement: DifferenceSummary | None  # trained minus untrained editor; without interval where it was not paired
    external: ConditionSummary | None
    trained_usd: float | None = None  # what it cost to train the editor
    external_usd: float | None = None  # what the external editor's edits cost
    reported: str = ""  # who reports the figures, where they are no run's


def role(name: str) -> str:
    """What kind of condition a name stands for: a reference line, passage, self, trained, one of EXTERNAL, or other."""
    head = "other" if name.endswith(RECITED) else name.split(":", 1)[0]
    return head if head in (BASE, *REFERENCE_LINES, "passage", "self", "trained", *EXTERNAL) else "other"


def model_row(run: str, summary: Summary) -> ModelRow:
    """The row of a run; where several conditions share a role, the most accurate external editor, the selected policy
    (where none is, the last round's) and the first other."""
    found = grouped((role(condition.name), condition) for condition in summary.conditions)

    def first(kind: str) -> ConditionSummary | None:
        return found[kind][0] if found[kind] else None

    untrained, policies = first("self"), found["trained"]
    trained = next((one for one in policies if "(selected" in one.name), policies[-1] if policies else None)
    improvement = None
    if untrained and trained:
        improvement = difference(summary.differences, untrained.name, trained.name)
        if improvement is None and trained.accuracy is not None and untrained.accuracy is not None:
            gain = trained.accuracy - untrained.accuracy
            improvement = DifferenceSummary(a=untrained.name, b=trained.name, difference=gain)
    others = [condition for kind in EXTERNAL for condition in found[kind]]
    external = max(others, key=lambda condition: condition.accuracy or 0.0, default=None)
    return ModelRow(run, summary.model, summary.instruct, first(BASE), untrained, trained, improvement, external)


def costs(run: RunRecords) -> list[CostRecord]:
    """The ledger's lines summed by condition, purpose and model, in the order in which they first spent something."""
    groups = grouped(((line.condition, line.what, line.model), line) for line in run.costs)
    result = []
    for (condition, what, model), lines in groups.items():
        spent = Spent.of(lines)
        usd = None if any(line.usd is None for line in lines) else spent.known_usd  # an unknown price is not 0
        tokens = spent.input_tokens, spent.output_tokens
        result.append(CostRecord(what, condition, 0, model, *tokens, spent.seconds, usd))
    return result


def general(run: RunRecords) -> tuple[list[str], list[tuple[Question, dict[str, tuple[int, int, str]]]]]:
    """The conditions that were asked general questions; and each of these with every condition's answers: how many are
    right, how many are graded, and one that is wrong."""
    graded: dict[str, dict[str, list[ScoredAnswer]]] = defaultdict(lambda: defaultdict(list))
    for answer in run.scored:
        if answer.document_id is None and answer.value:
            graded[answer.question_id][answer.condition].append(answer)
    rows = [
        (
            question,
            {
                name: (
                    sum(one.value == "right" for one in found),
                    sum(one.value != "ungraded" for one in found),
                    min((one.answer for one in found if one.value == "wrong"), default=""),
                )
                for name, found in graded[question.id].items()
            },
        )
        for question in run.general_questions
        if question.id in graded
    ]
    asked = {name for by_condition in graded.values() for name in by_condition}
    # Of a sweep, those that were validated; dozens were dropped before.
    others = [] if run.figures.sweep else sorted(asked)
    names = dict.fromkeys([BASE, *(condition.name for condition in run.figures.conditions), *others])
    return [name for name in names if name in asked], rows
