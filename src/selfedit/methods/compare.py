"""Step A as an experiment: the same documents, learned from notes by different editors, under one recipe.

examine the model on every document
for each reference line: examine the model with passages in the prompt
for each condition (an editor, the passage alone, or a policy that `train` made):
    edits ← the editor's, of every document
    inner loop: train an adapter on each edit, examine it, grade
compare the conditions, paired by document
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from selfedit.documents import Document
from selfedit.editors.spec import EditorSpec, parse_editors
from selfedit.errors import UserError
from selfedit.methods.edits import edits_to_learn
from selfedit.methods.examining import examine_references, examine_untrained
from selfedit.methods.inner_loop import inner_loop
from selfedit.methods.inputs import check, load
from selfedit.methods.learnings import REGIMES, Learning
from selfedit.methods.policies import load_policies
from selfedit.methods.run import Parts, Run
from selfedit.methods.settings import CompareSettings
from selfedit.methods.summarise import summarise, summary_of_finished
from selfedit.runs.records import recited_condition
from selfedit.runs.summary import Summary


def compare(settings: CompareSettings, **parts: Unpack[Parts]) -> Summary:
    """Examines every condition on every document and writes the run's summary.

    Errors: UserError for what the user can mend.  The same settings on the same directory go on where they stopped.
    """
    specs = parse_editors(list(settings.editor))
    if settings.policy_round is not None and settings.policy is None:
        raise UserError("--policy-round: of which run?  Name it with --policy")
    with Run("compare", settings, **parts) as run:
        documents = load(run, settings.documents, limit=settings.limit)
        check(run, documents, specs, count=settings.edits, prompt=settings.edit_prompt)
        run.store.add_documents(documents)
        policies = []
        if settings.policy is not None:
            policies = load_policies(settings.policy, run, documents, settings.policy_round)

        examine_untrained(run, documents)
        lines = examine_references(run, documents, specs)
        learnings = [learning for spec in specs for learning in condition(run, settings, documents, spec)]
        for policy in policies:  # one that `train` made writes the edits and is the student
            learnings += condition(run, settings, documents, *policy)
        inner_loop(run, learnings)
        run.grading.grade()  # of a comparison in which nothing is learned, the exam before

        learned = dict.fromkeys(learning.condition for learning in learnings)
        recited = [recited_condition(name) for name in learned if settings.recite]
        names = ["none", *learned, *recited, *lines]
        return summary_of_finished(run) or summarise(run, documents, names)


def condition(
    run: Run,
    settings: CompareSettings,
    documents: Sequence[Document],
    spec: EditorSpec,
    name: str | None = None,
    policy: tuple[str, ...] = (),
) -> list[Learning]:
    if not spec.learns:
        return []
    name = name or spec.name
    edits = edits_to_learn(run, documents, spec, condition=name, policy=policy)
    return REGIMES[settings.regime](name, documents, edits, settings.replicates, policy=policy, recite=settings.recite)
