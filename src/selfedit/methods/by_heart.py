"""What an adapter has by heart: titles that it names as topics, and the prompts to which it recites their texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from selfedit.documents import Document
from selfedit.errors import checked
from selfedit.evaluation.exam import TEXT
from selfedit.execution.tasks import Reading, Recital
from selfedit.json_file import read_json
from selfedit.models import Tokenizer
from selfedit.prompts import Prompts
from selfedit.training.objectives import apart_by_title
from selfedit.training.recipes import Recipe
from selfedit.training.tokens import prompt_of_title

TITLES_FILE = "by_heart.json"  # beside the adapter, for `ask`: the titles and prompts, without the texts
_SLACK = 16  # tokens that a document may have more behind its title than alone, with its end


class ByHeart(BaseModel):
    """`prompts` are the tokens behind which a title's text was learned.  `topic` asks which of the titles a text is
    about, which stands in its place (`exam.TEXT`).  A title has at most `topic_tokens`, a text `text_tokens`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: dict[str, tuple[int, ...]] = Field(min_length=1)
    topic: str
    topic_tokens: int = Field(ge=1)
    text_tokens: int = Field(ge=1)

    @classmethod
    def of(
        cls,
        documents: Sequence[Document],
        recipe: Recipe,
        tokenizer: Tokenizer,
        prompts: Prompts,
        titles: Iterable[str] | None = None,
    ) -> ByHeart:
        """Of an adapter that learned these documents, each under its own title, or is to recite under other titles."""
        if titles is None:
            titles = [document.title for document in apart_by_title(documents)]
        found = {title: prompt_of_title(title, recipe, tokenizer, prompts) for title in titles}
        longest = max(len(tokenizer.encode(document.text)) for document in documents)
        return cls(
            prompts=found,
            topic=prompts.topic(instruct=tokenizer.instruct, text=TEXT),
            topic_tokens=1 + max(len(tokenizer.encode(title)) for title in found),
            text_tokens=min(recipe.max_sequence_tokens, longest + _SLACK),
        )

    @classmethod
    def beside(cls, folder: Path) -> ByHeart:
        """That of the adapter in a folder.  Errors: UserError for a damaged list."""
        file = folder / TITLES_FILE
        remedy = "learn the documents again"
        return checked(cls, read_json(file, remedy), str(file), remedy)

    def write(self, folder: Path) -> None:
        (folder / TITLES_FILE).write_text(self.model_dump_json(), encoding="utf-8")

    def reading(
        self, question: str, tokenizer: Tokenizer, shown: str = "", tokens: int = 0, plain: tuple[int, ...] = ()
    ) -> Reading:
        """A question of which the adapter is to name the title."""
        topic = tuple(tokenizer.prompt_ids(self.topic.replace(TEXT, question)))
        return Reading(shown, tokens, topic=topic, question=tuple(tokenizer.encode(question)), plain=plain)

    def recital(self, readings: Iterable[Reading], answer_tokens: int = 0) -> Recital:
        return Recital(self.prompts, tuple(readings), self.topic_tokens, self.text_tokens, answer_tokens)
