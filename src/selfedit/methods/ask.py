"""Asks learned adapters, or the model without them, one question after another.

Which adapters a folder or a run stands for is `adapters`' part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfedit.documents import Document
from selfedit.errors import UserError
from selfedit.evaluation.search import Search
from selfedit.execution.recitation import remember
from selfedit.methods.adapters import LEARNED, Adapters, adapter_errors, find_adapters
from selfedit.methods.by_heart import ByHeart
from selfedit.models import Model, load_model, local_path

if TYPE_CHECKING:
    from selfedit.engine import AdapterBank, DecodeRequest

logger = logging.getLogger(__name__)

BASE = "base"  # the name of the model without an adapter


@dataclass(frozen=True)
class Reply:
    """An answer of so many `tokens` to a prompt of `prompt_tokens`; cut off where it is not `finished`."""

    text: str
    prompt_tokens: int
    tokens: int
    finished: bool


class Asker:
    """A model with what it learned.

    `adapter` is a folder in PEFT's format, or the run directory of `learn`, `train` or `continual`: one adapter is
    attached, the deltas of a chain are merged; of a run with an adapter per document, each question has its own
    attached (`document`); one that has its documents by heart recites one, for the model as it is to answer from.
    `others` are further adapters of the same model and shape, by name; the
    first one is called `learned`.  The model is the one that they name, unless `model` says otherwise.

    Errors: UserError where there is no adapter, or it does not fit.
    """

    def __init__(
        self,
        adapter: Path,
        *,
        others: Mapping[str, Path] | None = None,
        model: Model | str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        max_tokens: int = 128,
        trust_remote_code: bool = False,
    ) -> None:
        sources = {LEARNED: find_adapters(adapter)}
        for other, path in (others or {}).items():
            if other in (LEARNED, BASE):
                raise UserError(f"--with {other}=...: the name is taken; choose another")
            sources[other] = find_adapters(path)
        found = sources[LEARNED]
        self.names = tuple(sources)
        name = model.name if isinstance(model, Model) else model or found.model
        _check_alike(sources, None if model is None else name)
        if not isinstance(model, Model):
            local_path(name)
        # Only now, when all is there, what takes seconds to import.
        from selfedit.engine import AdapterBank, load_adapter, merge_adapter

        self._search = Search(found.documents) if found.documents else None
        self._by_heart = ByHeart.beside(found.folders[0]) if found.recites else None
        self._adapters = dict(zip((document.id for document in found.documents), found.folders, strict=False))
        folders = [folder for one in sources.values() for folder in one.folders] if not found.documents else []
        for folder in folders:
            with adapter_errors(folder):
                load_adapter(folder)  # what is wrong with the files themselves is said before a model is loaded
        self._load = partial(
            load_model,
            name,
            device=device,
            dtype=dtype,
            instruct=found.instruct,
            trust_remote_code=trust_remote_code,
        )
        self.max_tokens = max_tokens
        self.bank: AdapterBank | None = None
        self._chain = len(found.folders) != 1 and not found.documents
        self.model = model if isinstance(model, Model) and not self._chain else self._load()
        if self.model.tokenizer.doubt:
            logger.warning(self.model.tokenizer.doubt)
        if max_tokens >= self.model.context_length:
            raise UserError(
                f"--max-tokens {max_tokens}: the model reads {self.model.context_length} tokens at once, the question "
                "among them; give fewer"
            )
        for number, folder in enumerate(folders):
            with adapter_errors(folder, "; name its model with --model"):
                if self._chain:
                    merge_adapter(self.model.hf, folder)
                    continue
                spec, state = load_adapter(folder, self.model.hf)
                self.bank = self.bank or AdapterBank(self.model.hf, spec, len(folders))
                if spec != self.bank.spec:
                    self.bank.detach()
                    raise UserError(f"{folder}: of another shape (rank, layers, scale) than {folders[0]}; ask it alone")
                self.bank.load_state(number, state)
        if found.documents:  # whether they fit the model is told before a question is asked
            self._attach(found.folders[0])

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bank is not None:
            self.bank.detach()

    @cached_property
    def _base(self) -> Model:
        """The model as it was: merged deltas cannot be switched off."""
        return self._load() if self._chain else self.model

    @property
    def recites(self) -> bool:
        """Whether the adapter has its documents by heart: `document` is then what it writes down."""
        return self._by_heart is not None

    @property
    def routed(self) -> bool:
        """Whether each question goes to one document: to its adapter, or to what the adapter recites."""
        return self._search is not None or self.recites

    def document(self, messages: Sequence[dict[str, str]]) -> Document | None:
        """The document whose adapter answers: what the last message is about, by its words, the sooner where the user
        has asked about it before; or what the adapter recites.  None: the model as it is answers, as it does where
        adapters have not learned a document each."""
        if self._by_heart is not None:
            return self._remembered(messages[-1]["content"])
        before = [message["content"] for message in messages[:-1] if message["role"] == "user"]
        return None if self._search is None else self._search.about(messages[-1]["content"], before)

    @cached_property
    def _remembered(self) -> Callable[[str], Document | None]:
        """`_remember`, once per message of the latest ones: a conversation comes back with each turn."""
        assert self._by_heart is not None
        return lru_cache(1024)(partial(self._remember, self._by_heart))

    def _with_recited(self, messages: Sequence[dict[str, str]]) -> Sequence[dict[str, str]]:
        """The conversation with what the adapter recites before the latest message that it names a title of, as the
        model was shown it when that was asked; so a follow-up, which names none, is answered from it too."""
        for place, message in reversed(list(enumerate(messages))):
            if message["role"] == "user" and (document := self._remembered(message["content"])):
                shown = {**message, "content": f"{document.title}\n{document.text}\n\n{message['content']}"}
                return [*messages[:place], shown, *messages[place + 1 :]]
        return messages

    def _remember(self, by_heart: ByHeart, said: str) -> Document | None:
        """What the adapter recites under the title that it names of a message."""
        from selfedit.engine import decode, losses

        tokenizer = self.model.tokenizer
        complete = partial(decode, self.model.hf, bank=self.bank)
        weigh = partial(losses, self.model.hf, bank=self.bank)
        recital = by_heart.recital([by_heart.reading(said, tokenizer)])
        titles, texts = remember(tokenizer, complete, weigh, {0: recital})
        (title,) = titles[0]
        return Document(title, title, texts[0, title]) if (0, title) in texts else None

    def _attach(self, folder: Path) -> None:
        """Has the adapter in this folder answer."""
        from selfedit.engine import AdapterBank, load_adapter

        with adapter_errors(folder, "; name its model with --model"):
            spec, state = load_adapter(folder, self.model.hf)
            if self.bank is not None and self.bank.spec != spec:
                self.bank.detach()
                self.bank = None
            self.bank = self.bank or AdapterBank(self.model.hf, spec, 1)
            self.bank.load_state(0, state)

    def answer(
        self,
        messages: Sequence[dict[str, str]],
        *,
        name: str = LEARNED,
        base: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Goes on with a conversation, greedily, by the adapter of this name; with `base`, or as `base`, as the model
        without any would.  `on_text` is called with the answer piece by piece, as it comes."""
        name = BASE if base else name
        document = None if name == BASE else self.document(messages)
        return self.reply(messages, document=document, name=name, on_text=on_text).text

    def reply(
        self,
        messages: Sequence[dict[str, str]],
        *,
        document: Document | None,
        name: str = LEARNED,
        on_text: Callable[[str], None] | None = None,
        max_tokens: int | None = None,
        **sampling: Any,
    ) -> Reply:
        """`answer`, by what `document` found, with what it took; an adapter that recites looks in all messages itself.
        `sampling` are temperature, top_p and seed of a `DecodeRequest`.  The prompt goes before `max_tokens`: an answer
        has at most what it leaves of the context, but always room for a quarter of it."""
        (reply,) = self._replies(messages, document, [name], on_text, max_tokens or self.max_tokens, **sampling)
        return reply

    def compare(self, messages: Sequence[dict[str, str]], document: Document | None) -> dict[str, str]:
        """What each adapter would say, by what `document` found, and the model without any, by name."""
        names = [*self.names, BASE]
        replies = [
            *self._replies(messages, document, self.names, None, self.max_tokens),
            *self._replies(messages, None, [BASE], None, self.max_tokens),
        ]
        return {name: reply.text for name, reply in zip(names, replies, strict=True)}

    def _replies(
        self,
        messages: Sequence[dict[str, str]],
        document: Document | None,
        names: Sequence[str],
        on_text: Callable[[str], None] | None,
        max_tokens: int,
        **sampling: Any,
    ) -> list[Reply]:
        from selfedit.engine import DecodeRequest, decode

        if self.routed and list(names) != [BASE]:
            if self._by_heart is not None:
                names, messages = [BASE], self._with_recited(messages)
            elif document is None:
                names = [BASE]
            else:
                self._attach(self._adapters[document.id])
        model, bank = (self._base, None) if list(names) == [BASE] else (self.model, self.bank)
        tokenizer = model.tokenizer
        ids = tuple(tokenizer.chat_ids(messages))
        max_tokens = min(max_tokens, max(model.context_length - len(ids), model.context_length // 4))
        ids = ids[-(model.context_length - max_tokens) :]
        numbers = [None if bank is None else self.names.index(name) for name in names]
        requests: list[DecodeRequest] = [
            DecodeRequest(ids, max_tokens, tokenizer.stop_ids, number, **sampling) for number in numbers
        ]
        written: list[int] = []
        shown = ""

        def show(_: int, token: int) -> None:
            nonlocal shown
            written.append(token)
            text = tokenizer.decode(written).strip()
            # Half a character is not shown, nor white space that may end the answer.
            if on_text is not None and text.startswith(shown) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                on_text(text[len(shown) :])
                shown = text

        completions = decode(model.hf, requests, bank=bank, on_token=None if on_text is None else show)
        replies = [
            Reply(tokenizer.decode(completion.ids).strip(), len(ids), len(completion.ids), completion.finished)
            for completion in completions
        ]
        if on_text is not None:
            on_text(replies[0].text.removeprefix(shown))
        return replies


def _check_alike(sources: Mapping[str, Adapters], model: str | None) -> None:
    """Errors: UserError for adapters that cannot be attached to one model side by side."""
    first = sources[LEARNED]
    for name, one in sources.items():
        if len(sources) > 1 and one.documents:
            raise UserError(f"{name}: an adapter per document, of which each question has its own; ask it alone")
        if len(sources) > 1 and one.recites:
            raise UserError(f"{name}: an adapter that recites what it learned; ask it alone")
        if len(sources) > 1 and len(one.folders) != 1:
            raise UserError(f"{name}: a run of several steps, which are merged into the model; ask it alone")
        if model is None and one.model != first.model:
            raise UserError(f"{name}: an adapter of {one.model}, not of {first.model}; ask it alone")
        if one.instruct is not None and first.instruct is not None and one.instruct != first.instruct:
            raise UserError(f"{name}: learned with other prompts (--instruct) than {LEARNED}; ask it alone")
