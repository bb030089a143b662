"""`api:MODEL`: a model behind an API writes the edits."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from selfedit.documents import Document
from selfedit.editors.base import Fail, Keep, Tools, Wanted, check_prompts, edit_prompt, prompt_of
from selfedit.editors.replies import ApiRequest, ApiResult
from selfedit.editors.spec import EditorSpec


class ApiEditor:
    def __init__(self, spec: EditorSpec, tools: Tools) -> None:
        self.model = spec.argument
        self.tools = tools

    def check(self, documents: Sequence[Document], count: int) -> None:
        check_prompts(self.tools.prompts, self.tools.prompt, count)
        for index in range(count):
            self._prompt(documents[0], index)

    def write(self, wanted: Mapping[str, Wanted], done: Container[str], keep: Keep, fail: Fail) -> None:
        tools = self.tools
        missing = [(id, *one) for id, one in wanted.items() if id not in done]
        prompts = [self._prompt(document, index) for _, document, index in missing]
        requests = [
            ApiRequest(
                text,
                max_tokens=tools.max_tokens,
                temperature=tools.temperature,
                top_p=tools.top_p,
                seed=tools.seed(document.id, index) % 2**31,
                sample=index,
            )
            for (_, document, index), (text, _) in zip(missing, prompts, strict=True)
        ]

        def keep_reply(number: int, result: ApiResult) -> None:
            (id, document, index), (_, lead) = missing[number], prompts[number]
            tools.book(self.model, result)
            tools.progress.advance(1)
            if (failure := result.failure()) is not None:
                fail(id, failure)
                return
            prompt, cut_off = prompt_of(tools.prompt, index), result.truncated
            edit = tools.edit(document, index, lead + result.text, prompt=prompt, lead=lead, cut_off=cut_off)
            keep([replace(edit, input_tokens=result.input_tokens, output_tokens=result.output_tokens)])

        tools.progress.begin(f"edits by {self.model}", len(requests))
        tools.client(self.model).complete(requests, keep_reply)

    @property
    def _chat(self) -> bool:
        return self.tools.client(self.model).endpoint.kind == "chat"

    def _prompt(self, document: Document, index: int) -> tuple[str, str]:
        name = prompt_of(self.tools.prompt, index)
        return edit_prompt(self.tools.prompts, name, document, instruct=self._chat)
