"""Tasks: what a worker has to do, and what it gives back, as plain data.

How jobs are cut into tasks depends on the jobs and the settings alone, never on the number of workers, and one worker
does a task in one go.  So results are the same however many workers there are."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from selfedit.engine.jobs import Completion, DecodeRequest, FitJob, FitResult, LoraSpec, TokenSequence
from selfedit.grouping import grouped


@dataclass(frozen=True)
class CompletionTask:
    """Prompts for the policy without any adapter, or for another `model` that is named: edits to be written, or an exam
    before adaptation.

    `ids` name, for each request, the edit or exam that its completion becomes part of.  `memory` is as in a `FitTask`.
    """

    id: str
    policy: tuple[str, ...]
    requests: tuple[DecodeRequest, ...]
    ids: tuple[str, ...] = ()
    memory: int | None = None
    model: str = ""

    @property
    def deltas(self) -> tuple[str, ...]:
        """Those that a worker needs to have."""
        return self.policy

    @property
    def cost(self) -> float:
        """Tokens to be written at the most; only for comparing tasks."""
        return float(sum(request.max_new_tokens + len(request.prompt) for request in self.requests))

    @property
    def tokens(self) -> int:
        """Tokens to be written at the most; what progress counts in."""
        return sum(request.max_new_tokens for request in self.requests)

    def without(self, done: Container[str]) -> CompletionTask:
        """What is left of the task."""
        left = [k for k, id in enumerate(self.ids) if id not in done]
        return replace(self, requests=tuple(self.requests[k] for k in left), ids=tuple(self.ids[k] for k in left))

    def completions(self, result: TaskResult) -> dict[str, list[Completion]]:
        """The completions by id."""
        return grouped(zip(self.ids, result.completions, strict=True))


NAMED = 16  # times that an adapter names the topic of a question: greedily, and drawn
WEIGHED = 4  # different ones of these titles whose texts are compared, at the most


@dataclass(frozen=True)
class Reading:
    """A question of a `Recital`: the prompt `shown`, of so many `tokens` without what stands in its places
    (`exam.TITLE`, `exam.TEXT`), and the `title` under which the text for it was learned.  Where that is not known
    (None), the adapter names some, asked with the prompt `topic`, and the tokens of the `question` alone tell which of
    their texts it is about; a question without a text is asked as it is, `plain`."""

    shown: str
    tokens: int
    title: str | None = None
    topic: tuple[int, ...] = ()
    question: tuple[int, ...] = ()
    plain: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recital:
    """A second exam of an adapter, of what it has by heart.

    It names topics of each question of which the title is not known, `NAMED` times in at most `topic_tokens`; it writes
    down what it learned under the titles so found, at most `WEIGHED` per question, behind their `prompts`, in at most
    `text_tokens`; and the policy without it answers with that in its prompt, in at most `answer_tokens`.
    """

    prompts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()
    topic_tokens: int = 0
    text_tokens: int = 0
    answer_tokens: int = 0

    @property
    def _named(self) -> list[Reading]:
        return [reading for reading in self.readings if reading.title is None]

    @property
    def _recited(self) -> list[int]:
        """The tokens of the prompts that are recited to, at the most."""
        most = len(self.readings) + (WEIGHED - 1) * len(self._named)
        return sorted(map(len, self.prompts.values()))[-most:] if most else []

    @property
    def written(self) -> int:
        """Tokens that are written at the most."""
        texts = self.text_tokens * len(self._recited)
        return self.topic_tokens * NAMED * len(self._named) + texts + self.answer_tokens * len(self.readings)

    @property
    def passed(self) -> int:
        """Tokens that pass through the model at the most."""
        topics = sum(len(reading.topic) for reading in self._named)
        behind = 2 * self.topic_tokens + self.text_tokens  # the title may stand in its prompt twice
        readings = sum(max(reading.tokens + behind, len(reading.plain)) for reading in self.readings)
        weighed = WEIGHED * sum(behind + len(reading.question) for reading in self._named)
        return topics + sum(self._recited) + readings + weighed + self.written


# Questions of an exam on the way, at the most: it is to cost little beside the fit.
_LOOK_AT = 64


@dataclass(frozen=True)
class Fit:
    """One fit, and the prompts that its adapter is examined with.  With `keep`, the adapter itself comes back too.

    A fit that is alone in its task is examined `looks` times on the way, at equal distances, on a part of the exam
    (`looked_at`).  `texts` are what the policy itself wrote: on them the divergence of the adapter is measured.
    `known` are questions with what the run's untrained model answers, rightly, with the document in its prompt: of
    these answers the loss is measured.  `below` names deltas on which its adapter stands, as in a policy, but held
    beside it in the bank in place of merged; the adapter that comes back is what was trained on top.
    """

    id: str
    job: FitJob
    exam: tuple[DecodeRequest, ...] = ()
    keep: bool = False
    looks: int = 0
    texts: tuple[TokenSequence, ...] = ()
    known: tuple[TokenSequence, ...] = ()
    below: tuple[str, ...] = ()
    recital: Recital = Recital()

    @property
    def looks_at(self) -> list[int]:
        """The steps after which it is examined."""
        shares = [self.job.steps * k // (self.looks + 1) for k in range(1, self.looks + 1)]
        return sorted({step for step in shares if 0 < step < self.job.steps}) if self.exam else []

    @property
    def looked_at(self) -> range:
        """Which prompts of the exam: all, or some from all over it."""
        return range(0, len(self.exam), -(-len(self.exam) // _LOOK_AT) or 1)

    @property
    def sat(self) -> tuple[DecodeRequest, ...]:
        """All prompts that it answers, on the way and at its end."""
        return self.exam + tuple(self.exam[k] for k in self.looked_at) * len(self.looks_at)


@dataclass(frozen=True)
class Look:
    """An exam on the way: the answers after so many steps."""

    step: int
    completions: tuple[Completion, ...]


@dataclass(frozen=True)
class Recited:
    """What became of a `Recital`: the texts, each headed by its title; and for each question the topic that the adapter
    named (None: it was not asked for one), and the answer."""

    texts: tuple[str, ...] = ()
    topics: tuple[str | None, ...] = ()
    completions: tuple[Completion, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of a fit is kept while it is under way, and how many seconds at least lie between two states.

    A worker that does not see the folder goes without.
    """

    file: Path
    seconds: float


@dataclass(frozen=True)
class FitTask:
    """Fits that share a bank, with their exams; all stand on equally many deltas.

    `memory` is how many bytes their plan may use: with the jobs, it decides which fits step together.  None leaves it
    to the worker."""

    id: str
    policy: tuple[str, ...]
    lora: LoraSpec
    fits: tuple[Fit, ...]
    memory: int | None = None
    checkpoint: Checkpoint | None = None

    @property
    def deltas(self) -> tuple[str, ...]:
        """Those that a worker needs to have."""
        return (*self.policy, *dict.fromkeys(name for fit in self.fits for name in fit.below))

    @property
    def bank(self) -> LoraSpec:
        """The shape of the bank's adapters: `lora` is that of what is trained, to which what is held comes."""
        held = len(self.fits[0].below) if self.fits else 0
        if not held:
            return self.lora
        rank = self.lora.rank * (held + 1)
        # Updates keep their scale.
        return replace(self.lora, rank=rank, alpha=self.lora.scaling * rank, rslora=False)

    @property
    def cost(self) -> float:
        """Forward passes in tokens, a training token counted as three; only for comparing tasks."""
        exam = sum(len(r.prompt) + r.max_new_tokens for fit in self.fits for r in fit.sat)
        measured = sum(len(sequence.ids) for fit in self.fits for sequence in (*fit.texts, *fit.known))
        recited = sum(fit.recital.passed for fit in self.fits)
        return float(3 * sum(fit.job.tokens for fit in self.fits) + exam + measured + recited)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(fit.id for fit in self.fits)

    @property
    def tokens(self) -> int:
        """Tokens to be trained, and written at the most; what progress counts in."""
        written = sum(r.max_new_tokens for fit in self.fits for r in fit.sat)
        return sum(fit.job.tokens + fit.recital.written for fit in self.fits) + written

    def without(self, done: Container[str]) -> FitTask:
        """What is left of the task."""
        return replace(self, fits=tuple(fit for fit in self.fits if fit.id not in done))


Task = CompletionTask | FitTask


@dataclass(frozen=True)
class FitOutcome:
    """What became of a `Fit`.  `seconds` is its share of the task's time (by tokens); `adapter` holds the files of the
    adapter in PEFT's format, by name, where it was to be kept; `looks` are the exams on the way; `notes` say what
    befell it; `divergence` and `answer_loss` are as in `measures.Measured`; `recited` is its second exam."""

    id: str
    result: FitResult
    completions: tuple[Completion, ...]
    seconds: float
    adapter: dict[str, bytes] = field(default_factory=dict)
    looks: tuple[Look, ...] = ()
    notes: tuple[str, ...] = ()
    divergence: float | None = None
    answer_loss: float | None = None
    recited: Recited = Recited()


@dataclass(frozen=True)
class TaskResult:
    """What a task gave: completions for a `CompletionTask`, outcomes for a `FitTask`.  `error` says why it was given
    up, `notes` how it was done with less memory than it was given."""

    task_id: str
    seconds: float
    completions: tuple[Completion, ...] = ()
    outcomes: tuple[FitOutcome, ...] = ()
    error: str | None = None
    notes: tuple[str, ...] = ()


def completion_tasks(
    prefix: str,
    policy: tuple[str, ...],
    requests: Mapping[str, Sequence[DecodeRequest]],
    *,
    size: int,
    model: str = "",
) -> list[CompletionTask]:
    """Cuts requests into tasks of at most `size`, similar lengths together.  What belongs to one id stays together,
    alone if it is more."""
    groups: list[list[tuple[str, DecodeRequest]]] = []
    for id, some in sorted(requests.items(), key=lambda item: -max(len(r.prompt) + r.max_new_tokens for r in item[1])):
        if not groups or len(groups[-1]) + len(some) > size:
            groups.append([])
        groups[-1] += [(id, request) for request in some]
    return [
        CompletionTask(
            f"{prefix}/{number}", policy, tuple(r for _, r in group), tuple(id for id, _ in group), model=model
        )
        for number, group in enumerate(groups)
    ]


def fit_tasks(prefix: str, policy: tuple[str, ...], lora: LoraSpec, fits: Sequence[Fit], *, size: int) -> list[FitTask]:
    """Cuts fits into tasks of at most `size`, long ones first and fits of similar length together, so that a bank stays
    full."""
    ordered = sorted(fits, key=lambda fit: (-fit.job.tokens, fit.id))
    groups = even_groups([fit.job.tokens for fit in ordered], size=size)
    return [
        FitTask(f"{prefix}/{number}", policy, lora, tuple(ordered[k] for k in group))
        for number, group in enumerate(groups)
    ]


def even_groups(amounts: Sequence[float], *, size: int) -> list[list[int]]:
    """Numbers of neighbours, at most `size` together and no more of the amount than `size` average ones have (one
    larger goes alone): otherwise the longest fits would make a task that everybody waits for in the end."""
    limit = size * sum(amounts) / max(1, len(amounts)) * (1 + 1e-9)
    groups: list[list[int]] = []
    amount = 0.0
    for number, one in enumerate(amounts):
        if not groups or len(groups[-1]) == size or amount + one > limit:
            groups.append([])
            amount = 0.0
        groups[-1].append(number)
        amount += one
    return groups
