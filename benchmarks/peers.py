"""The same edits trained by other ways to train many adapters, in one run: a table of ratios.

    python -m benchmarks.peers [--skyrl PYTHON] [--moe-peft PYTHON]

The arms, which take turns, all on one model with random weights (SmolLM2-135M's shape, rank 16 on all linear layers)
and on random tokens of the lengths of real edits:

    bank       `selfedit.engine.fit_all`
    peft       PEFT and Trainer, one fit after another, unpadded (`benchmarks.engine`; without setting up, which counts
               in all other arms)
    processes  the same in processes, one per core, each with its share of the fits
    skyrl-tx   SkyRL-tx's JAX backend: a sequence of each adapter in one padded batch, then a step for each adapter
    moe-peft   MoE-PEFT, of mLoRA's form: likewise, with torch

Each arm has one core, and what counts is its processor time, because others may be at work on the machine; of
`processes`, that of the process that takes longest, which is what it would take with a core for each.  The last two run
in environments of their own, whose interpreters are given:

    python -m venv V; V/bin/pip install torch jax flax optax tinker 'transformers>=4.56,<5' peft sqlmodel cloudpathlib
    V/bin/pip install --no-deps skyrl-tx==0.3.0                      # its own requirements name JAX for CUDA
    python -m venv W; W/bin/pip install torch transformers==4.46.3 datasets evaluate accelerate sentencepiece \\
        scikit-learn tiktoken
    W/bin/pip install --no-deps moe-peft==2.0.2                      # it asks for torch below 2.6

All fits have equally many sequences in one order (lines of a similar length, then the passage), one per step and one
epoch, which is what padded batches are best at.  The first turn of each arm is not counted: JAX compiles in it (for
each new adapter again, so SkyRL-tx trains the same ones on in later turns).

Writes `benchmarks/results/peers.json`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from benchmarks import processor
from benchmarks.engine import EDITS, LORA, SHAPES, build, run_trainer, say
from selfedit.engine import FitJob, FitSettings, TokenSequence, fit_all

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "peers.json"
SPEC = LORA["all-linear"]
CLASS = "PreTrainedTokenizerFast"
# A fifth of the layers, for a busy machine; the head and what a step costs anyway weigh more than in the whole model.
SHAPES["smollm2-6-layers"] = {**SHAPES["smollm2-135m"], "num_hidden_layers": 6}

# What an arm lacks that the bank has; in words of docs/performance.md.  Read in the sources of the versions named.
LACKS = {
    "bank": "",
    "peft": "",
    "processes": "a model and a copy of everything in each process",
    "skyrl-tx": "no clipping; no choice of layers but attention, MLP or all; one rate per step is the caller's to send;"
    " Llama, Qwen3 and DeepSeek-V3 only; moments of all adapters kept for each adapter, so memory grows with their"
    " square; each new adapter compiles its update anew",
    "moe-peft": "no clipping; no seed per adapter; padding counts in the loss, so that an adapter depends on its"
    " neighbours' lengths; no fit without dropout; no safetensors; asks for torch < 2.6 and transformers < 4.47",
}
# Not run, and why (2026-11-26).
NOT_RUN = {
    "mLoRA (mlora 0.5.2)": "asks for torch 2.3 and transformers 4.44; MoE-PEFT is newer",
    "mLoRA (mlora-cli 0.2.4)": "a client; no server of its name is on PyPI",
    "LoRAFusion": "not on PyPI under that name",
    "tinker 0.38.0": "a client of a service",
}


def work(fits: int, lines: int, vocabulary: int) -> list[FitJob]:
    """Jobs of the lengths of the first edits that have so many lines: these, and the passage."""
    draw = random.Random(0)
    chosen = [(*edit[:lines], edit[-1]) for edit in EDITS if len(edit) > lines][:fits]
    return [
        FitJob(
            tuple(TokenSequence(tuple(draw.randrange(5, vocabulary) for _ in range(length))) for length in lengths),
            FitSettings(epochs=1, shuffle=False),
            seed=number,
        )
        for number, lengths in enumerate(chosen)
    ]


def lengths_of(those: Sequence[FitJob]) -> list[int]:
    return [len(sequence.ids) for job in those for sequence in job.sequences]


def trained_by_peft(model: Any, lengths: list[int]) -> float:
    """Seconds."""
    return float(run_trainer(model, SPEC, lengths, padded=False, clock=time.process_time)["seconds"])


def one_core(shape: str, dtype: str, connection: Connection) -> None:
    """A process with PEFT: answers lists of lengths with seconds."""
    torch.set_num_threads(1)
    model = build(shape, torch.device("cpu"), dtype)
    connection.send("ready")
    while (lengths := connection.recv()) is not None:
        connection.send(trained_by_peft(model, lengths))


def processes(stack: ExitStack, shape: str, dtype: str, those: Sequence[FitJob]) -> Callable[[], float]:
    """PEFT in as many processes as there are cores; seconds of the one that takes longest."""
    connections = []
    for _ in range(os.cpu_count() or 1):
        here, there = multiprocessing.get_context("spawn").Pipe()
        multiprocessing.get_context("spawn").Process(target=one_core, args=(shape, dtype, there), daemon=True).start()
        stack.callback(here.send, None)
        connections.append(here)
    assert all(here.recv() == "ready" for here in connections)

    def turn() -> float:
        for number, connection in enumerate(connections):
            connection.send(lengths_of(those[number :: len(connections)]))
        return max(connection.recv() for connection in connections)

    return turn


def peer(stack: ExitStack, python: str, script: str, folder: str, those: Sequence[FitJob]) -> Callable[[], float]:
    """A process of another environment, on one core."""
    core = str(max(os.sched_getaffinity(0)))
    command = ["taskset", "-c", core, python, str(HERE / script), folder, str(SPEC.rank), str(SPEC.alpha)]
    process = stack.enter_context(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    )
    assert process.stdin is not None
    stack.callback(process.stdin.close)
    fits = json.dumps([[list(sequence.ids) for sequence in job.sequences] for job in those])

    def turn() -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(fits + "\n")
        process.stdin.flush()
        said = []
        for line in process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
            said.append(line)
        raise RuntimeError(f"{script} ended: {''.join(said[-30:])}")

    return turn


def save(model: Any, folder: str) -> None:
    """The model with a tokenizer, which peers load with it and do not use."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "</s>": 2}, unk_token="<unk>"))
    tokens = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **tokens).save_pretrained(folder)
    model.save_pretrained(folder)
    # What versions of transformers before 5 read.
    for name, change in (("config", {"torch_dtype": "float32"}), ("tokenizer_config", {"tokenizer_class": CLASS})):
        file = Path(folder, f"{name}.json")
        content = json.loads(file.read_text()) | change
        file.write_text(json.dumps(content | content.pop("rope_parameters", {})))


def rows(tokens: int, seconds: dict[str, list[float]], first: dict[str, float]) -> list[dict[str, Any]]:
    """A row of the table for each arm; ratios are those of one turn."""
    found = []
    for name, taken in seconds.items():
        ratios = [other / own for other, own in zip(taken, seconds["bank"], strict=True)]
        found.append(
            {
                "arm": name,
                "tokens_per_second": tokens / statistics.median(taken),
                "bank_is_times_as_fast": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
                "seconds": taken,
                "first_turn": first[name],
                "lacks": LACKS[name],
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--skyrl", metavar="PYTHON", help="an interpreter that has skyrl-tx")
    parser.add_argument("--moe-peft", metavar="PYTHON", help="an interpreter that has moe-peft")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--fits", type=int, default=8)
    parser.add_argument("--lines", type=int, default=5, help="sequences of a fit, beside the passage")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = build(options.shape, torch.device("cpu"), "float32")
    those = work(options.fits, options.lines, model.config.vocab_size)
    tokens = sum(job.tokens for job in those)

    def bank() -> float:
        started = time.process_time()
        results = fit_all(model, SPEC, those)
        assert not any(result.error for result in results)
        return time.process_time() - started

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        save(model, folder)
        arms: dict[str, Callable[[], float]] = {
            "bank": bank,
            "peft": lambda: trained_by_peft(model, lengths_of(those)),
            "processes": processes(stack, options.shape, "float32", those),
        }
        if options.skyrl:
            arms["skyrl-tx"] = peer(stack, options.skyrl, "peers_skyrl.py", folder, those)
        if options.moe_peft:
            arms["moe-peft"] = peer(stack, options.moe_peft, "peers_moe.py", folder, those)
        first = {name: arm() for name, arm in arms.items()}
        say(f"first turn, not counted: {first}")
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(options.turns):
            names = list(arms)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds[name].append(arms[name]())
            say(f"turn {number + 1}: { {name: round(taken[-1], 1) for name, taken in seconds.items()} }")
            found = {
                "date": date.today().isoformat(),
                "command": "python -m benchmarks.peers " + " ".join(sys.argv[1:]),
                "machine": processor(),
                "load": os.getloadavg()[0],
                "shape": options.shape,
                "fits": len(those),
                "tokens": tokens,
                "rows": rows(tokens, seconds, first),
                "not_run": NOT_RUN,
            }
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    for row in found["rows"]:
        rate, times = row["tokens_per_second"], row["bank_is_times_as_fast"]
        print(f"{row['arm']:>10} {rate:8.1f} tokens/s; the bank is {times:.2f} times as fast")


if __name__ == "__main__":
    main()
