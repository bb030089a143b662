"""Options and fixtures that several packages' tests share.

Imports no more than pytest at the top: the engine's tests also run on machines that have torch, transformers and peft
only."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Test processes side by side share the cores; torch reads this when it is imported.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

# The tests' servers are this machine's, which no proxy reaches, and output is compared as it is off a terminal.
TERMINAL = {"FORCE_COLOR", "NO_COLOR", "CLICOLOR_FORCE", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
for name in [name for name in os.environ if name.lower().endswith("_proxy") or name in TERMINAL]:
    del os.environ[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where the engine's tests run: cpu (default), cuda, cuda:1, ...")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, which are Ray's and those of no package: one that started last would run alone at the
    end."""
    here = Path(__file__).parent
    items.sort(key=lambda item: ("execution" not in item.path.parts, item.path.parent != here))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Any:
    import torch

    chosen = torch.device(request.config.getoption("--device"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.exit("--device cuda: this machine has no CUDA device", returncode=2)
    return chosen


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """`free_port()`: a port of this machine that nothing listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A fake OpenAI server, no key in the environment, and next to no wait between the `openai` package's retries."""
    from api_server import running

    with running(monkeypatch) as fake:
        yield fake


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny model that was trained for a moment (see `tiny_world`), with a chat template."""
    from tiny_world import model_folder

    return model_folder(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same as a base model."""
    from tiny_world import model_folder

    return model_folder(tmp_path_factory.getbasetemp(), chat=False)


@pytest.fixture(scope="session")
def tiny_model(device: Any) -> Callable[..., Any]:
    """`tiny_model(kind, dtype="float32", seed=0, **config)`: a fresh frozen causal language model with random
    weights."""

    def build(kind: str = "llama", *, dtype: str = "float32", seed: int = 0, **config: Any) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(tiny_config(kind, **config))
        return model.to(device=device, dtype=getattr(torch, dtype)).eval().requires_grad_(False)

    return build


def tiny_config(kind: str, **changes: Any) -> Any:
    """The configuration of a model of a few ten thousand parameters.

    `llama` has grouped queries and a head of its own, `qwen2` biases, `qwen3` normalised queries and keys, `gemma3` a
    sliding window of 8 on two of three layers; `gemma2` caps the scores of its attention; `gpt2` is built on Conv1D.
    `gpt_neox` rotates a quarter of each head, `olmo2` in float32 whatever its dtype, `phi3` has one layer for query,
    key and value."""
    import transformers

    shape = {
        "vocab_size": 160,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if kind == "llama":
        return transformers.LlamaConfig(**{**shape, "tie_word_embeddings": False, **changes})
    if kind == "qwen2":
        shape.pop("head_dim")
        return transformers.Qwen2Config(**{**shape, "tie_word_embeddings": True, **changes})
    if kind == "qwen3":
        return transformers.Qwen3Config(**{**shape, "tie_word_embeddings": True, **changes})
    if kind == "gemma3":
        layers = changes.get("num_hidden_layers", 3)
        pattern = ["sliding_attention", "full_attention", "sliding_attention"][:layers]
        return transformers.Gemma3TextConfig(
            **{**shape, "sliding_window": 8, "layer_types": pattern, "query_pre_attn_scalar": 16, **changes}
        )
    if kind == "gemma2":
        return transformers.Gemma2Config(**{**shape, **changes})
    if kind == "phi3":
        shape.pop("head_dim")
        return transformers.Phi3Config(**{**shape, **changes})
    if kind == "olmo2":
        shape.pop("head_dim")
        return transformers.Olmo2Config(**{**shape, **changes})
    if kind == "gpt_neox":
        shape.pop("head_dim")
        shape.pop("num_key_value_heads")
        return transformers.GPTNeoXConfig(**{**shape, **changes})
    if kind == "gpt2":
        return transformers.GPT2Config(
            **{"vocab_size": 160, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, **changes}
        )
    raise ValueError(f"no tiny model of kind {kind}")
