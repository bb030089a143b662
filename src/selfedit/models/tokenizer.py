"""A tokenizer, and the way its model is prompted.

Texts are encoded as texts: a control token that is spelled out in a document, a question or an edit (`<|im_end|>`)
becomes ordinary tokens, and only the chat template writes real ones.  A text without control tokens is encoded as
always.

What a chat model is prompted with must not change by day or by server, so its template is pinned when it is loaded, and
`export` writes the pinned template.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from selfedit.errors import UserError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER = {"role": "user", "content": "?"}
_SHOWN = "\ufdd0"  # in no text; what a template makes of a message shows where it is

_PINNED = "{#- prompts as in selfedit's training -#}"
# The newline after the last block belongs to the block (`trim_blocks`): the template itself begins a line, as it did
# alone.
_NO_THINKING = "{%- if enable_thinking is not defined %}{% set enable_thinking = false %}{% endif %}\n"
_DAY = (
    "{%- if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{%- macro strftime_now(format) %}{{- format | replace('%Y', '2024') | replace('%m', '07') | replace('%d', '26')"
    " | replace('%B', 'July') | replace('%b', 'Jul') | replace('%A', 'Friday') | replace('%a', 'Fri')"
    " | replace('%H', '12') | replace('%M', '00') | replace('%S', '00') -}}{% endmacro %}\n"
)
_EMPTY_SYSTEM = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{% set messages = [{'role': 'system', 'content': ''}] + messages %}{% endif %}\n"
)


@dataclass
class Tokenizer:
    """A Hugging Face tokenizer, and how its model is prompted.

    `instruct` says that prompts go through the chat template; the template of `hf` is then pinned in place.
    `stop_ids` are the tokens that end an answer.  `doubt` says why `instruct` may be wrong ("": it was asked for, or
    name and configuration are clear).
    """

    hf: PreTrainedTokenizerBase
    instruct: bool
    stop_ids: tuple[int, ...]
    doubt: str = ""

    def __post_init__(self) -> None:
        if self.instruct:
            self._pin_template()

    @cached_property
    def plain(self) -> Tokenizer:
        """The tokenizer that prompts the same model in plain text."""
        return replace(self, instruct=False) if self.instruct else self

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: no control token comes out of it, and none is added."""
        return self._join(self._pieces(text))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.hf.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def text_ids(self, text: str) -> list[int]:
        """A training text as the model saw texts in pretraining: its usual beginning, the text, the end-of-text
        token."""
        end = [] if self.hf.eos_token_id is None else [self.hf.eos_token_id]
        return [*self._beginning, *self.encode(text), *end]

    def prompt_ids(self, user: str) -> list[int]:
        """Ids of a prompt: through the chat template (thinking switched off where it can be), or as plain text."""
        if not self.instruct:
            return [*self._beginning, *self.encode(user)]
        return self._template([{"role": "user", "content": user}])

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation that the model is to continue; for a base model, its texts one after another."""
        if not self.instruct:
            return [*self._beginning, *self.encode("\n".join(message["content"] for message in messages) + "\n")]
        return self._template(list(messages))

    def example(self, prompt: str, completion: str, *, lead: str = "", ended: bool = True) -> tuple[list[int], int]:
        """A training example: `prompt_ids(prompt)`, then what the model has to write after them to have written
        `completion`, up to the token that ends a turn (or a text, for a base model).  Where the model had not `ended`,
        that is left out, unless it is all that there is.  Also the number of the prompt's ids.

        `lead` is what a plain prompt ends with and a completion begins with; it is not written twice.
        """
        ids = self.prompt_ids(prompt)
        between, end = self._turn
        if lead and completion.startswith(lead):
            completion = completion[len(lead) :]
        elif not self.instruct and not prompt[-1:].isspace():
            between = " "  # a plain prompt such as "Answer:" is gone on with on its line
        written = [id for piece in self._pieces(between + completion) for id in self._go_on(piece)]
        return [*ids, *written, *(end if ended or not written else [])], len(ids)

    @cached_property
    def _turn(self) -> tuple[str, list[int]]:
        """What the template puts between a prompt and the reply (nothing, or a space), and the token after the
        reply."""
        if self.instruct:
            reply = {"role": "assistant", "content": "!"}
            prompt, whole = self._render([_USER]), self._render([_USER, reply], add_generation_prompt=False)
            before, there, after = whole.removeprefix(prompt).partition("!")
            if whole.startswith(prompt) and there and not before.strip():
                ends = (id for id in self._plain(after) if id in self.stop_ids)
                return before, [next(ends, *self.stop_ids[:1])]
        return "", list(self.stop_ids[:1])

    # Control tokens

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Matches the first character of every control token: those that the tokenizer calls special, those that end an
        answer, and what the chat template writes and is no word (`<think>`)."""
        template = str(self.hf.chat_template or "")
        found = {
            token.content
            for id, token in self.hf.added_tokens_decoder.items()
            if token.special
            or id in self.stop_ids
            or (token.content in template and re.search(r"[^\w\s]", token.content))
        }
        found.update(self.hf.all_special_tokens)
        behind: dict[str, list[str]] = {}
        for token in sorted(found):
            if len(token) > 1:  # a token of one character has no other spelling
                behind.setdefault(token[0], []).append(re.escape(token[1:]))
        return re.compile("|".join(f"{re.escape(c)}(?={'|'.join(rest)})" for c, rest in behind.items()) or "(?!)")

    def _pieces(self, text: str) -> list[str]:
        """A text, cut after the first character of each control token in it, so that no piece holds a whole one.

        Half a character ("\\ud83d"), which no tokenizer takes, becomes a question mark."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        cuts = [match.end() for match in self._control.finditer(text)]
        return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]

    def _join(self, pieces: Sequence[str]) -> list[int]:
        ids = self._plain(pieces[0])
        for piece in pieces[1:]:
            ids += self._go_on(piece)
        return ids

    def _plain(self, text: str) -> list[int]:
        return list(self.hf.encode(text, add_special_tokens=False))

    def _go_on(self, text: str) -> list[int]:
        """Ids of what follows other text: without the space that some tokenizers put before the first word."""
        if not self._puts_space:
            return self._plain(text)
        newline, ids = self._plain("\n"), self._plain("\n" + text)
        return ids[len(newline) :] if ids[: len(newline)] == newline else self._plain(text)

    @cached_property
    def _puts_space(self) -> bool:
        return self._plain("\na") != self._plain("\n") + self._plain("a")

    @cached_property
    def _beginning(self) -> list[int]:
        """What the tokenizer itself puts before a text (Llama and Gemma: the begin token; SmolLM2 and Qwen:
        nothing)."""
        text = self._plain("a")
        whole = list(self.hf.encode("a", add_special_tokens=True))
        starts = (k for k in range(len(whole)) if whole[k : k + len(text)] == text)
        return whole[: next(starts, 0)]

    # The chat template

    def _template(self, messages: list[dict[str, str]]) -> list[int]:
        """Renders messages with a mark inside each control token of theirs, and encodes what is between the marks."""
        if messages[0]["role"] == "system" and not self._takes_system:
            system, *others = messages
            user, *others = others or [{"role": "user", "content": ""}]
            messages = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *others]
        texts = [str(self.hf.chat_template), *(message["content"] for message in messages)]
        mark = next(c for c in map(chr, range(ord(_SHOWN), sys.maxunicode)) if not any(c in text for text in texts))
        marked = [{**message, "content": mark.join(self._pieces(message["content"]))} for message in messages]
        return self._join(self._render(marked).split(mark))

    def _render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        try:
            return str(
                self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
            )
        except (
            Exception
        ) as error:  # a template is the model's code: whatever it raises says that it does not take these
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"model {self.hf.name_or_path}: its chat template takes no messages of {roles}, or fails"
                f" ({reason(error)})"
            ) from error

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template shows a system message (Gemma 2 refuses one, others leave it out)."""
        try:
            return _SHOWN in self._render([{"role": "system", "content": _SHOWN}, _USER])
        except UserError:
            return False

    def _pin_template(self) -> None:
        """Thinking is off unless asked for; the day is a fixed one; and a system message that the template would add by
        itself ("You are ...") is left empty where the template allows it: it says nothing about the task and would cost
        tokens in every training sequence."""
        try:
            template = self.hf.get_chat_template()
        except ValueError as error:
            raise UserError(f"model {self.hf.name_or_path}: {reason(error)}") from None
        if template.startswith(_PINNED):
            return
        pins = _NO_THINKING * ("enable_thinking" in template)
        pins += _DAY * ("date_string" in template or "strftime_now" in template)
        self._set_template(pins + template)
        if self._adds_system:
            pins += _EMPTY_SYSTEM
        self._set_template(_PINNED * bool(pins) + pins + template)
        if _SHOWN not in self._render([{"role": "user", "content": _SHOWN}]):
            raise UserError(
                f"model {self.hf.name_or_path}: its chat template leaves out what a user says; prompt it in plain text"
                " (--no-instruct)"
            )

    def _set_template(self, template: str) -> None:
        named = self.hf.chat_template
        self.hf.chat_template = {**named, "default": template} if isinstance(named, dict) else template

    @property
    def _adds_system(self) -> bool:
        user = {"role": "user", "content": _SHOWN}
        try:
            emptied, without = self._render([{"role": "system", "content": ""}, user]), self._render([user])
        except UserError:  # the template takes no system message
            return False
        return len(emptied) < len(without) and _SHOWN in emptied
