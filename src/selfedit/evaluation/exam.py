"""The exam: a question's prompt, closed book or with passages in it, and the answer in what a model then writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from selfedit.documents import Document, Question
from selfedit.engine.jobs import DecodeRequest, TokenSequence
from selfedit.errors import UserError
from selfedit.evaluation.general import GENERAL_TITLE
from selfedit.models import Tokenizer
from selfedit.prompts import Prompts
from selfedit.training.tokens import most_characters, prompt_tokens

# In no text; where what an adapter recites, and its title, stand in a prompt.
TEXT, TITLE = "\ufdd1", "\ufdd2"


def asked_title(document: Document | None) -> str:
    """The title under which a question about a document is asked, or a general one (None)."""
    return document.title if document else GENERAL_TITLE


@dataclass(eq=False)
class Exam:
    """Asks one student, greedily; an answer has at most `max_tokens` tokens.  Of a base model it is the first line
    unless `whole`."""

    tokenizer: Tokenizer
    context_length: int
    prompts: Prompts
    max_tokens: int
    whole: bool = False
    _closed_book: dict[tuple[str | None, str], DecodeRequest] = field(default_factory=dict)
    _readings: dict[tuple[tuple[str | None, str], bool], tuple[str, int]] = field(default_factory=dict)

    def request(
        self, document: Document | None, question: Question, passages: Sequence[Document] = ()
    ) -> DecodeRequest:
        """The prompt of a question about a document, or of a general one (None): closed book, or with these passages.

        Errors: UserError for a prompt that is longer than the student reads.
        """
        if passages:  # long, and asked once or twice
            return self._request(document, question, passages)
        place = document.id if document else None, question.id
        if place not in self._closed_book:  # every adapter of a document is asked the same
            self._closed_book[place] = self._request(document, question, ())
        return self._closed_book[place]

    def _request(self, document: Document | None, question: Question, passages: Sequence[Document]) -> DecodeRequest:
        asked = self._asked(document, question)
        if passages:
            shown = "\n\n".join(f"{passage.title}\n{passage.text}" for passage in passages)
            text = self.prompts.open_book(passages=shown, **asked)
            remedy = f"cut document {passages[0].id} into shorter ones"
            if len(passages) > 1:
                remedy = f"show fewer than {len(passages)} documents with it"
        else:
            text, remedy = self.prompts.exam(**asked), "shorten the question or the title"
        try:
            ids = prompt_tokens(self.tokenizer, text, self.context_length)
        except UserError as error:
            raise UserError(f"question {question.id}: {error}; {remedy}") from None
        return DecodeRequest(ids, self.max_tokens, self.tokenizer.stop_ids)

    def reading(self, document: Document | None, question: Question, most: int, *, titled: bool) -> tuple[str, int]:
        """The open-book prompt of a question with a place for a text of at most so many tokens (`TEXT`), and how many
        tokens it has without one; where it is not `titled` as in the exam, with places for a title too (`TITLE`).

        Errors: UserError for a prompt that is longer than the student reads, or has no place for one text.
        """
        place = document.id if document else None, question.id
        if (place, titled) not in self._readings:  # every adapter of a document is asked the same
            asked = self._asked(document, question)
            if not titled:
                asked["title"] = TITLE
            shown = self.prompts.open_book(passages=f"{asked['title']}\n{TEXT}", **asked)
            if shown.count(TEXT) != 1:
                raise UserError(
                    "--recite: the prompt `open-book` of --prompt-file has to show {{ passages }} once, as it is"
                )
            bare = shown.replace(TEXT, "").replace(TITLE, "")
            self._readings[place, titled] = shown, len(self.tokenizer.prompt_ids(bare))
        shown, tokens = self._readings[place, titled]
        if tokens + most + self.max_tokens > self.context_length:
            raise UserError(
                f"question {question.id}: with what is recited, the prompt is longer than the {self.context_length:,}"
                " tokens that the model reads; cut the document into shorter ones, or leave out --recite"
            )
        return shown, tokens

    def answered(self, document: Document, question: Question, answer: str) -> TokenSequence:
        """A question, closed book, and an answer to it as the student would write it, without the end behind it: how
        soon a student ends says nothing of what it knows.  Errors as `request`."""
        prompt = self.request(document, question).prompt
        ids, _ = self.tokenizer.example(self.prompts.exam(**self._asked(document, question)), answer)
        end = len(ids) - (ids[-1] in self.tokenizer.stop_ids)
        return TokenSequence(tuple(ids[: min(end, self.context_length)]), len(prompt))

    def _asked(self, document: Document | None, question: Question) -> dict[str, Any]:
        instruct, title = self.tokenizer.instruct, asked_title(document)
        return {"instruct": instruct, "title": title, "question": question.question}

    def answer(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(ids).strip()
        if not self.tokenizer.instruct and not self.whole:
            # A base model goes on with questions of its own; the answer is its first line.
            text = text.split("\n", 1)[0].strip()
        return text[: most_characters(self.max_tokens)]
