"""A model of the engine writes edits.  `self[:PROMPT]`: the model that learns, or the policy that Step B made of it;
`model:NAME[:PROMPT]`: another."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from selfedit.documents import Document
from selfedit.editors.base import Fail, Keep, Reader, Tools, Wanted, check_prompts, edit_prompt, prompt_of
from selfedit.editors.spec import EditorSpec
from selfedit.engine.jobs import Completion, DecodeRequest
from selfedit.errors import UserError
from selfedit.training.tokens import prompt_tokens


class ModelEditor:
    def __init__(self, spec: EditorSpec, tools: Tools) -> None:
        other = spec.kind == "model"
        self.name = spec.argument if other else ""
        self.prompts = (spec.prompt if other else spec.argument) or tools.prompt
        self.tools = tools

    def check(self, documents: Sequence[Document], count: int) -> None:
        check_prompts(self.tools.prompts, self.prompts, count)
        reader, _ = self.tools.model(self.name)
        for index in range(count):
            self._prompt(documents[0], index, reader)

    def write(self, wanted: Mapping[str, Wanted], done: Container[str], keep: Keep, fail: Fail) -> None:
        tools = self.tools
        reader, complete = tools.model(self.name)
        tokenizer = reader.tokenizer
        asked: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {}  # tokens and lead
        requests: dict[str, Sequence[DecodeRequest]] = {}
        for id, (document, index) in wanted.items():
            key = document.id, prompt_of(self.prompts, index)
            if key not in asked:
                text, lead = self._prompt(document, index, reader)
                try:
                    asked[key] = prompt_tokens(tokenizer, text, reader.context_length), lead
                except UserError as error:
                    fail(id, f"{error}; cut the document into shorter ones")
                    continue
            request = DecodeRequest(
                asked[key][0],
                tools.max_tokens,
                tokenizer.stop_ids,
                temperature=tools.temperature,
                top_p=tools.top_p,
                seed=tools.seed(document.id, index),
            )
            requests[id] = [request]

        def keep_written(id: str, completions: Sequence[Completion], seconds: float) -> None:
            (completion,), (document, index) = completions, wanted[id]
            prompt = prompt_of(self.prompts, index)
            ids, lead = asked[document.id, prompt]
            raw = tokenizer.decode([*tokenizer.encode(lead), *completion.ids])
            edit = tools.edit(document, index, raw, prompt=prompt, lead=lead, cut_off=not completion.finished)
            keep([replace(edit, input_tokens=len(ids), output_tokens=len(completion.ids))])

        complete(requests, done, keep_written, fail)

    def _prompt(self, document: Document, index: int, reader: Reader) -> tuple[str, str]:
        name, instruct = prompt_of(self.prompts, index), reader.tokenizer.instruct
        return edit_prompt(self.tools.prompts, name, document, instruct=instruct)
