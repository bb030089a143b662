"""An edit: text written from a document, to be learned from; and how edits are named."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """One self-edit.

    `writer` is the condition it belongs to (`self:implications`, `replay:notes.jsonl#gpt-4.1`, `api:gpt-5`), `index`
    counts the edits of one document and writer from 0, `prompt` names the prompt it was written from ("" where there
    was none).  `text` is what is trained on: a last line that was cut off and repeated or empty lines are already gone;
    `truncated` and `dropped_lines` say so.  `input_tokens` and `output_tokens` are what the writer read and wrote.

    `round` is the round of Step B in which it was written (0 outside of it), `reward` the mean score of its fits there,
    and `kept` says whether selection kept it (None: not yet known).
    """

    document_id: str
    writer: str
    index: int
    text: str
    prompt: str = ""
    truncated: bool = False
    dropped_lines: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    round: int = 0
    reward: float | None = None
    kept: bool | None = None

    @property
    def id(self) -> str:
        """Its name in a run."""
        return edit_id(self.round, self.document_id, self.writer, self.index)


def edit_id(round: int, document_id: str, writer: str, index: int) -> str:
    """The id of an edit: `ROUND|DOCUMENT|WRITER|INDEX`; round 0 outside Step B."""
    return f"{round}|{id_part(document_id)}|{id_part(writer)}|{index}"


def edit_writer(id: str) -> str:
    """The writer in an edit's id."""
    return id.split("|")[2].replace("%7C", "|").replace("%25", "%")


def id_part(text: str) -> str:
    """`text` without the separator, so that two different things never share an id."""
    return text.replace("%", "%25").replace("|", "%7C")
