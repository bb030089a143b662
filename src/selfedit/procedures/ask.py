"""Asks a learned adapter, or the model without it, one question after another.

Knows a model, an adapter on disk, and the exam's prompt.  Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from selfedit.errors import UserError
from selfedit.models import BUNDLED, Model, load_model, local_path
from selfedit.runs.directory import read_config


class Asker:
    """A model with one adapter attached.

    `adapter` is a folder in PEFT's format, or the run directory of `learn`, whose adapter it then is.  The model is the one
    that the adapter names, unless `model` says otherwise.  Errors: UserError where the folder holds no adapter, or it does not fit.
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
        folder, run_model = adapter_folder(adapter)
        name = run_model or base_model(folder)
        if not isinstance(model, Model):
            local_path(model or name)
        # Only now, when all is there, what takes seconds to import.
        from selfedit.engine import AdapterBank, load_adapter

        with adapter_errors(folder):
            spec, state = load_adapter(folder)
        if isinstance(model, Model):
            self.model = model
        else:
            self.model = load_model(model or name, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        self.max_tokens = max_tokens
        if max_tokens >= self.model.context_length:
            raise UserError(
                f"--max-tokens {max_tokens}: the model reads {self.model.context_length} tokens at once, the question among"
                " them; give fewer"
            )
        try:
            self.bank = AdapterBank(self.model.hf, spec, 1)
            self.bank.load_state(0, state)
        except ValueError as error:
            raise UserError(
                f"{adapter}: does not fit model {self.model.name} ({error}); name its model with --model"
            ) from None

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.bank.detach()

    def answer(self, messages: Sequence[dict[str, str]], *, base: bool = False) -> str:
        """Goes on with a conversation, greedily; with `base` as the model without the adapter would."""
        from selfedit.engine import DecodeRequest, decode

        tokenizer = self.model.tokenizer
        room = self.model.context_length - self.max_tokens
        ids = tokenizer.chat_ids(messages)[-room:]
        request = DecodeRequest(tuple(ids), self.max_tokens, tokenizer.stop_ids, adapter=None if base else 0)
        (completion,) = decode(self.model.hf, [request], bank=None if base else self.bank)
        return tokenizer.decode(completion.ids).strip()


def adapter_folder(path: Path) -> tuple[Path, str | None]:
    """The adapter's folder, and the model of the run that it belongs to."""
    if (path / "config.yaml").is_file() and not (path / "adapter_config.json").is_file():
        return path / "adapters" / "learned", str(read_config(path / "config.yaml")["model"])
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give an adapter's folder or the run directory of `selfedit learn`")
    return path, None


def base_model(folder: Path) -> str:
    """The model that an adapter says it was trained on."""
    from selfedit.engine.peft_format import model_name

    with adapter_errors(folder):
        return model_name(folder) or BUNDLED


@contextmanager
def adapter_errors(folder: Path, mend: str = "") -> Iterator[None]:
    """What can be wrong with an adapter, in one line each; `mend` is added where it does not fit."""
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError as error:
        missing = Path(str(error.filename or "adapter_model.safetensors")).name
        raise UserError(f"{folder}: no adapter there ({missing} is missing)") from None
    except OSError as error:
        raise UserError(f"{folder}: the adapter cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise UserError(f"{folder / 'adapter_model.safetensors'}: not a whole safetensors file ({error})") from None
    except ValueError as error:
        raise UserError(f"{error}{mend}") from None
