"""What a run will take, before anything is done: fits, tokens, operations, memory, money, and documents for a finding.

Knows settings, documents and a model's shape (no weights are loaded).  Edits that are not written yet count at their cap, so what
depends on them is an upper bound, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from selfedit.documents import Document, load_documents, load_edits
from selfedit.editors.api import estimate_tokens
from selfedit.editors.prices import expected_cost, load_prices
from selfedit.editors.spec import EditorSpec
from selfedit.errors import UserError
from selfedit.exam.statistics import documents_needed
from selfedit.models import Tokenizer, load_tokenizer, local_path
from selfedit.procedures.settings import CompareSettings, LearnSettings, Settings, TrainSettings
from selfedit.procedures.small_models import with_editor
from selfedit.procedures.training_data import tokenize, training_sequences
from selfedit.prompts import Prompts
from selfedit.recipes import Recipe, load_recipe

_POINTS = 0.03


@dataclass(frozen=True)
class Plan:
    """`upper_bound` is True where edits are yet to be written.  Tokens are whole runs', memory is bytes, operations are
    multiply-adds counted as two; `cost_usd` is what APIs cost at the most (None: no price known)."""

    documents: int
    questions: int
    fits: int
    train_tokens: int
    write_tokens: int
    answer_tokens: int
    flops: float
    memory_bytes: int
    cost_usd: float | None
    documents_for_three_points: int
    upper_bound: bool

    def text(self) -> str:
        """The plan for people."""
        most = "at most " if self.upper_bound else ""
        money = (
            "unknown (no price for the model)" if self.cost_usd is None else f"at most {self.cost_usd:.2f} US dollars"
        )
        return "\n".join(
            [
                f"documents        {self.documents:,}, with {self.questions:,} questions",
                f"fits             {self.fits:,}",
                f"training tokens  {most}{self.train_tokens:,}",
                f"written tokens   at most {self.write_tokens:,} of edits, {self.answer_tokens:,} of answers",
                f"operations       {most}{self.flops / 1e15:,.2f} PFLOP",
                f"memory           about {self.memory_bytes / 1e9:,.1f} GB",
                f"APIs             {money}",
                f"to see {100 * _POINTS:.0f} points     {self.documents_for_three_points:,} documents, if documents vary as"
                " is assumed in docs/grading.md",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(procedure: str, settings: Settings) -> Plan:
    """Counts what `procedure` (compare, learn, train) will do.  Errors: UserError, as the run itself would give."""
    recipe = load_recipe(settings.recipe).with_settings(settings.set)
    tokenizer = load_tokenizer(settings.model, instruct=settings.instruct, trust_remote_code=settings.trust_remote_code)
    documents = load_documents(
        list(settings.documents),
        limit=settings.limit,
        seed=settings.seed,
        require_questions=procedure != "learn",
        strict=settings.strict,
        follow_links=settings.follow_links,
    )
    counts = _Counts(settings, recipe, tokenizer)
    if isinstance(settings, TrainSettings):
        for _ in range(settings.rounds):
            counts.write(documents, settings.edits)
            counts.fits(documents, "self", settings.edits, settings.replicates)
    elif isinstance(settings, CompareSettings):
        for text in settings.editor:
            counts.condition(
                documents, EditorSpec.parse(text), settings.edits, settings.replicates, settings.edit_prompt
            )
    elif isinstance(settings, LearnSettings):
        counts.condition(
            documents, EditorSpec.parse(with_editor(settings).editor), settings.edits, 1, settings.edit_prompt
        )
        counts.number = 1
    counts.answers += sum(len(document.questions) for document in documents)
    weights, adapter = _parameters(settings, recipe)
    # Forward and backward through frozen weights are 4 operations a weight and token, through an adapter 6; writing is 2.
    flops = counts.train_tokens * (4 * weights + 6 * adapter) + 2 * weights * (
        counts.write_tokens + counts.answers * settings.max_answer_tokens
    )
    bytes_a_weight = 4 if settings.dtype != "bfloat16" else 2
    together = settings.unit_size or 16
    return Plan(
        documents=len(documents),
        questions=sum(len(document.questions) for document in documents),
        fits=counts.number,
        train_tokens=counts.train_tokens,
        write_tokens=counts.write_tokens,
        answer_tokens=counts.answers * settings.max_answer_tokens,
        flops=float(flops),
        # An adapter has float32 parameters, gradients and two moments.
        memory_bytes=weights * bytes_a_weight + min(together, max(1, counts.number)) * adapter * 16,
        cost_usd=counts.cost,
        documents_for_three_points=documents_needed(_POINTS),
        upper_bound=counts.upper_bound,
    )


class _Counts:
    def __init__(self, settings: Settings, recipe: Recipe, tokenizer: Tokenizer) -> None:
        self.settings, self.recipe, self.tokenizer = settings, recipe, tokenizer
        self.prompts = Prompts(settings.prompt_file)
        self.number = self.train_tokens = self.write_tokens = self.answers = 0
        self.cost: float | None = 0.0
        self.upper_bound = False

    def condition(
        self, documents: Sequence[Document], spec: EditorSpec, edits: int, replicates: int, prompt: str
    ) -> None:
        if spec.kind == "none":
            return
        if spec.kind == "passage":
            self.fits(documents, "passage", 1, replicates)
            return
        if spec.kind == "replay":
            source = f"{spec.argument}#{spec.writer}" if spec.writer else spec.argument
            written = load_edits(source)
            written.require(document.id for document in documents)
            self.fits(documents, "replay", edits, replicates, {d.id: written[d.id][:edits] for d in documents})
            return
        if spec.kind == "api":
            self._price(documents, spec.argument, edits, prompt)
        else:
            self.write(documents, edits)
        self.fits(documents, spec.kind, edits, replicates)

    def write(self, documents: Sequence[Document], edits: int) -> None:
        self.write_tokens += len(documents) * edits * self.settings.max_edit_tokens

    def fits(
        self,
        documents: Sequence[Document],
        kind: str,
        edits: int,
        replicates: int,
        written: dict[str, list[str]] | None = None,
    ) -> None:
        for document in documents:
            alone = self._tokens(document, None) if self.recipe.with_document or kind == "passage" else 0
            unwritten = 0
            if kind != "passage" and written is None:
                frame = self._tokens(Document(document.id, document.title, "x"), None)
                unwritten = alone + self.settings.max_edit_tokens + self._lines * frame
                self.upper_bound = True
            for index in range(edits):
                if kind == "passage":
                    tokens = alone
                elif written is not None:
                    texts = written[document.id]
                    tokens = self._tokens(document, texts[index]) if index < len(texts) else alone
                else:
                    tokens = unwritten
                self.train_tokens += tokens * self.recipe.epochs * replicates
                self.number += replicates
                self.answers += replicates * (len(document.questions) + self.settings.general_questions)

    def _price(self, documents: Sequence[Document], model: str, edits: int, prompt: str) -> None:
        total = 0.0
        for document in documents:
            text = self.prompts.edit(prompt, instruct=True, title=document.title, text=document.text)
            try:
                total += expected_cost(
                    model,
                    edits,
                    estimate_tokens(text),
                    self.settings.max_edit_tokens,
                    batch=self.settings.api_batch,
                    prices=load_prices(self.settings.prices),
                )
            except UserError:  # no price: the plan says that the cost is unknown
                self.cost = None
                return
        self.cost = None if self.cost is None else self.cost + total

    @property
    def _lines(self) -> int:
        """Sequences that an edit not yet written is cut into, each with its title or question: lines of 16 tokens are short."""
        return 1 if self.recipe.cutting == "whole" else max(1, self.settings.max_edit_tokens // 16)

    def _tokens(self, document: Document, edit: str | None) -> int:
        """Tokens of a document's and an edit's training sequences, once."""
        limit = self.recipe.max_sequence_tokens
        sequences = training_sequences(document, edit, self.recipe, self.tokenizer, limit)
        return sum(len(tokenize(sequence, self.recipe, self.tokenizer, self.prompts).ids) for sequence in sequences)


def _parameters(settings: Settings, recipe: Recipe) -> tuple[int, int]:
    """(weights that every token passes through, parameters of one adapter), from the model's configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from selfedit.engine import UnsupportedModelError
    from selfedit.engine.bank import target_layers

    config = AutoConfig.from_pretrained(local_path(settings.model), trust_remote_code=settings.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code)
    try:
        names = target_layers(model, recipe.lora())
    except UnsupportedModelError as error:
        raise UserError(f"model {settings.model}: {error}") from None
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    layers = [model.get_submodule(name) for name in names]
    adapter = sum(recipe.rank * (int(layer.in_features) + int(layer.out_features)) for layer in layers)
    return linear, adapter
