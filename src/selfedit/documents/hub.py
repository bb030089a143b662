"""Documents from the Hugging Face hub: `hf:OWNER/NAME[/CONFIGURATION][:SPLIT]`, streamed by the `datasets` library.

Two layouts of rows are read: SQuAD's flat one, and documents with "title" and "text".  No code from the hub is run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

from selfedit.documents.document import Document
from selfedit.documents.rows import document_from_row
from selfedit.documents.squad import group_flat_rows
from selfedit.errors import UserError, reason

PREFIX = "hf:"
_NAME = re.compile(
    r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:/(?P<configuration>[\w.-]+))?(?::(?P<split>[\w.-]+))?", re.ASCII
)


def hub_documents(source: str, *, require_questions: bool, counts: Counter[str]) -> Iterator[tuple[str, Document]]:
    """Streams (where, document) of a dataset; the split is `train` unless named.

    Raises UserError where the name is malformed, `datasets` is not installed, the hub or the dataset is out of reach,
    or the columns are of neither layout.
    """
    match = _NAME.fullmatch(source)
    if not match:
        raise UserError(
            f"{source}: not a dataset's name; write hf:OWNER/NAME, hf:OWNER/NAME:SPLIT or hf:O/N/CONFIG:SPLIT"
        )
    rows = _hub_rows(source, match["name"], match["configuration"], match["split"] or "train")
    first = next(rows, None)
    if first is None:
        raise UserError(f"{source}: the dataset is empty")
    rows = chain([first], rows)
    columns = set(first[1])
    if {"context", "question", "answers"} <= columns:
        yield from group_flat_rows(rows, require_questions=require_questions, counts=counts)
    elif {"title", "text"} <= columns:
        for n, (where, row) in enumerate(rows):
            id = row.get("id")
            yield where, document_from_row({**row, "id": str(n if id is None else id)}, where)
    else:
        raise UserError(
            f"{source}: columns {', '.join(sorted(columns))}; needed are title, context, question and answers (SQuAD),"
            " or title and text"
        )


def _hub_rows(source: str, name: str, configuration: str | None, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{source}: reading the Hugging Face hub needs datasets; run: pip install datasets") from None
    try:
        rows = datasets.load_dataset(name, configuration, split=split, streaming=True)
        for n, row in enumerate(rows, 1):
            yield f"{source}, row {n}", row
    except Exception as error:  # no network, no such split, a package that a format needs: each in its own way
        raise UserError(
            f"{source}: the dataset cannot be read ({reason(error)}); check its name and the network"
        ) from error
