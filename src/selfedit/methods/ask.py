"""Asks a learned adapter, or the model without it, one question after another.

Which adapters a folder or a run stands for is `adapters`' part.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from selfedit.errors import UserError
from selfedit.methods.adapters import adapter_errors, find_adapters
from selfedit.models import Model, load_model, local_path

if TYPE_CHECKING:
    from selfedit.engine import AdapterBank

logger = logging.getLogger(__name__)


class Asker:
    """A model with what it learned.

    `adapter` is a folder in PEFT's format, or the run directory of `learn`, `train` or `continual`: one adapter is
    attached, the deltas of a chain are merged.  The model is the one that they name, unless `model` says otherwise.

    Errors: UserError where there is no adapter, or it does not fit.
    """

    def __init__(
        self,
        adapter: Path,
        *,
        model: Model | str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        max_tokens: int = 128,
        trust_remote_code: bool = False,
    ) -> None:
        found = find_adapters(adapter)
        name = model.name if isinstance(model, Model) else model or found.model
        if not isinstance(model, Model):
            local_path(name)
        # Only now, when all is there, what takes seconds to import.
        from selfedit.engine import AdapterBank, load_adapter, merge_adapter

        for folder in found.folders:
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
        chain = len(found.folders) != 1
        self.model = model if isinstance(model, Model) and not chain else self._load()
        if self.model.tokenizer.doubt:
            logger.warning(self.model.tokenizer.doubt)
        if max_tokens >= self.model.context_length:
            raise UserError(
                f"--max-tokens {max_tokens}: the model reads {self.model.context_length} tokens at once, the question "
                "among them; give fewer"
            )
        for folder in found.folders:
            with adapter_errors(folder, "; name its model with --model"):
                if chain:
                    merge_adapter(self.model.hf, folder)
                else:
                    spec, state = load_adapter(folder, self.model.hf)
                    self.bank = AdapterBank(self.model.hf, spec, 1)
                    self.bank.load_state(0, state)

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bank is not None:
            self.bank.detach()

    @cached_property
    def _base(self) -> Model:
        """The model as it was: merged deltas cannot be switched off."""
        return self.model if self.bank is not None else self._load()

    def answer(self, messages: Sequence[dict[str, str]], *, base: bool = False) -> str:
        """Goes on with a conversation, greedily; with `base` as the model without the adapter would."""
        from selfedit.engine import DecodeRequest, decode

        model, bank = (self._base, None) if base else (self.model, self.bank)
        tokenizer = model.tokenizer
        room = model.context_length - self.max_tokens
        ids = tokenizer.chat_ids(messages)[-room:]
        request = DecodeRequest(tuple(ids), self.max_tokens, tokenizer.stop_ids, adapter=None if bank is None else 0)
        (completion,) = decode(model.hf, [request], bank=bank)
        return tokenizer.decode(completion.ids).strip()
