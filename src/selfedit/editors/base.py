"""What an editor is, what it works with, and what it writes: edits, texts made from a document to be learned from."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from selfedit.documents import Document
from selfedit.editors.cleaning import about, clean
from selfedit.engine.jobs import Completion, DecodeRequest
from selfedit.errors import UserError
from selfedit.models import Tokenizer
from selfedit.progress import Progress
from selfedit.prompts import Prompts, edit_lead
from selfedit.training.tokens import within_bounds

if TYPE_CHECKING:
    from selfedit.editors.api import ApiClient
    from selfedit.editors.replies import ApiResult


@dataclass(frozen=True)
class Edit:
    """One self-edit.

    `writer` is the condition it belongs to (`self:implications`, `replay:notes.jsonl#gpt-4.1`, `api:gpt-5`), `index`
    counts the edits of one document and writer from 0, `prompt` names the prompt it was written from ("" where there
    was none).  `text` is what is trained on: a last line that was cut off, empty and repeated lines, and lines that are
    not about the document are already gone; `truncated` and `dropped_lines` say so.  `input_tokens` and `output_tokens`
    are what the writer read and wrote.

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


EXAM_WRITER = "exam"  # the name under which what exams are made from is kept, beside the edits
AS_WRITTEN = ", as written"  # behind the writer's name: of an edit that is learned with other answers


def edit_id(round: int, document_id: str, writer: str, index: int) -> str:
    """The id of an edit: `ROUND|DOCUMENT|WRITER|INDEX`; round 0 outside Step B."""
    return f"{round}|{id_part(document_id)}|{id_part(writer)}|{index}"


def edit_writer(id: str) -> str:
    """The writer in the id of an edit."""
    return id.split("|")[2].replace("%7C", "|").replace("%25", "%")


def id_part(text: str) -> str:
    """`text` without the separator, so that two different things never share an id."""
    return text.replace("%", "%25").replace("|", "%7C")


# An edit that is wanted: of which document, and which of its edits, counted from 0.
Wanted = tuple[Document, int]
Keep = Callable[[Sequence[Edit]], None]
Fail = Callable[[str, str], None]  # (id, reason)


class Complete(Protocol):
    """The one way to have a model of the engine complete prompts: the run's own, or another.

    `requests` are prompts by the id of what they belong to; those in `done` are not made again.  `keep(id, completions,
    seconds)` is called as each id's completions come, in the transaction that commits their cost, with their share of
    the device time; `fail(id, reason)` for what was given up (left out: an event names it).
    """

    def __call__(
        self,
        requests: Mapping[str, Sequence[DecodeRequest]],
        done: Container[str],
        keep: Callable[[str, Sequence[Completion], float], None],
        fail: Fail | None = None,
    ) -> None: ...


class Reader(Protocol):
    """What is asked of a model before it writes: how it reads, and how much at once."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def context_length(self) -> int: ...


@dataclass(frozen=True)
class Tools:
    """What editors work with.

    `name` is the condition that the edits belong to and `prompt` the prompt that is used where an editor names none,
    or several (`prompt_of`).  `student` reads the edits.  `model` gives a model of the engine, by name ("": the
    student), as what it reads by and what completes prompts; `client` gives the client of an API model and `book` notes
    what its reply cost.  `seed` is that of a document's edit of this number.
    """

    name: str
    round: int
    prompt: str
    prompts: Prompts
    student: Reader
    model: Callable[[str], tuple[Reader, Complete]]
    client: Callable[[str], ApiClient]
    book: Callable[[str, ApiResult], None]
    progress: Progress
    seed: Callable[[str, int], int]
    max_tokens: int
    temperature: float
    top_p: float
    clean: bool = True

    def edit(
        self, document: Document, index: int, raw: str, *, prompt: str = "", lead: str = "", cut_off: bool = False
    ) -> Edit:
        """An edit of what was written.  One from a prompt is held to its passage and its bounds; one from a file is
        taken as it is.  `lead` is what `raw` begins with because the prompt ended with it."""
        cleaned, dropped = clean(raw, cut_off=cut_off) if self.clean else (raw.strip(), 0)
        if prompt and self.clean:
            # A lesson of Step B writes on behind the lead, so that the line that it is in stays.
            cleaned, others = about(cleaned, f"{document.title}\n{document.text}", keep_first=bool(lead))
            dropped += others
        text = within_bounds(cleaned, self.max_tokens, self.student.tokenizer) if prompt else cleaned
        cut_off = cut_off or text != cleaned
        return Edit(document.id, self.name, index, text, prompt, cut_off, dropped_lines=dropped, round=self.round)


class Editor(Protocol):
    """Writes edits.  An editor is one class in one file, found by `table.EDITORS`; it is made from what `--editor` says
    and its tools."""

    def check(self, documents: Sequence[Document], count: int) -> None:
        """Finds what a user got wrong before a run does any work.  Errors: UserError."""

    def write(self, wanted: Mapping[str, Wanted], done: Container[str], keep: Keep, fail: Fail) -> None:
        """Has the edits of `wanted` written, by id, that are not `done`.

        `keep` is called with edits as they come, in the transaction that commits their cost; `fail(id, reason)` for
        each that could not be written.
        """


def prompt_of(names: str, index: int) -> str:
    """The prompt of a document's edit of this number: of several, with commas between them, the next one each time."""
    some = names.split(",")
    return some[index % len(some)].strip()


def check_prompts(prompts: Prompts, names: str, count: int) -> None:
    """Errors: UserError for a prompt that is not there, or of which none of a document's so many edits is written."""
    number = names.count(",") + 1
    for index in range(number):
        prompts.check(prompt_of(names, index))
    if number > count:
        raise UserError(f"edit prompts {names}: each edit is written from one of them; give --edits {number} or more")


def edit_prompt(prompts: Prompts, name: str, document: Document, *, instruct: bool) -> tuple[str, str]:
    """The prompt, and what an edit begins with because a plain prompt ended with it."""
    text = prompts.edit(name, instruct=instruct, title=document.title, text=document.text)
    return text, "" if instruct else edit_lead(text)
