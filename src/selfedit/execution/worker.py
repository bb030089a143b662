"""One worker: holds a model, follows the policy, and does tasks with the engine, in this process or in a Ray actor."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from selfedit import engine
from selfedit.execution.measures import Measured, Measures
from selfedit.execution.recitation import recite
from selfedit.execution.tasks import CompletionTask, Fit, FitOutcome, FitTask, Recited, Task, TaskResult
from selfedit.models import BUNDLED_MODELS, Model, Tokenizer, load_model, load_tokenizer, public_name

OnTokens = Callable[[int], None]


@dataclass(frozen=True)
class ModelSource:
    """How a worker loads its model."""

    name: str
    device: str | None = None
    dtype: str = "auto"
    instruct: bool | None = None
    trust_remote_code: bool = False

    def tokenizer(self) -> Tokenizer:
        """The tokenizer alone, for a process that needs no weights."""
        return load_tokenizer(self.name, instruct=self.instruct, trust_remote_code=self.trust_remote_code)

    def worker(self, delta: Callable[[str], Mapping[str, bytes]]) -> Worker:
        """A worker with this model."""
        return Worker(self, delta)

    def load(self) -> Model:
        return load_model(
            self.name,
            device=self.device,
            dtype=self.dtype,
            instruct=self.instruct,
            trust_remote_code=self.trust_remote_code,
        )


class Worker:
    """Does tasks.  `delta` fetches the files of a policy's delta (an adapter in PEFT's format) by name, when first
    needed.

    A policy is a chain of deltas on the base model, merged in order; a worker that joins late merges all of them.
    Another model, which completions may ask for, is loaded when first needed.  One is kept beside the policy until
    another is asked for, or fits come, which need the memory.
    `memory_share` and `halvings` may be set at any time: the share of its device's memory that this worker may use
    (less than 1 where several share it), and how often memory ran out.  `share` makes what a fit that is alone in its
    task shares its steps by."""

    def __init__(
        self, source: ModelSource, delta: Callable[[str], Mapping[str, bytes]], model: Model | None = None
    ) -> None:
        self.source = source
        self.delta = delta
        self.memory_share = 1.0
        self.halvings = 0
        self.model = model if model is not None else source.load()
        self.policy: tuple[str, ...] = ()
        self.other: Model | None = None
        self.share: Callable[[FitTask, engine.FitJob], engine.Share] | None = None
        self._helped: tuple[FitTask, engine.Partner] | None = None

    @property
    def context_length(self) -> int:
        return self.model.context_length

    @property
    def description(self) -> str:
        """The device and dtype, for the run's record."""
        return f"{self.model.hf.device}, {str(self.model.hf.dtype).removeprefix('torch.')}"

    @property
    def memory(self) -> int:
        """Bytes that a plan should use on this device now."""
        from selfedit.engine.memory import usable_memory

        return usable_memory(self.model.hf.device)

    def run(self, task: Task, on_tokens: OnTokens | None = None) -> TaskResult:
        """Does one task.  Errors propagate."""
        self._help_no_more()
        if isinstance(task, FitTask):
            self._forget()
        if isinstance(task, FitTask) or not task.model:
            self._follow(task.policy)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", engine.LessMemoryWarning)
            result = self._fit(task, on_tokens) if isinstance(task, FitTask) else self._write(task, on_tokens)
        notes = []
        for warning in caught:
            if issubclass(warning.category, engine.LessMemoryWarning):
                notes.append(str(warning.message))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return replace(result, notes=tuple(notes))

    def help(self, task: FitTask, part: engine.Part, parameters: Any) -> tuple[float, Any]:
        """Loss and gradient (an array, which the next call overwrites) of a part of a step of a task's one fit.
        Another worker takes its steps; `parameters` are the adapter's at this one.  Errors propagate."""
        import torch

        if self._helped is None or self._helped[0] is not task:
            self._help_no_more()
            self._forget()
            self._follow(task.policy)
            self._helped = task, engine.Partner(self.model.hf, task.bank, task.fits[0].job)
        try:
            loss, gradient_F = self._helped[1](part, torch.tensor(parameters))
        except BaseException:
            self._help_no_more()
            raise
        return loss.item(), gradient_F.cpu().numpy()

    def _help_no_more(self) -> None:
        if self._helped is not None:
            self._helped[1].close()
            self._helped = None

    def _follow(self, policy: tuple[str, ...]) -> None:
        if policy == self.policy:
            return
        if policy[: len(self.policy)] != self.policy:
            # Another chain: begin again from the base weights (subtracting a delta would leave rounding behind).
            device = self.model.hf.device
            self.model = replace(self.source, device=str(device)).load()
            self.policy = ()
        for name in policy[len(self.policy) :]:
            engine.merge_adapter(self.model.hf, self.delta(name))
        self.policy = policy

    def _other(self, name: str) -> Model:
        if self.other is None or self.other.name != name:
            self._forget()
            # Prompted through its chat template if it is a chat model.
            self.other = replace(self.source, name=name, instruct=None, device=str(self.model.hf.device)).load()
        return self.other

    def _forget(self) -> None:
        if self.other is not None:
            from selfedit.engine.memory import release_memory

            self.other = None
            release_memory()

    def _write(self, task: CompletionTask, on_tokens: OnTokens | None) -> TaskResult:
        started = time.perf_counter()
        model, memory = self.model, task.memory
        if task.model:
            model = self._other(task.model)
            if memory is not None:  # of a worker that holds the policy alone
                memory = max(1, memory - model.hf.get_memory_footprint())
        if self.halvings:
            line = f"memory ran out before: written in batches {2**self.halvings} times smaller"
            warnings.warn(line, engine.LessMemoryWarning, stacklevel=2)
        completions = engine.decode(model.hf, task.requests, memory=memory, halvings=self.halvings, on_tokens=on_tokens)
        return TaskResult(task.id, time.perf_counter() - started, completions=tuple(completions))

    def _fit(self, task: FitTask, on_tokens: OnTokens | None) -> TaskResult:
        from selfedit.execution.long_fit import LongFit

        started = time.perf_counter()
        measure = Measures(self.model.hf)
        outcomes: dict[int, FitOutcome] = {}

        def examine(bank: engine.AdapterBank, wave: Mapping[int, tuple[int, engine.FitResult]]) -> None:
            trained = {number: slot for number, (slot, result) in wave.items() if result.error is None}
            requests = [
                replace(one, adapter=slot) for number, slot in trained.items() for one in task.fits[number].exam
            ]
            decode = partial(self._ask, task, on_tokens, bank)
            losses = partial(engine.losses, self.model.hf, bank=bank)
            said = iter(decode(requests))
            measured = measure(bank, task.fits, trained)
            recitals = {slot: task.fits[number].recital for number, slot in trained.items()}
            learned = {slot: task.fits[number].job.sequences for number, slot in trained.items()}
            recited = recite(self.model.tokenizer, decode, losses, recitals, learned)
            for number, (slot, result) in wave.items():
                fit, whole = task.fits[number], number in trained
                outcomes[number] = FitOutcome(
                    fit.id,
                    result,
                    tuple(next(said) for _ in fit.exam) if whole else (),
                    seconds=0.0,  # known in the end
                    adapter=self._files(task, bank, slot) if whole and fit.keep else {},
                    recited=recited.get(slot, Recited()),
                    **vars(measured.get(number, Measured())),
                )

        jobs = engine.teach(self.model.hf, [replace(fit.job, below=self._below(fit)) for fit in task.fits])
        plan = self._plan(task, jobs)
        train = partial(engine.fit_all, self.model.hf, task.bank, jobs, plan=plan, on_wave=examine, on_tokens=on_tokens)
        long = None
        if len(jobs) > 1:
            train()
        else:
            long = LongFit(task.fits[0], task.checkpoint, partial(self._look, task, on_tokens))
            if self.share is not None:
                train = partial(train, share=self.share(task, jobs[0]))
            try:
                train(on_step=long, start=long.start)
            except engine.UnusableStateError as error:
                long.begin_anew(error)
                train(on_step=long)
        seconds = time.perf_counter() - started + (long.seconds_before if long else 0.0)
        total = sum(fit.job.tokens for fit in task.fits)
        looks, notes = (tuple(long.looks), tuple(long.notes)) if long else ((), ())
        return TaskResult(
            task.id,
            seconds,
            outcomes=tuple(
                replace(outcomes[number], seconds=seconds * fit.job.tokens / total, looks=looks, notes=notes)
                for number, fit in enumerate(task.fits)
            ),
        )

    def _files(self, task: FitTask, bank: engine.AdapterBank, slot: int) -> dict[str, bytes]:
        """An adapter in PEFT's format, without what it stands on."""
        from selfedit.engine.peft_format import files

        name, held = self.source.name, task.bank.rank - task.lora.rank
        state = {layer: (a[held:], b[:, held:]) for layer, (a, b) in bank.state(slot).items()}
        model = name if name in BUNDLED_MODELS else None
        return files(task.lora, state, base_model=public_name(name), model=model)

    def _below(self, fit: Fit) -> dict[str, tuple[Any, Any]] | None:
        """What a fit's adapter stands on: deltas of one shape, as one."""
        import torch

        states = [engine.load_adapter(self.delta(name), self.model.hf)[1] for name in fit.below]
        if not states:
            return None
        return {
            layer: (torch.cat([one[layer][0] for one in states]), torch.cat([one[layer][1] for one in states], dim=1))
            for layer in states[0]
        }

    def _look(self, task: FitTask, on_tokens: OnTokens | None, under_way: engine.UnderWay) -> list[engine.Completion]:
        (fit,) = task.fits
        requests = [replace(fit.exam[number], adapter=0) for number in fit.looked_at]
        return self._ask(task, on_tokens, under_way.bank, requests)

    def _ask(
        self,
        task: FitTask,
        on_tokens: OnTokens | None,
        bank: engine.AdapterBank,
        requests: Sequence[engine.DecodeRequest],
    ) -> list[engine.Completion]:
        return engine.decode(
            self.model.hf, requests, bank=bank, memory=task.memory, halvings=self.halvings, on_tokens=on_tokens
        )

    def _plan(self, task: FitTask, jobs: list[engine.FitJob]) -> engine.Plan:
        """The plan for the memory that comes with the task, so that it is the same on every worker; for less, with a
        warning, only where it does not fit here, or ran out before."""

        from selfedit.engine.memory import free_memory

        def plan(memory: int) -> engine.Plan:
            return engine.plan(self.model.hf, task.bank, jobs, memory=memory, calibrate=False)

        given = int(self.memory * self.memory_share) if task.memory is None else task.memory
        most = min(given >> self.halvings, int(free_memory(self.model.hf.device) * self.memory_share))
        if not self.halvings:
            try:
                if (chosen := plan(given)).memory <= most:
                    return chosen
            except engine.NotEnoughMemoryError:
                # The run began where memory did not suffice; it may here.
                most = max(given, int(self.memory * self.memory_share))
        line = (
            f"planned for {most / 2**30:.2f} GiB instead of {given / 2**30:.2f}: other fits may have stepped together"
        )
        warnings.warn(line, engine.LessMemoryWarning, stacklevel=2)
        return plan(most)
