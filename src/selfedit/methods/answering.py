"""The questions of an edit answered by the model that learns it, with the document before them (`--teacher open-book`).

    for each question of the edit:
        answer ← the model's, greedily, with the document in its prompt
        kept if of this answer and a few samples more than half agree with it

So what is learned is in the model's own words, of which training changes less than another writer's would (Liu et al.
2026, arXiv 2605.16865), and agreement among samples tells right answers from wrong ones (Wang et al. 2022, arXiv
2203.11171).  The writer never sees the exam.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from selfedit.documents import Document, Question
from selfedit.editors.base import Complete, Edit, Fail, Keep
from selfedit.engine.jobs import Completion, DecodeRequest
from selfedit.errors import UserError
from selfedit.methods.run import Run
from selfedit.training.tokens import within_bounds

SAMPLES, TEMPERATURE = 4, 0.7
_PAIR_TOKENS = 16  # of a question and its answer as they are written: an edit has no more than its tokens allow


def answer_edits(
    run: Run,
    documents: Sequence[Document],
    edits: Sequence[Edit],
    name: str,
    complete: Complete,
    done: Container[str],
    keep: Keep,
    fail: Fail,
) -> None:
    """Makes edits of the writer `name` of these, with other answers to their questions; those in `done` are not made
    again.  Lines that neither ask nor answer stay.  `keep` and `fail` are as for `Editor.write`."""
    by_id = {document.id: document for document in documents}
    renamed = {answered.id: answered for answered in (replace(edit, writer=name) for edit in edits)}
    asked: dict[str, list[str]] = {}
    requests: dict[str, list[DecodeRequest]] = {}
    for id, edit in renamed.items():
        asked[id] = run.choices.questions(edit.text)[: run.settings.max_edit_tokens // _PAIR_TOKENS]
        if not asked[id] and id not in done:
            keep([edit])
        try:
            if found := _requests(run, by_id[edit.document_id], id, asked[id]):
                requests[id] = found
        except UserError as error:
            fail(id, str(error))

    def keep_answered(id: str, completions: Sequence[Completion], seconds: float) -> None:
        each = 1 + SAMPLES
        said = [completions[k : k + each] for k in range(0, len(completions), each)]
        # What was cut off is no answer, but a base model's is its first line.
        base = not run.workers.tokenizer.instruct
        answers = [[run.exam.answer(one.ids) if base or one.finished else "" for one in some] for some in said]
        text = run.choices.answered(renamed[id].text, dict(zip(asked[id], answers, strict=True)))
        text = within_bounds(text, run.settings.max_edit_tokens, run.workers.tokenizer)
        dropped = max(0, len(renamed[id].text.splitlines()) - len(text.splitlines()))
        keep([replace(renamed[id], text=text, dropped_lines=renamed[id].dropped_lines + dropped)])

    complete(requests, done, keep_answered, fail)


def _requests(run: Run, document: Document, id: str, questions: Sequence[str]) -> list[DecodeRequest]:
    """Of each question the greedy one, and samples.  Errors: UserError for a document that is too long to be read."""
    found = []
    for number, question in enumerate(questions):
        greedy = run.exam.request(document, Question(f"{number + 1} of edit {id}", question, ()), [document])
        found.append(greedy)
        found += [
            replace(greedy, temperature=TEMPERATURE, seed=run.seed("answer", id, number, k)) for k in range(SAMPLES)
        ]
    return found
