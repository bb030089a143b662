"""What the store costs a round of Step B: 750 fits with 5 answers and a grade on each.

Run: python -m benchmarks.store [--directory DIR]    (DIR: on the disk that runs lie on; default here)

Prints one line of JSON for each size of a task: fits committed together, seconds to write the fits and answers,
seconds for the grades, and both again as the share of an hour (a published round on two L40S) and of ten minutes.
Texts have the published sizes: about 9 sequences and 410 tokens a fit.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from selfedit.documents.document import Document, Question
from selfedit.editors.base import Edit
from selfedit.evaluation.grade import Grade
from selfedit.runs.records import Answer, CostRecord, FitRecord
from selfedit.runs.store import Store

DOCUMENTS, EDITS, REPLICATES, QUESTIONS = 50, 5, 3, 5
LINE = (
    "A statement of about fifty tokens that a model may learn from, with a number and a name in it, as notes have. " * 2
)


def measure(directory: Path, fits_per_task: int) -> dict[str, float | int]:
    path = directory / f"{fits_per_task}.sqlite"
    documents = [
        Document(
            f"d{d}",
            f"Title {d}",
            LINE * 4,
            tuple(Question(f"d{d}q{q}", "What does the note say of it?", ("a gold answer",)) for q in range(QUESTIONS)),
        )
        for d in range(DOCUMENTS)
    ]
    edits = [Edit(document.id, "self", index, LINE * 8) for document in documents for index in range(EDITS)]
    fits = [
        FitRecord(
            "self",
            replicate,
            0,
            edit.document_id,
            edit.id,
            sequences=(LINE,) * 9,
            train_tokens=4100,
            steps=90,
            first_loss=3.0,
            last_loss=0.5,
            seconds=1.0,
            answers=tuple(Answer(f"{edit.document_id}q{q}", "an answer of some words", 6) for q in range(QUESTIONS)),
        )
        for edit in edits
        for replicate in range(REPLICATES)
    ]
    with Store(path) as store:
        store.add_documents(documents)
        store.add_edits(edits)
        begin = time.perf_counter()
        for start in range(0, len(fits), fits_per_task):
            task = fits[start : start + fits_per_task]
            with store.transaction():
                store.record_fits(task)
                store.add_costs([CostRecord("fits", "self", seconds=1.0, usd=0.88 / 3600)])
        written = time.perf_counter()
        pending = store.to_grade("lexical")
        per_task = fits_per_task * QUESTIONS
        for start in range(0, len(pending), per_task):
            task = pending[start : start + per_task]
            store.add_grades([(id, Grade("right", 1.0, "lexical")) for id, _ in task])
        graded = time.perf_counter()
    assert len(pending) == DOCUMENTS * EDITS * REPLICATES * QUESTIONS
    seconds = graded - begin
    return {
        "fits": len(fits),
        "answers": len(pending),
        "fits_per_task": fits_per_task,
        "seconds_fits": round(written - begin, 3),
        "seconds_grades": round(graded - written, 3),
        "percent_of_an_hour": round(seconds / 3600 * 100, 4),
        "percent_of_ten_minutes": round(seconds / 600 * 100, 4),
        "megabytes": round(path.stat().st_size / 1e6, 1),
    }


def fsync_seconds(directory: Path) -> float:
    """One write of a page and fsync on this disk, mean of 50: what a commit cannot go below."""
    with open(directory / "probe", "wb") as file:
        begin = time.perf_counter()
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        return (time.perf_counter() - begin) / 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--directory", type=Path, default=Path("."), help="where to write; choose the disk of your runs"
    )
    directory = parser.parse_args().directory
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        print(json.dumps({"fsync_milliseconds": round(fsync_seconds(Path(folder)) * 1e3, 3)}))
        for fits_per_task in (1, 5, 30):
            print(json.dumps(measure(Path(folder), fits_per_task)))


if __name__ == "__main__":
    main()
