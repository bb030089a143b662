"""What an edit is: text written from a document, to be learned from.

Knows no model and no API; those are the writers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """One self-edit.

    `writer` is the condition it belongs to (`self:implications`, `replay:notes.jsonl#gpt-4.1`, `api:gpt-5`), `index`
    counts the edits of one document and writer from 0, `prompt` names the prompt it was written from ("" where none
    was). `text` is what is trained on: a last line that was cut off and repeated or empty lines are already gone;
    `truncated` and `dropped_lines` say so.  `input_tokens` and `output_tokens` are what the writer read and wrote."""

    document_id: str
    writer: str
    index: int
    text: str
    prompt: str = ""
    truncated: bool = False
    dropped_lines: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def id(self) -> str:
        return f"{self.document_id}|{self.writer}|{self.index}"
