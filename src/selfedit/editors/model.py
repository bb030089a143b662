"""A model of the engine writes edits.  `self[:PROMPT]`: the model that learns, or the policy that Step B made of it;
`model:NAME[:PROMPT]`: another."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace

from selfedit.documents import Document
from selfedit.editors.base import Edit, Fail, Reader, Tools, Wanted, edit_prompt
from selfedit.editors.spec import EditorSpec
from selfedit.engine.jobs import Completion, DecodeRequest
from selfedit.errors import UserError
from selfedit.training.tokens import prompt_tokens


class ModelEditor:
    def __init__(self, spec: EditorSpec, tools: Tools) -> None:
        other = spec.kind == "model"
        self.name = spec.argument if other else ""
        self.prompt = (spec.prompt if other else spec.argument) or tools.prompt
        self.tools = tools

    def check(self, documents: Sequence[Document], count: int) -> None:
        self.tools.prompts.check(self.prompt)
        reader, _ = self.tools.model(self.name)
        self._prompt(documents[0], reader)

    def write(
        self, wanted: Mapping[str, Wanted], done: Container[str], keep: Callable[[Sequence[Edit]], None], fail: Fail
    ) -> None:
        tools = self.tools
        reader, complete = tools.model(self.name)
        tokenizer = reader.tokenizer
        asked: dict[str, tuple[tuple[int, ...], str] | UserError] = {}  # tokens and lead, by document
        requests: dict[str, Sequence[DecodeRequest]] = {}
        for id, (document, index) in wanted.items():
            if document.id not in asked:
                text, lead = self._prompt(document, reader)
                try:
                    asked[document.id] = prompt_tokens(tokenizer, text, reader.context_length), lead
                except UserError as error:
                    asked[document.id] = error
            found = asked[document.id]
            if isinstance(found, UserError):
                fail(id, f"{found}; cut the document into shorter ones")
                continue
            request = DecodeRequest(
                found[0],
                tools.max_tokens,
                tokenizer.stop_ids,
                temperature=tools.temperature,
                top_p=tools.top_p,
                seed=tools.seed(document.id, index),
            )
            requests[id] = [request]

        def keep_written(id: str, completions: Sequence[Completion], seconds: float) -> None:
            (completion,), (document, index) = completions, wanted[id]
            ids, lead = asked[document.id]  # type: ignore[misc]
            raw = tokenizer.decode([*tokenizer.encode(lead), *completion.ids])
            edit = tools.edit(document, index, raw, prompt=self.prompt, cut_off=not completion.finished)
            keep([replace(edit, input_tokens=len(ids), output_tokens=len(completion.ids))])

        complete(requests, done, keep_written, fail)

    def _prompt(self, document: Document, reader: Reader) -> tuple[str, str]:
        return edit_prompt(self.tools.prompts, self.prompt, document, instruct=reader.tokenizer.instruct)
