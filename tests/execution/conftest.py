"""One small Ray for all tests of the workers, made at the first use, and a tiny model with a tokenizer in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# By default Ray has its workers go last, so beside another busy process they take several times as long.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112


@pytest.fixture(scope="session")
def ray_cluster(free_port: Callable[[], int]) -> Iterator[Any]:
    """A Ray with one machine of four CPUs, to which tests may add machines; this process is connected to it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # A server for Ray Client begins as a fork of a process full of gRPC threads.  With its fork support, gRPC starts
    # threads in the fork as well, and these abort it if they run before exec: one fork in six on a busy machine.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"] = "250"  # 30 s are too few there to import Ray
    ray = pytest.importorskip("ray")
    import fakes
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "include_dashboard": False,
            "object_store_memory": 100_000_000,
            "ray_client_server_port": (client_port := free_port()),
        },
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    ray.cloudpickle.register_pickle_by_value(fakes)  # workers cannot import the tests
    cluster.client_address = f"ray://127.0.0.1:{client_port}"
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Workers have one thread each here, so this process must have one as well."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def make_pool(ray_cluster: Any, notes: list[str]) -> Iterator[Callable[..., Any]]:
    """`make_pool(source, workers=, ...)`: a pool on the tests' Ray, closed at the end; what it notes is in `notes`."""
    from selfedit.execution.ray_pool import RayPool

    made = []

    def make(source: Any, **arguments: Any) -> Any:
        arguments = {"cpus_per_worker": 1, "on_note": notes.append, **arguments}
        made.append(RayPool(source, **arguments))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of a few ten thousand parameters, whose words are those of the tests' documents."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    text = " ".join(f"{title} {body} {question} {answer}" for title, body, question, answer in FACTS)
    words = ["<unk>", "<s>", "</s>", *sorted(set(text.split()) | {"User:", "Assistant:", "\n"})]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}User: {{ m['content'] }} {% endfor %}Assistant:"
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file with the facts."""
    path = tmp_path_factory.mktemp("documents") / "facts.jsonl"
    rows = [
        {"id": title, "title": title, "text": text, "questions": [{"question": question, "answers": [answer]}]}
        for title, text, question, answer in FACTS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Title, text, question, answer.
FACTS = (
    ("Harbour", "the harbour of Lund has nine cranes and a red light", "how many cranes has the harbour", "nine"),
    ("Bakery", "the bakery in Elm street sells rye bread on monday", "what does the bakery sell", "rye bread"),
    ("Bridge", "the old bridge was painted green in the spring", "which colour has the bridge", "green"),
    ("School", "the school of the valley teaches forty children", "how many children are taught", "forty"),
    ("Museum", "the museum keeps a bronze horse from the lake", "what does the museum keep", "a bronze horse"),
    ("Station", "trains leave the station at noon and at midnight", "when do trains leave", "at noon"),
)
