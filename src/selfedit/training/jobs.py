"""From documents and edits to the engine's jobs, under a recipe."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from selfedit.documents import Document
from selfedit.editors.base import Edit, edit_prompt
from selfedit.engine.jobs import FitJob, TokenSequence
from selfedit.errors import UserError
from selfedit.models import Tokenizer
from selfedit.prompts import Prompts
from selfedit.training.cutting import cut
from selfedit.training.objectives import TrainingSequence, apart_by_title, beside_documents
from selfedit.training.recipes import Recipe
from selfedit.training.tokens import tokenize

Advance = Callable[[int], None]
EditTexts = str | tuple[str, ...] | None  # of a document: its edit, several of them, or none


@dataclass(eq=False)
class Jobs:
    """Makes the jobs of one student: its tokenizer, and the tokens that it reads at once."""

    tokenizer: Tokenizer
    context_length: int
    prompts: Prompts

    def job(
        self,
        documents: Sequence[Document],
        edits: Sequence[EditTexts],
        recipe: Recipe,
        *,
        seed: int,
        own: Sequence[TokenSequence] = (),
        advance: Advance | None = None,
    ) -> tuple[FitJob, tuple[str, ...]]:
        """The job that teaches an adapter these documents, each from its edits (None: from its text alone), and its
        training sequences as a report shows them.  `own` are texts that the model wrote itself, of which the recipe
        retains some.  `advance` is called with numbers of characters that were cut."""
        sequences = self.sequences(documents, edits, recipe, advance) + beside_documents(documents, recipe.objectives)
        tokens = self.tokens(sequences, recipe)
        for sequence, one in tokens.items():
            if one.teacher and len(one.teacher) + one.labelled > self.context_length:
                raise UserError(
                    f"the objective distill shows the model the document {sequence.title!r} with each text of its edit:"
                    f" more than the {self.context_length:,} tokens that it reads; cut the document into shorter ones"
                )
        drawn = random.Random(seed).sample(own, min(recipe.retain, len(own)))
        retained = [replace(one, weight=recipe.retain_weight) for one in drawn]
        # A part is one, however many copies of it are learned, and with however many edits.
        parts = max(len(documents), sum(sequence.of_document for sequence in tokens))
        learned = [tokens[sequence] for sequence in sequences]
        shown = tuple(_shown(one) for one, _ in groupby(sequences))
        return FitJob((*learned, *retained), recipe.settings(parts), seed), shown

    def sequences(
        self,
        documents: Sequence[Document],
        edits: Sequence[EditTexts],
        recipe: Recipe,
        advance: Advance | None = None,
    ) -> list[TrainingSequence]:
        if recipe.pad_to is not None and recipe.pad_to > self.context_length:
            raise UserError(f"--set pad_to={recipe.pad_to}: the model reads {self.context_length:,} tokens at the most")
        most = min(recipe.max_sequence_tokens, self.context_length)
        if "topics" in recipe.objectives:
            documents = apart_by_title(documents)
        return [
            sequence
            for document, learned in zip(documents, edits, strict=True)
            for edit in _passes(learned, recipe)
            for sequence in cut(document, edit, recipe, max_tokens=most, count_tokens=self._count, advance=advance)
        ]

    def tokens(self, sequences: Sequence[TrainingSequence], recipe: Recipe) -> dict[TrainingSequence, TokenSequence]:
        """Each once, however often it is learned, as the copies of a document are."""
        return {one: tokenize(one, recipe, self.tokenizer, self.prompts) for one in dict.fromkeys(sequences)}

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def lesson(self, document: Document, edit: Edit) -> TokenSequence:
        """What an editor is trained on: the prompt for the document, and the edit that it is to write.  Where an edit
        was cut off, its last line is gone, and ending there would be learned as well: editors came to write one line
        (docs/results.md)."""
        asked, lead = edit_prompt(self.prompts, edit.prompt, document, instruct=self.tokenizer.instruct)
        ids, prompt_length = self.tokenizer.example(asked, edit.text, lead=lead, ended=not edit.truncated)
        return TokenSequence(tuple(ids), prompt_length)


def _passes(learned: EditTexts, recipe: Recipe) -> Sequence[str | None]:
    """A document's edits, cut together or each by itself."""
    if learned is None or isinstance(learned, str):
        return [learned]
    return learned if recipe.each_edit else ["\n".join(learned)]


def _shown(sequence: TrainingSequence) -> str:
    if sequence.question is not None:
        return f"Question: {sequence.question}\nAnswer: {sequence.text}"
    if sequence.about is not None:
        return f"{sequence.about}\nTopic: {sequence.text}"
    return f"{sequence.title}\n{sequence.text}"
