"""Step A as an experiment: the same documents, learned from notes by different writers, under one recipe.

Knows conditions.  What a condition's fits and exams are made of is `experiment`'s part, what is shown the reports'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfedit.documents import Document
from selfedit.editors.spec import EditorSpec, parse_editors
from selfedit.errors import UserError
from selfedit.execution.pool import Pool
from selfedit.methods.experiment import Experiment, Learning
from selfedit.methods.policies import Policy, load_policy
from selfedit.methods.progress import Progress
from selfedit.methods.settings import CompareSettings
from selfedit.methods.summarise import summarise, summary_of_finished
from selfedit.methods.sweep import check_grid, sweep
from selfedit.runs.summary import Summary


def compare(
    settings: CompareSettings,
    *,
    progress: Progress | None = None,
    pool: Pool | None = None,
    kind: Callable[..., Experiment] = Experiment,
) -> Summary:
    """Examines every condition on every document and writes the run's summary.

    Errors: UserError for what the user can mend.  The same settings on the same directory go on where they stopped.
    """
    specs = parse_editors(list(settings.editor))
    check_grid(settings, specs)
    if settings.policy_round is not None and settings.policy is None:
        raise UserError("--policy-round: of which run?  Name it with --policy")
    with kind("compare", settings, progress=progress, pool=pool) as experiment:
        documents = experiment.load(settings.documents, limit=settings.limit, require_questions=True)
        experiment.check(documents, specs, count=settings.edits, prompt=settings.edit_prompt)
        if settings.sweep:
            documents, experiment.recipe, tried = sweep(experiment, documents, specs)
        experiment.store.add_documents(documents)
        policy = None
        if settings.policy is not None:
            policy = load_policy(settings.policy, experiment, documents, settings.policy_round)

        experiment.examine_untrained(documents)
        learnings: list[Learning] = []
        for spec in specs:
            if spec.kind in ("self", "replay", "api"):
                experiment.write_edits(documents, spec, count=settings.edits, prompt=settings.edit_prompt)
            if spec.kind != "none":
                learnings += learnings_of(experiment, documents, spec, spec.name)
        if policy is not None:
            learnings += _trained_editor(experiment, documents, policy)
        experiment.fit_and_examine(learnings)
        experiment.grade()

        if (finished := summary_of_finished(experiment)) is not None:
            return finished
        names = ["none", *dict.fromkeys(learning.condition for learning in learnings)]
        return summarise(experiment, documents, names, **({"sweep": tried} if settings.sweep else {}))


def learnings_of(
    experiment: Experiment,
    documents: Sequence[Document],
    spec: EditorSpec,
    condition: str,
    policy: tuple[str, ...] = (),
) -> list[Learning]:
    """The fits of one condition: an adapter a document and edit and replicate, or with `joint` one adapter a
    replicate."""
    settings = experiment.settings
    assert isinstance(settings, CompareSettings)
    joint = settings.regime == "joint"
    replicates = range(settings.replicates)
    if spec.kind == "passage":
        if joint:
            alone = (None,) * len(documents)
            return [Learning(condition, tuple(documents), alone, r, policy=policy) for r in replicates]
        return [Learning(condition, (d,), (None,), r, policy=policy) for d in documents for r in replicates]
    by_id = {document.id: document for document in documents}
    stored = [
        edit
        for edit in experiment.store.edits(writer=condition, round=0)
        # A sweep has edits of validation documents written too.
        if edit.index < settings.edits and edit.document_id in by_id
    ]
    if joint:
        # All edits of a document are learned, and the document itself once.
        texts: dict[str, list[str]] = {document.id: [] for document in documents}
        for edit in stored:
            texts[edit.document_id].append(edit.text)
        learned = tuple(document for document in documents if texts[document.id])
        joined = tuple((None, "\n".join(texts[document.id])) for document in learned)
        return [Learning(condition, learned, joined, r, policy=policy) for r in replicates if learned]
    return [
        Learning(condition, (by_id[edit.document_id],), ((edit.id, edit.text),), r, policy=policy)
        for edit in stored
        for r in replicates
    ]


def _trained_editor(experiment: Experiment, documents: Sequence[Document], policy: Policy) -> list[Learning]:
    """The condition in which a policy that `train` made writes the edits and is the student."""
    settings = experiment.settings
    assert isinstance(settings, CompareSettings)
    name = f"trained:{policy.prompt}"
    spec = EditorSpec("self", policy.prompt)
    experiment.write_edits(
        documents, spec, count=settings.edits, prompt=policy.prompt, condition=name, policy=policy.chain
    )
    return learnings_of(experiment, documents, spec, name, policy.chain)
