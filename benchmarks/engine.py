"""Many adapters in one bank against the same fits one after another with PEFT and Trainer, and the same for answers.

    python -m benchmarks.engine                                   # this machine's CPU, SmolLM2-135M's shape, minutes
    python -m benchmarks.engine --device cuda --shape qwen2.5-3b  # one GPU

Weights are random (speed does not depend on them) and texts are random tokens, of the lengths that real edits have.
Every mode does work of the same kind on the same model in the same run; what counts are ratios of useful tokens a
second:

    padded     one adapter at a time, every sequence padded to 2,048 tokens, batch size 1, PEFT + Trainer
    unpadded   the same without padding
    bank       all adapters through `selfedit.engine.fit_all`
    decode     answers of all adapters in one batch, against one adapter after another
    soft       a bank's steps on soft targets against the same steps on labels, and the teacher's own passes

The slow modes do a sample of the work, `--quick` a smaller one, in the same proportions of short and long sequences.
The floor counts the products that any implementation must compute (`Plan.useful_flops`); the peak is this machine's own
rate of large matrix products, measured again and again between the bank's steps, because a shared machine's speed
changes from one minute to the next.  For the same reason the modes that are close take turns: unpadded, bank, unpadded;
serial answers, all together, serial answers."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import processor
from selfedit.engine import (
    AdapterBank,
    DecodeRequest,
    FitJob,
    FitSettings,
    LoraSpec,
    TokenSequence,
    decode,
    fit,
    fit_all,
    plan,
    soft_targets,
)

RESULTS = Path(__file__).parent / "results"

# Lengths, in SmolLM2's tokens, of the sequences of 48 self-edits that Qwen2.5-7B wrote for SQuAD passages (the edits
# published with arXiv 2506.10943): each line headed by its document's title, the document itself last.
# fmt: off
EDITS: tuple[tuple[int, ...], ...] = (
    (37, 26, 28, 45, 29, 8, 31, 32, 35, 33, 203), (32, 32, 21, 29, 35, 248), (19, 30, 27, 26, 34, 32, 179),
    (28, 36, 28, 31, 35, 36, 35, 305), (22, 32, 38, 51, 47, 29, 28, 28, 33, 31, 138),
    (32, 35, 42, 36, 35, 47, 360), (40, 34, 43, 132), (51, 67, 55, 72, 45, 53, 52, 29, 164),
    (47, 27, 21, 34, 19, 26, 31, 43, 41, 35, 86), (33, 36, 37, 111), (27, 23, 21, 27, 21, 20, 23, 31, 199),
    (28, 24, 37, 35, 29, 44, 35, 45, 34, 41, 95), (28, 44, 27, 32, 35, 152), (20, 22, 21, 52, 28, 34, 30, 18, 161),
    (29, 23, 26, 26, 29, 22, 22, 24, 26, 186), (17, 21, 21, 23, 20, 24, 23, 113), (27, 21, 18, 23, 17, 271),
    (46, 33, 39, 57, 27, 170), (42, 55, 32, 49, 125), (23, 24, 39, 23, 27, 26, 37, 38, 45, 42, 130),
    (25, 30, 22, 31, 168), (25, 32, 106, 24, 18, 30, 35, 105, 27, 138),
    (18, 14, 13, 18, 18, 22, 29, 29, 23, 24, 62), (24, 31, 32, 34, 37, 145), (24, 27, 28, 30, 27, 121),
    (24, 21, 24, 32, 26, 38, 35, 52, 39, 12, 20, 17, 23, 21, 22, 27, 12, 25, 24, 25, 28, 25, 24, 40, 34, 193),
    (13, 11, 13, 16, 13, 13, 13, 12, 11, 16, 14, 10, 83), (39, 37, 29, 36, 27, 377),
    (17, 17, 69, 24, 45, 37, 29, 31, 36, 57, 50, 48, 47, 46, 56, 48, 39, 41, 299),
    (32, 26, 41, 30, 35, 21, 19, 36, 10, 178), (18, 26, 20, 24, 18, 20, 15, 9, 74, 90), (29, 23, 29, 34, 122),
    (21, 22, 32, 22, 23, 211), (16, 21, 23, 26, 23, 27, 21, 28, 35, 37, 196), (20, 33, 34, 43, 37, 41, 155),
    (27, 28, 22, 27, 29, 48, 266), (23, 40, 33, 29, 35, 31, 38, 35, 29, 39, 126),
    (19, 29, 29, 22, 32, 20, 31, 141), (28, 36, 37, 28, 32, 43, 33, 30, 27, 25, 207),
    (41, 37, 25, 32, 36, 29, 34, 189), (65, 64, 103, 62, 77, 65, 53, 61, 57, 51, 182),
    (19, 20, 24, 14, 20, 16, 17, 100), (22, 31, 29, 17, 36, 48, 166), (18, 19, 17, 32, 20, 21, 100),
    (15, 24, 20, 22, 20, 21, 31, 27, 29, 26, 161), (22, 26, 20, 33, 25, 25, 136), (18, 20, 24, 21, 33, 30, 95),
    (17, 22, 19, 19, 20, 38, 29, 123),
)
# fmt: on

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "qwen2.5-3b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    # For trying this script out.
    "tiny": {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}

LORA = {
    "seal": LoraSpec(rank=32, alpha=64, targets=("q_proj", "v_proj")),
    "all-linear": LoraSpec(rank=16, alpha=32),
    "mlp": LoraSpec(rank=16, alpha=32, targets="mlp"),
}

# fits and epochs of the bank; sequences of the two Trainer modes; adapters, questions of each and new tokens of the
# answers.
SIZES = {
    ("cpu", False): {"fits": 48, "epochs": 1, "unpadded": 60, "padded": 4, "adapters": 24, "questions": 5, "new": 24},
    ("cpu", True): {"fits": 16, "epochs": 1, "unpadded": 24, "padded": 2, "adapters": 10, "questions": 5, "new": 12},
    ("cuda", False): {
        "fits": 192,
        "epochs": 10,
        "unpadded": 200,
        "padded": 60,
        "adapters": 192,
        "questions": 5,
        "new": 64,
    },
    ("cuda", True): {"fits": 96, "epochs": 3, "unpadded": 60, "padded": 20, "adapters": 96, "questions": 5, "new": 32},
}
PADDED = 2048
PROMPT = 24  # tokens of a question with its title
LOOKING = 0.1  # share of the time spent on looking at the peak


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = torch.device(options.device)
    size = SIZES["cpu" if device.type == "cpu" else "cuda", options.quick]
    model = build(options.shape, device, options.dtype)
    spec = LORA[options.lora]
    say(f"{options.shape}, {options.lora}, {str(model.dtype).removeprefix('torch.')}, {machine(device)}")
    modes = options.only or ["bank", "unpadded", "padded", "decode"]
    figures: dict[str, Any] = {
        "date": date.today().isoformat(),
        "command": "python -m benchmarks.engine " + " ".join(sys.argv[1:]),
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "shape": options.shape,
        "lora": options.lora,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    lengths = sample(size["unpadded"])
    halves = []
    if "unpadded" in modes:
        halves.append(run_trainer(model, spec, lengths[::2], padded=False))
    if "bank" in modes:
        figures["bank"] = run_bank(model, spec, jobs(size["fits"], size["epochs"], model), device)
        show_training("bank", figures["bank"])
        show_bank(figures["bank"])
    if "unpadded" in modes:
        halves.append(run_trainer(model, spec, lengths[1::2], padded=False))
        figures["unpadded"] = added(*halves)
        show_training("unpadded", figures["unpadded"])
    if "padded" in modes:
        figures["padded"] = run_trainer(model, spec, sample(size["padded"]), padded=True)
        show_training("padded", figures["padded"])
    if options.breakdown:
        figures["breakdown"] = breakdown(model, spec, jobs(16, 1, model))
        for kind, share in figures["breakdown"].items():
            say(f"{kind:>40}: {share:6.1%}")
    if "soft" in modes:
        figures["soft"] = run_soft(model, spec)
        show_soft(figures["soft"])
    if "decode" in modes:
        figures["decode"] = run_decode(model, spec, size["adapters"], size["questions"], size["new"])
        show_decode(figures["decode"])
    ratios = summary(figures)
    for name, ratio in ratios.items():
        if ratio is not None:
            say(f"{name:>20} {ratio:8.3f}")
    figures |= ratios
    if options.out:
        RESULTS.mkdir(exist_ok=True)
        name = f"engine-{device.type}-{options.shape}-{options.lora}{'-quick' if options.quick else ''}.json"
        (RESULTS / name).write_text(json.dumps(figures, indent=2) + "\n")
        say(f"written to benchmarks/results/{name}")
    if options.json:
        print(json.dumps(figures))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument(
        "--lora", choices=LORA, default="seal", help="q and v at rank 32 (as published), or all layers at 16"
    )
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--only", action="append", choices=["bank", "unpadded", "padded", "decode", "soft"])
    parser.add_argument(
        "--breakdown", action="store_true", help="also say where the bank's time goes, by torch's profiler"
    )
    parser.add_argument("--quick", action="store_true", help="the same ratios from less work")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on standard output")
    parser.add_argument("--no-out", dest="out", action="store_false", help="do not write benchmarks/results")
    return parser.parse_args()


def build(shape: str, device: torch.device, dtype: str) -> Any:
    """A frozen model of a shape with random weights; bfloat16 where the machine has instructions for it."""
    settings = {"max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2, **SHAPES[shape]}
    fast = device.type != "cpu" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    chosen = getattr(torch, dtype if dtype != "auto" else "bfloat16" if fast else "float32")
    with device:
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**settings), dtype=chosen
        )
    return model.eval().requires_grad_(False)


def jobs(fits: int, epochs: int, model: Any) -> list[FitJob]:
    generator = random.Random(0)
    vocabulary = model.config.vocab_size
    made = []
    for k in range(fits):
        sequences = [
            TokenSequence(tuple(generator.randrange(5, vocabulary) for _ in range(n))) for n in EDITS[k % len(EDITS)]
        ]
        made.append(FitJob(tuple(sequences), FitSettings(epochs=epochs), seed=k))
    return made


def sample(count: int) -> list[int]:
    """Lengths whose mean is near that of all edits, however few: evenly spaced quantiles."""
    lengths = sorted(n for edit in EDITS for n in edit)
    return [lengths[(2 * k + 1) * len(lengths) // (2 * count)] for k in range(count)]


def peak_memory(device: torch.device) -> int:
    """Bytes in use at most since `run_bank` began; on a CPU, the whole process's since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_bank(model: Any, spec: LoraSpec, work: list[FitJob], device: torch.device) -> dict[str, Any]:
    chosen = plan(model, spec, work)
    say(
        f"bank: {len(work)} fits, {chosen.tokens} tokens, banks of {chosen.bank_size}, {chosen.token_budget} "
        "tokens a step"
    )
    product = best_product(model)
    computed, peaks, pause = 0, [], 0.0

    def count(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal computed
        computed += (named["input_ids"] if "input_ids" in named else given[0]).numel()

    def look_at_the_peak(_: int) -> None:
        nonlocal pause
        finish(device)
        start = time.perf_counter()
        if pause < LOOKING * (start - began):
            peaks.append(product())
            pause += time.perf_counter() - start

    hook = model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    results = fit_all(model, spec, work, plan=chosen, on_tokens=look_at_the_peak)
    finish(device)
    seconds = time.perf_counter() - began - pause
    hook.remove()
    failed = [result.error for result in results if result.error]
    if failed:
        raise RuntimeError(f"{len(failed)} fits failed: {failed[0]}")
    memory = peak_memory(device)
    peak = statistics.mean(peaks)  # what this machine would have done on average in the same minutes
    return {
        "fits": len(work),
        "tokens": chosen.tokens,
        "seconds": seconds,
        "tokens_per_second": chosen.tokens / seconds,
        "fits_per_hour": 3600 * len(work) / seconds,
        "bank_size": chosen.bank_size,
        "token_budget": chosen.token_budget,
        "checkpointing": chosen.checkpointing,
        "waves": len(chosen.waves),
        "passes": chosen.passes,
        "floor_flops": chosen.useful_flops,
        "peak_flops_per_second": peak,
        "peaks": {"samples": len(peaks), "least": min(peaks), "most": max(peaks)},
        "floor_seconds": chosen.useful_flops / peak,
        "share_of_peak": chosen.useful_flops / seconds / peak,
        "padding": computed / chosen.tokens - 1,
        "planned_seconds": chosen.seconds,
        "planned_over_taken": (chosen.seconds or 0.0) / seconds,
        "planned_memory": chosen.memory,
        "peak_memory": memory,
    }


def run_soft(model: Any, spec: LoraSpec, turns: int = 3, top: int = 20) -> dict[str, Any]:
    """Eight fits on labels and the same on a teacher's `top` tokens, in turns; processor time counts, not the clock,
    where the process has one thread, for others may be at work too."""
    clock = time.process_time if torch.get_num_threads() == 1 and model.device.type == "cpu" else time.perf_counter
    hard = [FitJob(job.sequences[-4:], FitSettings(epochs=1), job.seed) for job in jobs(8, 1, model)]
    pairs = [(s.ids[:1], s.ids[1:]) for job in hard for s in job.sequences]
    say(f"soft: {len(pairs)} sequences, {turns} turns")

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        finish(model.device)
        start = clock()
        result = work()
        finish(model.device)
        return clock() - start, result

    seconds: dict[str, list[float]] = {"labels": [], "soft": [], "teacher": []}
    with AdapterBank(model, spec, len(hard)) as bank:
        fit(bank, hard, token_budget=1024)  # prepares memory
        for _ in range(turns):
            took, targets = timed(lambda: soft_targets(model, pairs, top=top))
            seconds["teacher"].append(took)
            made = iter(targets)
            soft = [
                FitJob(tuple(TokenSequence(s.ids, 0, next(made)) for s in job.sequences), job.settings, job.seed)
                for job in hard
            ]
            for kind, work in (("labels", hard), ("soft", soft)):
                seconds[kind].append(timed(lambda work=work: fit(bank, work, token_budget=1024))[0])
    tokens = sum(job.tokens for job in hard)
    over = {kind: [a / b for a, b in zip(seconds[kind], seconds["labels"], strict=True)] for kind in seconds}
    return {
        "tokens": tokens,
        "top": top,
        "clock": clock.__name__,
        "seconds": {kind: statistics.median(all_turns) for kind, all_turns in seconds.items()},
        "soft_over_labels": statistics.median(over["soft"]),
        "soft_over_labels_range": [min(over["soft"]), max(over["soft"])],
        "teacher_over_labels": statistics.median(over["teacher"]),
        "load": os.getloadavg()[0],
    }


def breakdown(model: Any, spec: LoraSpec, work: list[FitJob]) -> dict[str, float]:
    """Shares of the time of a few steps, the first step apart, by kind of operation; what is left is Python (and the
    profiler)."""
    from torch.profiler import ProfilerActivity, profile

    steps, seconds = 0, 0.0
    profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    class Enough(Exception):
        pass

    def count(_: int) -> None:
        nonlocal steps, seconds
        steps += 1
        if steps == 1:
            profiler.start()
            seconds = -time.perf_counter()
        elif steps == 5:
            seconds += time.perf_counter()
            profiler.stop()
            raise Enough

    with AdapterBank(model, spec, len(work)) as bank, contextlib.suppress(Enough):
        fit(bank, work, token_budget=1024, on_tokens=count)
    kinds: dict[str, float] = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        if event.key.startswith("aten::"):
            kind = kind_of(event.key, event.input_shapes, spec.rank)
            kinds[kind] = kinds.get(kind, 0.0) + event.self_cpu_time_total / 1e6 / seconds
    kinds["Python between operations"] = 1 - sum(kinds.values())
    return dict(sorted(kinds.items(), key=lambda pair: -pair[1]))


def kind_of(name: str, shapes: list[list[int]], rank: int) -> str:
    """What an operation of the profiler's table belongs to."""
    if name in ("aten::mm", "aten::addmm", "aten::addmm_"):
        sides = [side for shape in shapes[-2:] if len(shape) == 2 for side in shape]
        return (
            "products, low-rank" if any(side % rank == 0 and side <= 4 * rank for side in sides) else "products, frozen"
        )
    if name in ("aten::bmm", "aten::baddbmm", "aten::baddbmm_", "aten::_softmax", "aten::_softmax_backward_data"):
        return "attention"
    if "adamw" in name or name in ("aten::linalg_vector_norm", "aten::uniform_"):
        return "optimiser and fresh adapters"
    return "norms, activations, rotations, copies"


def run_trainer(
    model: Any,
    spec: LoraSpec,
    lengths: list[int],
    *,
    padded: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """One adapter, batch size 1, PEFT and Trainer; the first step is not counted, nor is setting up."""
    import peft

    random.Random(0).shuffle(lengths)
    generator = random.Random(1)
    rows = []
    for length in [lengths[0], *lengths]:
        ids = [generator.randrange(5, model.config.vocab_size) for _ in range(length)]
        fill = (PADDED - length) * padded
        rows.append(
            {"input_ids": ids + [0] * fill, "attention_mask": [1] * length + [0] * fill, "labels": ids + [-100] * fill}
        )
    say(f"{'padded' if padded else 'unpadded'}: {len(lengths)} sequences one at a time")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=spec.targets if isinstance(spec.targets, str) else list(spec.targets),
    )
    wrapped = peft.get_peft_model(copy.copy(model), config)
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            finish(model.device)
            ends.append(clock())

    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=1,
                num_train_epochs=1,
                learning_rate=1e-3,
                train_sampling_strategy="sequential",
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=model.device.type == "cpu",
                dataloader_pin_memory=False,
            )
            trainer = transformers.Trainer(
                wrapped,
                arguments,
                train_dataset=rows,
                data_collator=transformers.default_data_collator,
                callbacks=[Clock()],
            )
            trainer.train()
    finally:
        wrapped.unload()
        model.requires_grad_(False).eval()
    seconds, tokens = ends[-1] - ends[0], sum(lengths)
    return {"sequences": len(lengths), "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


def run_decode(model: Any, spec: LoraSpec, adapters: int, questions: int, new: int) -> dict[str, Any]:
    """Greedy answers of a fixed number of tokens: `serial` decodes one adapter after another, each with its questions
    as a batch, through the same code; `generate` is PEFT's model with transformers' generate, the same way."""
    generator = random.Random(2)
    requests = [
        DecodeRequest(
            tuple(generator.randrange(5, model.config.vocab_size) for _ in range(PROMPT)), new, adapter=adapter
        )
        for adapter in range(adapters)
        for _ in range(questions)
    ]
    say(f"decode: {adapters} adapters, {questions} prompts each, {new} tokens")
    device = model.device
    with AdapterBank(model, spec, adapters) as bank:
        for adapter in range(adapters):
            bank.reset(adapter, adapter)
            for _, b in bank.state(adapter).values():
                torch.nn.init.normal_(b, std=0.02)
        bank.publish(range(adapters))
        decode(model, requests[:questions], bank=bank)
        finish(device)
        few = adapters if device.type == "cpu" else min(adapters, 16)
        alone: list[Any] = []

        def one_after_another(those: range) -> float:
            start = time.perf_counter()
            for k in those:
                alone.extend(decode(model, requests[k * questions : (k + 1) * questions], bank=bank))
            finish(device)
            return time.perf_counter() - start

        serial = one_after_another(range(few // 2))
        start = time.perf_counter()
        together = decode(model, requests, bank=bank)
        finish(device)
        batch = time.perf_counter() - start
        serial = (serial + one_after_another(range(few // 2, few))) * adapters / few
        state = bank.state(0)
        same = sum(a.ids == b.ids for a, b in zip(together, alone, strict=False))
    generated = run_generate(model, spec, state, [list(r.prompt) for r in requests[:questions]], new) * adapters
    tokens = sum(len(completion.ids) for completion in together)
    return {
        "adapters": adapters,
        "answers": len(requests),
        "tokens": tokens,
        "seconds": batch,
        "tokens_per_second": tokens / batch,
        "serial_seconds": serial,
        "serial_tokens_per_second": tokens / serial,
        "generate_seconds": generated,
        "answers_equal_to_serial": same / (few * questions),
    }


def run_generate(model: Any, spec: LoraSpec, state: dict[str, Any], prompts: list[list[int]], new: int) -> float:
    """Seconds for one adapter's answers with PEFT and generate."""
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", r=spec.rank, lora_alpha=spec.alpha, target_modules=list(state))
    wrapped = peft.get_peft_model(copy.copy(model), config)
    try:
        ids = torch.tensor(prompts, device=model.device)
        named = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "do_sample": False,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        wrapped.generate(**named, max_new_tokens=2)
        finish(model.device)
        start = time.perf_counter()
        wrapped.generate(**named, max_new_tokens=new)
        finish(model.device)
        return time.perf_counter() - start
    finally:
        wrapped.unload()


def best_product(model: Any) -> Callable[[], float]:
    """A function that measures the rate, in FLOP/s, of the fastest of a few large products in the model's dtype."""
    wide = 4096 if model.device.type == "cpu" else 8192
    config = model.config
    repeats = 1 if model.device.type == "cpu" else 20

    def product(m: int, k: int, n: int) -> Callable[[], float]:
        a = torch.randn(m, k, device=model.device).to(model.dtype)
        b = torch.randn(k, n, device=model.device).to(model.dtype)
        out = torch.empty(m, n, device=model.device, dtype=model.dtype)

        def rate() -> float:
            torch.mm(a, b, out=out)  # brings the operands back into the caches
            finish(model.device)
            start = time.perf_counter()
            for _ in range(repeats):
                torch.mm(a, b, out=out)
            finish(model.device)
            return 2.0 * m * k * n * repeats / (time.perf_counter() - start)

        return rate

    candidates = [
        product(1024, 1024, 1024),
        product(2048, 2048, 2048),
        product(wide, wide // 2, wide // 2),
        product(wide, config.hidden_size, config.intermediate_size),
    ]
    return max(candidates, key=lambda rate: statistics.median(rate() for _ in range(5)))


def added(*parts: dict[str, Any]) -> dict[str, Any]:
    """One mode's parts as one: counts and seconds summed."""
    whole = {key: sum(part[key] for part in parts) for key in parts[0] if key != "tokens_per_second"}
    return {**whole, "tokens_per_second": whole["tokens"] / whole["seconds"]}


def summary(figures: dict[str, Any]) -> dict[str, Any]:
    """The ratios; None where a mode was left out."""
    bank, decoded = figures.get("bank"), figures.get("decode")

    def against(mode: str) -> float | None:
        return bank["tokens_per_second"] / figures[mode]["tokens_per_second"] if bank and mode in figures else None

    return {
        "bank_vs_padded": against("padded"),
        "bank_vs_unpadded": against("unpadded"),
        "share_of_peak": bank["share_of_peak"] if bank else None,
        "padding": bank["padding"] if bank else None,
        "decode_vs_serial": decoded["serial_seconds"] / decoded["seconds"] if decoded else None,
        "decode_vs_generate": decoded["generate_seconds"] / decoded["seconds"] if decoded else None,
    }


def show_training(mode: str, f: dict[str, Any]) -> None:
    say(f"{mode:>9}: {f['tokens']:7d} useful tokens in {f['seconds']:7.1f} s = {f['tokens_per_second']:9.1f} tokens/s")


def show_bank(f: dict[str, Any]) -> None:
    say(
        f"    floor: {f['floor_flops'] / 1e12:.2f} TFLOP = {f['floor_seconds']:.1f} s at the measured peak of"
        f" {f['peak_flops_per_second'] / 1e9:.0f} GFLOP/s; reached {f['share_of_peak']:.0%}, padding "
        f"{f['padding']:.1%}"
    )
    say(
        f"           {f['fits_per_hour']:.0f} fits an hour; planned {f['planned_seconds']:.1f} s"
        f" ({f['planned_over_taken']:.2f} of what it took); peak memory {f['peak_memory'] / 2**30:.2f} GiB"
    )


def show_decode(f: dict[str, Any]) -> None:
    say(
        f"   decode: {f['answers']} answers, {f['tokens_per_second']:.0f} tokens/s together,"
        f" {f['serial_tokens_per_second']:.0f} one adapter after another,"
        f" {f['answers_equal_to_serial']:.0%} of the answers equal"
    )


def show_soft(f: dict[str, Any]) -> None:
    say(
        f"     soft: {f['soft_over_labels']:.3f} of the time on labels"
        f" (from {f['soft_over_labels_range'][0]:.3f} to {f['soft_over_labels_range'][1]:.3f});"
        f" the teacher's passes {f['teacher_over_labels']:.3f};"
        f" {f['tokens']} tokens, {f['clock']}, load {f['load']:.1f}"
    )


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor()


def finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
