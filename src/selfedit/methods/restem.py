"""Step B: train the model to write better edits, by ReST-EM.

Each round the current policy writes K edits a document; each edit is rewarded by S fine-tunes on it and their exams;
the best are kept; the policy is fine-tuned to write them; the new policy is examined on validation documents.  The
steps themselves are `experiment`'s part; test documents are never seen here (`compare --policy` touches them once)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from selfedit.documents import Document, sharing_titles, split_by_title
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.evaluation.statistics import DocumentScore, accuracy_interval, paired_difference
from selfedit.execution.pool import Pool
from selfedit.execution.tasks import Fit, FitJob, FitTask, TaskResult
from selfedit.methods.experiment import GIVEN_UP, Experiment, Learning, stop_at_given_up
from selfedit.methods.policies import delta_name, is_whole, publish_chain, write_adapter
from selfedit.methods.progress import Progress
from selfedit.methods.rewards import TRAIN, fit_rewards, judged_rewards
from selfedit.methods.selection import Rewarded, Selection
from selfedit.methods.settings import TrainSettings
from selfedit.methods.summarise import summarise, summary_of_finished
from selfedit.methods.tracking import check_tracker, make_tracker
from selfedit.methods.worth import worth_it
from selfedit.runs.costs import Spent
from selfedit.runs.records import CostRecord, RoundRecord
from selfedit.runs.summary import Summary, round_summary
from selfedit.training.recipes import Recipe, load_recipe

VALIDATION, BASELINE = "validation", "baseline"
OUTER = "outer"  # the fine-tune of the editor


def train(
    settings: TrainSettings,
    *,
    progress: Progress | None = None,
    pool: Pool | None = None,
    kind: Callable[..., Experiment] = Experiment,
) -> Summary:
    """Trains the editor and writes the run's summary, with the round that validation selected.

    Errors: UserError for what the user can mend.  The same settings on the same directory go on where they stopped.
    """
    outer = load_recipe(settings.outer_recipe).with_settings(settings.outer_set)
    check_tracker(settings.track)
    with kind("train", settings, progress=progress, pool=pool) as experiment:
        if settings.edits == 1 and settings.select == "best-of-k":
            experiment.warn("nothing to select", "--edits 1 with best-of-k: every edit is kept, whatever its reward")
        experiment.run.resolve("outer_recipe", outer.model_dump(mode="json"), "the outer recipe (--outer-recipe)")
        training, validation = _documents(experiment, settings)
        tracker = make_tracker(settings.track, settings.out, experiment.run.config)
        experiment.examine_untrained([*training, *validation])
        validate(experiment, validation, round=0, chain=())

        for round in range(1, settings.rounds + 1):
            chain = publish_chain(experiment, settings.out, range(1, round))
            if round not in {record.round for record in experiment.store.rounds()}:
                one_round(experiment, training, validation, round, chain, outer)
            elif not is_whole(experiment.run.checkpoint(round)):
                train_editor(experiment, training, keep(experiment, training, round, chain), round, chain, outer)
            tracker.log(_metrics(experiment, round), step=round)
        tracker.finish()

        if (finished := summary_of_finished(experiment)) is not None:
            return finished
        selected = select_round(experiment, validation)
        return summarise_training(experiment, training, validation, selected)


def one_round(
    experiment: Experiment,
    training: Sequence[Document],
    validation: Sequence[Document],
    round: int,
    chain: tuple[str, ...],
    outer: Recipe,
) -> None:
    """Write, reward, select, train, validate; then the round counts."""
    settings = _settings(experiment)
    experiment.store.count_time_for(round)
    spec = EditorSpec("self", settings.edit_prompt)
    experiment.write_edits(
        training, spec, count=settings.edits, prompt=settings.edit_prompt, condition=TRAIN, round=round, policy=chain
    )
    details = reward(experiment, training, round, chain)
    selection = keep(experiment, training, round, chain)
    train_editor(experiment, training, selection, round, chain, outer)
    validate(experiment, validation, round=round, chain=publish_chain(experiment, settings.out, range(1, round + 1)))

    experiment.store.put_round(round_record(experiment, training, round, selection, details))
    experiment.store.count_time_for(0)


def round_record(
    experiment: Experiment, training: Sequence[Document], round: int, selection: Selection, details: dict[str, Any]
) -> RoundRecord:
    """What a round came to, from the store."""
    rewards = {
        document.id: DocumentScore(sum(known), len(known))
        for document in training
        if (known := _known_rewards(experiment, round, document))
    }
    mean = accuracy_interval(rewards) if rewards else None
    scores = experiment.scores(VALIDATION, round=round)
    validated = accuracy_interval(scores) if scores else None
    spent = Spent.of(line for line in experiment.store.costs() if line.round == round)
    return RoundRecord(
        round=round,
        train_reward=mean.mean if mean else None,
        validation_accuracy=validated.mean if validated else None,
        kept_edits=len(selection.kept),
        checkpoint=f"checkpoints/{delta_name(round)}",
        seconds=experiment.store.wall_seconds(round),
        details={
            "train_reward_ci95": [mean.lo, mean.hi] if mean else None,
            "validation_ci95": [validated.lo, validated.hi] if validated else None,
            "documents_without_signal": len(selection.without_signal),
            "kept_without_signal": selection.kept_without_signal,
            "device_seconds": spent.seconds,
            "usd": spent.usd,
            **details,
        },
    )


def reward(experiment: Experiment, training: Sequence[Document], round: int, chain: tuple[str, ...]) -> dict[str, Any]:
    """Gives each edit of the round its reward: the mean exam score of its fits, or a judge's opinion of it."""
    settings = _settings(experiment)
    if settings.reward == "judge":
        return judged_rewards(experiment, training, round, chain)
    fit_rewards(experiment, training, round, chain)
    return {}


def keep(experiment: Experiment, training: Sequence[Document], round: int, chain: tuple[str, ...]) -> Selection:
    """Selects among the round's edits and records which are kept."""
    settings = _settings(experiment)
    stored = experiment.store.edits(round=round, writer=TRAIN)
    baseline = None
    if settings.select == "above-baseline":
        baseline = _baseline(experiment, training, round, chain)
    selection = experiment.select(
        # An edit of which nothing was left cannot be taught, whatever its document alone earned.
        [Rewarded(e.id, e.document_id, e.index, e.output_tokens, e.reward) for e in stored if e.text],
        rule=settings.select,
        baseline=baseline,
        fraction=settings.top_fraction,
        keep_ties=settings.keep_ties,
    )
    experiment.store.set_kept({e.id: e.id in selection.kept for e in stored})
    return selection


def train_editor(
    experiment: Experiment,
    training: Sequence[Document],
    selection: Selection,
    round: int,
    chain: tuple[str, ...],
    outer: Recipe,
) -> None:
    """Fine-tunes the policy on (editing prompt -> kept edit), loss on the edit only, and writes the round's
    checkpoint."""
    settings = _settings(experiment)
    folder = experiment.run.checkpoint(round)
    # The line in the ledger declares the checkpoint: one without it is made again, and is the same.
    booked = any(cost.what == OUTER and cost.round == round for cost in experiment.store.costs())

    def cut() -> list[FitTask]:
        by_id = {document.id: document for document in training}
        sequences = []
        for stored in experiment.store.edits(round=round, writer=TRAIN):
            if stored.id not in selection.kept:
                continue
            document = by_id[stored.document_id]
            sequences.append(experiment.lesson(settings.edit_prompt, document, stored.text))
        if not sequences:
            given_up = [event for event in experiment.store.events(GIVEN_UP) if event.subject.startswith(f"{round}|")]
            if given_up:
                raise UserError(
                    f"round {round}: no edit was kept, and {len(given_up)} fits or ratings were given up (the last:"
                    f" {given_up[-1].message}); the same command tries them again"
                )
            raise UserError(
                f"round {round}: no edit was kept by --select {settings.select}, so there is nothing to train on;"
                " sample more edits (--edits) or select otherwise"
            )
        job = FitJob(tuple(sequences), outer.settings(), experiment.seed("outer", round))
        return [FitTask(f"outer/{round}", chain, outer.lora(), (Fit(OUTER, job, keep=True),))]

    def commit(_: FitTask, result: TaskResult) -> list[CostRecord]:
        (outcome,) = result.outcomes
        if outcome.result.error is not None:
            raise UserError(
                f"round {round}: training the editor failed: {outcome.result.error}; try a lower learning rate"
                " (--outer-set learning_rate=...) and another --out"
            )
        write_adapter(folder, outcome.adapter)
        return [experiment.cost_of_time(OUTER, TRAIN, result.seconds, round)]

    phase = f"round {round}: training the editor on {len(selection.kept)} edits"
    give_up = stop_at_given_up(f"round {round}: training the editor")
    experiment.do(phase, [OUTER], [OUTER] if booked and is_whole(folder) else [], cut, commit, give_up=give_up)


def validate(experiment: Experiment, validation: Sequence[Document], *, round: int, chain: tuple[str, ...]) -> None:
    """Step A with the policy's own edits on the validation documents: one edit a document, S fits."""
    if not validation:
        return
    settings = _settings(experiment)
    spec = EditorSpec("self", settings.edit_prompt)
    experiment.write_edits(
        validation, spec, count=1, prompt=settings.edit_prompt, condition=VALIDATION, round=round, policy=chain
    )
    by_id = {document.id: document for document in validation}
    experiment.fit_and_examine(
        [
            Learning(VALIDATION, (by_id[e.document_id],), ((e.id, e.text),), replicate, round, chain)
            for e in experiment.store.edits(round=round, writer=VALIDATION)
            for replicate in range(settings.replicates)
        ],
        label=f"round {round} validation",
    )
    experiment.grade()


def select_round(experiment: Experiment, validation: Sequence[Document]) -> int:
    """The earliest round whose validation score is not below the best one by more than noise (paired by document);
    round 0 is the untrained model.  Without validation documents, the last round; rounds of which no validation fit
    succeeded, or none on a document of the best one's, are passed over."""
    rounds = [0, *(record.round for record in experiment.store.rounds())]
    if not validation:
        return rounds[-1]
    scores = {round: found for round in rounds if (found := experiment.scores(VALIDATION, round=round))}
    rounds = list(scores)
    if not rounds:
        raise UserError("no validation fit succeeded in any round; try a lower learning rate and another --out")
    best = max(rounds, key=lambda round: (accuracy_interval(scores[round]).mean, -round))
    for round in rounds:
        if round == best or (
            scores[round].keys() & scores[best].keys()
            and not paired_difference(scores[round], scores[best]).larger_than_noise
        ):
            return round
    return best


def _documents(experiment: Experiment, settings: TrainSettings) -> tuple[list[Document], list[Document]]:
    documents = experiment.load(settings.documents, limit=settings.limit, require_questions=True)
    if settings.validation:
        validation = experiment.load(settings.validation, limit=None, require_questions=True)
        shared = sharing_titles(validation, documents)
        if shared:
            raise UserError(
                f"--validation: title {shared[0].title!r} is among the training documents too; give other documents"
            )
        training = documents
    elif settings.validation_share:
        shares = {TRAIN: 1 - settings.validation_share, VALIDATION: settings.validation_share}
        parts = split_by_title(documents, shares, seed=settings.seed)
        training, validation = parts[TRAIN], parts[VALIDATION]
    else:
        training, validation = documents, []
        experiment.warn("no validation", "--validation-share 0: no round can be selected, so the last one is taken")
    editor = EditorSpec("self", settings.edit_prompt)
    experiment.check([*training, *validation], [editor], count=settings.edits, prompt=settings.edit_prompt)
    if settings.reward == "judge" and settings.judge is not None and not experiment.store.documents():
        experiment.api_client(settings.judge, "judge")
    experiment.store.add_documents(training, TRAIN)
    experiment.store.add_documents(validation, VALIDATION)
    return training, validation


def _baseline(
    experiment: Experiment, training: Sequence[Document], round: int, chain: tuple[str, ...]
) -> dict[str, float]:
    """Each document's score by the round's student before it learns the document."""
    condition, number = ("none", 0) if round == 1 else (BASELINE, round)
    experiment.examine_untrained(training, condition=condition, round=number, policy=chain, general=False)
    experiment.grade()
    scores = experiment.scores(condition, round=number)
    return {document: score.score / score.graded for document, score in scores.items() if score.graded}


def summarise_training(
    experiment: Experiment, training: Sequence[Document], validation: Sequence[Document], selected: int
) -> Summary:
    untrained = experiment.scores(VALIDATION, round=0)
    first = accuracy_interval(untrained) if untrained else None
    return summarise(
        experiment,
        [*training, *validation],
        ["none"],
        rounds=tuple(round_summary(record) for record in experiment.store.rounds()),
        selected_round=selected,
        untrained_validation=None if first is None else {"accuracy": first.mean, "ci95": [first.lo, first.hi]},
        worth_it=worth_it(experiment, [document.id for document in validation], selected),
    )


def _metrics(experiment: Experiment, round: int) -> dict[str, float]:
    record = next(record for record in experiment.store.rounds() if record.round == round)
    values = {
        "train_reward": record.train_reward,
        "validation_accuracy": record.validation_accuracy,
        "kept_edits": record.kept_edits,
        "seconds": record.seconds,
        "documents_without_signal": record.details.get("documents_without_signal"),
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _known_rewards(experiment: Experiment, round: int, document: Document) -> list[float]:
    stored = experiment.store.edits(round=round, writer=TRAIN, document_id=document.id)
    return [edit.reward for edit in stored if edit.reward is not None]


def _settings(experiment: Experiment) -> TrainSettings:
    assert isinstance(experiment.settings, TrainSettings)
    return experiment.settings
