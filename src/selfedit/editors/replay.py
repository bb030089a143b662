"""`replay:FILE[#writer]`: edits that were written before, from a file."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from selfedit.documents import Document, load_edits
from selfedit.editors.base import Fail, Keep, Tools, Wanted
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError


class ReplayEditor:
    def __init__(self, spec: EditorSpec, tools: Tools) -> None:
        self.source = f"{spec.argument}#{spec.writer}" if spec.writer else spec.argument
        self.tools = tools

    def check(self, documents: Sequence[Document], count: int) -> None:
        self._texts([(document, count - 1) for document in documents])

    def write(self, wanted: Mapping[str, Wanted], done: Container[str], keep: Keep, fail: Fail) -> None:
        missing = [one for id, one in wanted.items() if id not in done]
        texts = self._texts(missing)
        keep([self.tools.edit(*one, text) for one, text in zip(missing, texts, strict=True)])

    def _texts(self, wanted: Sequence[Wanted]) -> list[str]:
        """Errors: UserError where an edit is not there."""
        edits = load_edits(self.source)
        edits.require(document.id for document, _ in wanted)
        for document, index in wanted:
            if index >= len(edits[document.id]):
                raise UserError(
                    f"--editor replay:{self.source}: document {document.id} has {len(edits[document.id])} edits;"
                    f" --edits asks for {index + 1}"
                )
        return [edits[document.id][index] for document, index in wanted]
