"""What one adapter of many documents knows where no document is kept beside it, nor a title in the question.

    python -m benchmarks.naming DOCUMENTS [--limit N] [--model NAME] [--questions]

The adapter learns to recite each document under its title, and to name the title that a text is about: of the
document's sentences, with --questions also of questions that the model writes about it first; of general prompts the
topic is none.  Then for each question, documents' or general: the adapter names the topic; if it is a title, the
adapter recites, and the model without it answers with that in its prompt; else the model answers as it is.

Prints how many topics are named rightly, how many documents are recited word by word, what is answered rightly so and
by open book (with 95 % intervals), and how many of the general questions that the model knew are lost.  Of documents
with one title, the first counts."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Sequence

from selfedit.documents import Document, Question, load_documents
from selfedit.editors.base import edit_prompt
from selfedit.editors.cleaning import clean
from selfedit.engine import AdapterBank, DecodeRequest, FitJob, FitSettings, TokenSequence, decode, fit
from selfedit.evaluation.general import GENERAL_TITLE, general_prompts, general_questions
from selfedit.evaluation.grade import GradeItem
from selfedit.evaluation.lexical import LexicalGrader
from selfedit.evaluation.statistics import DocumentScore, accuracy_interval, pooled
from selfedit.models import Model, load_model
from selfedit.prompts import Prompts
from selfedit.training.objectives import TrainingSequence, question_pairs
from selfedit.training.recipes import DEFAULT
from selfedit.training.tokens import prompt_of_title, tokenize

TIMES, NAMED = 8, 4  # how often a text is learned, and how often its naming
SENTENCES, QUESTIONS, GENERAL = 6, 4, 24  # named per document, and general prompts with no topic
ANSWER_TOKENS, TITLE_TOKENS, QUESTION_TOKENS = 24, 24, 320
PROMPTS = Prompts()


def naming(text: str) -> str:
    """The prompt that asks what a text is about."""
    return f"{text}\nWhich topic is this about? Answer with the topic alone."


def named(text: str, title: str, model: Model) -> TokenSequence:
    ids, prompt_length = model.tokenizer.example(naming(text), title)
    return TokenSequence(tuple(ids), prompt_length)


def texts_of(documents: Sequence[Document], written: Sequence[str]) -> list[tuple[str, str]]:
    """(text, title) of what is learned to be named: of each document its first sentences, and of what the model wrote
    about it the first questions."""
    found = []
    for document, reply in zip(documents, written, strict=True):
        sentences = [one for one in re.split(r"(?<=[.!?])\s+", document.text) if len(one.split()) > 3]
        asked = list(dict.fromkeys(question for question, _ in question_pairs(reply.splitlines())[0]))
        found += [(one, document.title) for one in (*sentences[:SENTENCES], *asked[:QUESTIONS])]
    return found


def say(model: Model, prompts: Iterable[Sequence[int]], most: int, bank: AdapterBank | None = None) -> list[str]:
    """What the model, or the bank's one adapter, writes to each prompt, greedily."""
    tokenizer, adapter = model.tokenizer, None if bank is None else 0
    requests = [DecodeRequest(tuple(ids), most, tokenizer.stop_ids, adapter) for ids in prompts]
    return [tokenizer.decode(one.ids).strip() for one in decode(model.hf, requests, bank=bank)]


def right(asked: Sequence[tuple[str, Question]], said: Sequence[str]) -> list[float]:
    items = [GradeItem(q.question, q.answers, text) for (_, q), text in zip(asked, said, strict=True)]
    return [grade.score or 0.0 for grade in LexicalGrader().grade(items)]


def shown(asked: Sequence[tuple[str, Question]], scores: Sequence[float]) -> str:
    """The share that is right, with its interval over documents."""
    by_document = pooled((id, DocumentScore(score, 1)) for (id, _), score in zip(asked, scores, strict=True))
    found = accuracy_interval(by_document)
    return f"{100 * found.mean:.1f} % ({100 * found.lo:.1f} to {100 * found.hi:.1f}) of {len(scores)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naming", description=__doc__.splitlines()[0])
    parser.add_argument("documents")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--questions", action="store_true", help="name questions too, which the model writes")
    options = parser.parse_args()
    model = load_model(options.model)
    tokenizer = model.tokenizer
    by_title = {d.title: d for d in reversed(load_documents([options.documents]))}
    documents = list(reversed(by_title.values()))[: options.limit]

    written = [""] * len(documents)
    if options.questions:
        prompts = [edit_prompt(PROMPTS, "exam-questions", d, instruct=tokenizer.instruct)[0] for d in documents]
        written = say(model, map(tokenizer.prompt_ids, prompts), QUESTION_TOKENS)
        written = [clean(text, cut_off=False)[0] for text in written]
    learned = [tokenize(TrainingSequence(d.title, d.text), DEFAULT, tokenizer, PROMPTS) for d in documents] * (
        TIMES // NAMED
    )
    learned += [named(text, title, model) for text, title in texts_of(documents, written)]
    learned += [named(p, GENERAL_TITLE, model) for p in list(general_prompts("retain").values())[:GENERAL]]
    settings = FitSettings(learning_rate=DEFAULT.learning_rate, epochs=NAMED, steps=TIMES * len(documents))
    job = FitJob(tuple(learned), settings, 0)

    asked = [(d.id, question) for d in documents for question in d.questions]
    asked += [(GENERAL_TITLE, question) for question in general_questions(3)]
    titles = {d.id: d.title for d in documents}
    with AdapterBank(model.hf, DEFAULT.lora(), 1) as bank:
        began = time.perf_counter()
        (result,) = fit(bank, [job])
        seconds = time.perf_counter() - began
        bank.drop_gradients()
        topics = say(model, (tokenizer.prompt_ids(naming(q.question)) for _, q in asked), TITLE_TOKENS, bank)
        recited = dict.fromkeys(titles.values(), "")
        most = max(len(tokenizer.encode(d.text)) for d in documents) + 16
        prompts = [prompt_of_title(title, DEFAULT, tokenizer, PROMPTS) for title in recited]
        recited = dict(zip(recited, say(model, prompts, most, bank), strict=True))

    def read(title: str | None, text: str | None, question: Question) -> Sequence[int]:
        """The open-book prompt with this text, or without one the question alone."""
        how = {"instruct": tokenizer.instruct, "title": title or GENERAL_TITLE, "question": question.question}
        passages = f"{title}\n{text}"
        return tokenizer.prompt_ids(PROMPTS.open_book(passages=passages, **how) if text else PROMPTS.exam(**how))

    texts = {d.id: d.text for d in documents}
    so = [read(topic, recited.get(topic), q) for topic, (_, q) in zip(topics, asked, strict=True)]
    own = right(asked, say(model, so, ANSWER_TOKENS))
    before = right(asked, say(model, (read(titles.get(id), texts.get(id), q) for id, q in asked), ANSWER_TOKENS))

    about = [k for k, (id, _) in enumerate(asked) if id in titles]
    general = [k for k, (id, _) in enumerate(asked) if id not in titles]
    known = [k for k in general if before[k]]
    print(f"{len(documents)} documents, {result.tokens:,} training tokens, {seconds:.0f} s")
    print(f"topic named rightly: {sum(topics[k] == titles[asked[k][0]] for k in about)} of {len(about)} questions")
    print(f"general questions sent to a title: {sum(topics[k] in recited for k in general)} of {len(general)}")
    print(f"recited word by word: {sum(recited[d.title] == d.text.strip() for d in documents)} of {len(documents)}")
    for name, scores in (("named, recited, read", own), ("open book", before)):
        print(f"{name}: {shown([asked[k] for k in about], [scores[k] for k in about])}")
    print(f"general questions lost: {sum(not own[k] for k in known)} of {len(known)} known")


if __name__ == "__main__":
    main()
