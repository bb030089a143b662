"""GGUF files by llama.cpp's converters, and Ollama's Modelfile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from selfedit.errors import UserError
from selfedit.methods.export import export
from selfedit.methods.gguf_export import ADAPTER, MODEL, modelfile
from selfedit.methods.learn import learn
from selfedit.methods.settings import LearnSettings
from selfedit.models import load_tokenizer

# Says what it was given, in the place of llama.cpp's scripts: these know no tiny model's tokenizer.
SAYS = """import sys, pathlib
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--outfile") + 1])
out.write_text(" ".join(words))
assert all(pathlib.Path(word).is_dir() for word in words if "/" in word and word != str(out)), words
"""


@pytest.fixture
def learned(quick: dict[str, Any], documents: Callable[[int], str], chat_model: str) -> Path:
    settings = LearnSettings(model=chat_model, documents=(documents(1),), editor="passage", references=False, **quick)
    return learn(settings).adapter


def scripts(folder: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    for name in (MODEL, ADAPTER):
        (folder / name).write_text(content)
    monkeypatch.setenv("LLAMA_CPP", str(folder))


def test_without_llama_cpp_one_line_says_where_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"--gguf: llama.cpp's convert_hf_to_gguf.py is not on PATH; clone llama.cpp"):
        export(tmp_path, tmp_path / "out", gguf="auto")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(UserError, match=f"is not in {tmp_path}"):
        export(tmp_path, tmp_path / "out", gguf="auto")
    with pytest.raises(UserError, match="add --gguf"):
        export(tmp_path, tmp_path / "out", adapter_only=True)


def test_a_merged_model_has_a_gguf_file_and_a_modelfile_beside_it(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts(tmp_path / "llama.cpp", SAYS, monkeypatch)
    export(learned, tmp_path / "out", gguf="f16")
    assert (tmp_path / "out" / "model.gguf").read_text().endswith("model.gguf --outtype f16")
    assert (tmp_path / "out" / "Modelfile").read_text().startswith("FROM ./model.gguf\nPARAMETER temperature 0\n")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_model_and_adapter_can_stay_apart(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts(tmp_path / "llama.cpp", SAYS, monkeypatch)
    export(learned, tmp_path / "out", gguf="auto", adapter_only=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["Modelfile", "adapter.gguf", "base.gguf"]
    assert (tmp_path / "out" / "adapter.gguf").read_text().startswith(f"{learned} --base ")
    assert "FROM ./base.gguf\nADAPTER ./adapter.gguf\n" in (tmp_path / "out" / "Modelfile").read_text()


def test_a_conversion_that_fails_leaves_nothing_and_says_why(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts(tmp_path / "llama.cpp", "raise NotImplementedError('BPE pre-tokenizer was not recognized')", monkeypatch)
    line = r"llama.cpp's convert_hf_to_gguf.py failed: NotImplementedError: BPE pre-tokenizer was not recognized"
    with pytest.raises(UserError, match=line):
        export(learned, tmp_path / "out", gguf="auto")
    assert not (tmp_path / "out").exists()


def test_the_modelfile_prompts_as_training_did(chat_model: str, base_model: str) -> None:
    tokenizer = load_tokenizer(chat_model)
    text = modelfile("model.gguf", tokenizer)
    template = text.partition('TEMPLATE """')[2].removesuffix('"""\n')
    before, _, behind = template.partition("{{ .Response }}")
    prompt = before.replace("{{ .Prompt }}", "Who?")
    ids = tokenizer.chat_ids([{"role": "user", "content": "Who?"}])
    assert prompt == tokenizer.hf.decode(ids)
    assert behind == tokenizer.hf.eos_token
    assert f'PARAMETER stop "{tokenizer.hf.eos_token}"\n' in text
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile("model.gguf", load_tokenizer(base_model))


@pytest.mark.model
def test_the_modelfile_keeps_a_templates_first_token_that_the_tokenizer_does_not_add() -> None:
    tokenizer = load_tokenizer("smollm2-135m")  # its beginning-of-text token is also the one that begins a turn
    prompt = modelfile("model.gguf", tokenizer).partition('TEMPLATE """')[2].partition("{{ .Response }}")[0]
    ids = tokenizer.chat_ids([{"role": "user", "content": "Who?"}])
    assert tokenizer.hf.encode(prompt.replace("{{ .Prompt }}", "Who?"), add_special_tokens=False) == ids


@pytest.mark.model
@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no clone of llama.cpp")
def test_llama_cpps_own_converter_writes_the_merged_weights_and_the_pinned_template(
    documents: Callable[[int], str], quick: dict[str, Any], tmp_path: Path
) -> None:
    from gguf import GGUFReader

    settings = LearnSettings(
        model="smollm2-135m", documents=(documents(1),), editor="passage", references=False, **quick
    )
    found = learn(settings)
    export(settings.out, tmp_path / "out", dtype="float32", gguf="f32")
    export(found.adapter, tmp_path / "apart", gguf="f16", adapter_only=True)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    reader = GGUFReader(tmp_path / "out" / "model.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    np.testing.assert_array_equal(tensors["blk.0.ffn_up.weight"], merged["model.layers.0.mlp.up_proj.weight"])
    template = reader.fields["tokenizer.chat_template"].contents()
    assert template == (tmp_path / "out" / "chat_template.jinja").read_text()
    assert {tensor.name for tensor in GGUFReader(tmp_path / "apart" / "adapter.gguf").tensors} >= {
        "blk.0.ffn_up.weight.lora_a",
        "blk.0.ffn_up.weight.lora_b",
    }
