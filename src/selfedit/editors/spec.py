"""What `--editor` says: which writer a condition's edits come from.

Parsing opens no file and loads no model, so that a mistyped `--editor` is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, get_args

from selfedit.errors import UserError

EditorKind = Literal["none", "open-book", "retrieval", "passage", "self", "model", "replay", "api"]

FORMS = (
    "none, open-book, retrieval[:K], passage, self, self:PROMPT, model:NAME[:PROMPT], replay:FILE[#writer], api:MODEL"
)

RETRIEVED = "3"  # documents that `retrieval` shows if it is not told how many (docs/compare.md says why)


@dataclass(frozen=True)
class EditorSpec:
    """One editor, as given.

    `argument` is how many documents are shown (`retrieval`), the prompt (`self`; "" for the default one), the file
    (`replay`; `news` for the built-in one) or the model (`model`, `api`).  `writer` picks one of the writers of a
    replay file, "" where the file has only one.  `prompt` is that of `model`, "" for the default one.
    """

    kind: EditorKind
    argument: str = ""
    writer: str = ""
    prompt: str = ""

    @classmethod
    def parse(cls, text: str) -> EditorSpec:
        """Reads one of the forms (see FORMS); UserError, with the list of forms, for anything else."""
        kind, colon, argument = text.strip().partition(":")
        argument, writer, prompt = argument.strip(), "", ""
        if kind not in get_args(EditorKind):
            raise _wrong(text, f"there is no kind of editor called '{kind}'")
        if kind in ("none", "open-book", "passage") and colon:
            raise _wrong(text, f"'{kind}' takes nothing after it")
        if kind == "retrieval":
            argument = argument if colon else RETRIEVED
            # Python reads no number of thousands of digits.
            if not argument.isdecimal() or len(argument) > 9 or not int(argument):
                raise _wrong(text, f"after '{kind}:' comes how many documents are shown, from 1")
            argument = str(int(argument))
        if kind == "replay":
            # A file's name may hold a '#'; a writer's may not.
            argument, writer = _parted(text, argument, "#", "the writer's")
        if kind == "model":
            # A folder's name may hold a ':'; a prompt's may not.
            argument, prompt = _parted(text, argument, ":", "the prompt's")
        if (kind == "self" and colon and not argument) or (kind in ("model", "replay", "api") and not argument):
            what = {"self": "the prompt", "replay": "the file"}.get(kind, "the model")
            raise _wrong(text, f"{what} after '{kind}:' is missing")
        if any(character == "|" or not character.isprintable() for character in text):
            raise _wrong(text, "a condition's name must not hold '|' or control characters")
        return cls(kind, argument, writer, prompt)  # type: ignore[arg-type]

    @property
    def learns(self) -> bool:
        """Whether anything is learned under this condition; if not, the model is examined as it is."""
        return self.kind not in ("none", "open-book", "retrieval")

    @property
    def name(self) -> str:
        """The condition's name: as given, with a file shortened to its stem (`replay:edits#gpt-4.1`), and a model's
        folder to its last part."""
        if not self.argument:
            return self.kind
        short = self.argument
        if self.kind == "replay":
            short = PurePath(short).stem
        if self.kind == "model" and (short.count("/") > 1 or short.startswith((".", "/"))):  # no name on the hub
            short = PurePath(short).name or short
        return f"{self.kind}:{short}" + (f"#{self.writer}" if self.writer else "") + (self.prompt and f":{self.prompt}")


def parse_editors(texts: list[str]) -> list[EditorSpec]:
    """Reads every `--editor` in order; UserError where two would be conditions of one name."""
    specs = [EditorSpec.parse(text) for text in texts]
    seen: dict[str, str] = {}
    for text, spec in zip(texts, specs, strict=True):
        if spec.name in seen:
            raise UserError(
                f"--editor {text}: the condition '{spec.name}' is already there (from {seen[spec.name]}); "
                "leave one out, or rename one of the files"
            )
        seen[spec.name] = text
    return specs


def _parted(text: str, argument: str, mark: str, whose: str) -> tuple[str, str]:
    """What stands before the last mark, and the name behind it ("" where there is no mark)."""
    before, found, after = argument.rpartition(mark)
    if not found:
        return argument, ""
    if not after.strip():
        raise _wrong(text, f"{whose} name after '{mark}' is empty")
    return before.strip(), after.strip()


def _wrong(text: str, reason: str) -> UserError:
    return UserError(f"--editor {text!r}: {reason}; the forms are {FORMS}")
