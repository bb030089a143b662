"""From a document and its edit to the engine's token sequences, as a recipe says."""

from __future__ import annotations

from selfedit.engine.jobs import TokenSequence
from selfedit.errors import UserError
from selfedit.models import Tokenizer
from selfedit.prompts import Prompts
from selfedit.training.objectives import TrainingSequence
from selfedit.training.recipes import Recipe

_PIECE = 1 << 16  # characters
# Bounds on what a writer's token can stand for.  They are never met by text that says something; without them nothing
# could be said of a run's size and price before its edits and answers are there (`plan`).
_CHARACTERS, _OWN_TOKENS = 16, 4


def most_characters(tokens: int) -> int:
    """The longest text that is kept of so many tokens; more is cut off."""
    return _CHARACTERS * tokens


def most_own_tokens(tokens: int) -> int:
    """The most tokens of the student's that so many of a writer's may be, all lines counted by themselves."""
    return _OWN_TOKENS * tokens


def within_bounds(text: str, tokens: int, tokenizer: Tokenizer) -> str:
    """An edit of so many of its writer's tokens, without the lines that pass the bounds."""
    kept: list[str] = []
    characters = own = 0
    for line in text.split("\n")[:tokens]:
        characters += len(line) + 1
        if characters > most_characters(tokens):
            break
        own += len(tokenizer.encode(line))
        if own > most_own_tokens(tokens):
            break
        kept.append(line)
    # Of a single line that is too long, as many characters are left as cannot be too many tokens.
    return "\n".join(kept) or text[:tokens]


def longer_than(tokenizer: Tokenizer, text: str, tokens: int) -> bool:
    """Whether a text has more tokens than so many.  It is encoded piece by piece, and no further than is needed to
    know: a tokenizer takes 150 bytes of memory per character."""
    counted = 0
    for begin in range(0, len(text), _PIECE):
        counted += len(tokenizer.encode(text[begin : begin + _PIECE]))
        if counted > tokens:
            return True
    return False


def prompt_tokens(tokenizer: Tokenizer, text: str, context_length: int) -> tuple[int, ...]:
    """A prompt's tokens.  Errors: UserError where a model that reads so many has no room for a reply."""
    most = context_length - 1  # a reply has one token at least
    if len(text) <= most or not longer_than(tokenizer, text, most):
        ids = tuple(tokenizer.prompt_ids(text))
        if len(ids) <= most:
            return ids
    raise UserError(f"the prompt is longer than the {context_length:,} tokens that the model reads")


def tokenize(sequence: TrainingSequence, recipe: Recipe, tokenizer: Tokenizer, prompts: Prompts) -> TokenSequence:
    """A text as the recipe's form has it: plain and headed by its title, or a chat model's reply, of which only the
    reply is learned.  With a passage, what the teacher reads is the passage and the same prompt.  With `pad_to`, the
    rest of so many tokens is padding, and learned."""
    instruct, title = tokenizer.instruct, sequence.title
    if sequence.question is not None:
        asked = prompts.exam(instruct=instruct, title=title, question=sequence.question)
    elif sequence.about is not None:
        asked = prompts.topic(instruct=instruct, text=sequence.about)
    elif _as_reply(recipe, tokenizer):
        asked = prompts.study(title=title)
    elif sequence.passage is not None:
        asked = f"{title}\n"  # the teacher's text goes before it, so that only the text is learned
        tokenizer = tokenizer.plain
    else:
        return TokenSequence(_padded(tokenizer.text_ids(f"{title}\n{sequence.text}"), recipe, tokenizer))
    ids, prompt_length = tokenizer.example(asked, sequence.text)
    if sequence.passage is None:
        return TokenSequence(_padded(ids, recipe, tokenizer), prompt_length)
    teacher = tokenizer.prompt_ids(f"{title}\n{sequence.passage}\n\n{asked}")
    return TokenSequence(tuple(ids), prompt_length, teacher=tuple(teacher))


def _as_reply(recipe: Recipe, tokenizer: Tokenizer) -> bool:
    """Whether a text is learned as a chat model's reply."""
    return recipe.form == "chat" or (recipe.form == "auto" and tokenizer.instruct)


def prompt_of_title(title: str, recipe: Recipe, tokenizer: Tokenizer, prompts: Prompts) -> tuple[int, ...]:
    """What stands before a text of this title when it is learned (`tokenize`): with it, the text can be recited."""
    if _as_reply(recipe, tokenizer):
        return tuple(tokenizer.prompt_ids(prompts.study(title=title)))
    ids = tokenizer.text_ids(f"{title}\n")
    return tuple(ids if tokenizer.hf.eos_token_id is None else ids[:-1])


def _padded(ids: list[int], recipe: Recipe, tokenizer: Tokenizer) -> tuple[int, ...]:
    """With the end-of-text token as padding, as the published code has it whatever the model's own is."""
    hf, missing = tokenizer.hf, (recipe.pad_to or 0) - len(ids)
    if missing <= 0:
        return tuple(ids)
    pad = hf.pad_token_id if hf.eos_token_id is None else hf.eos_token_id
    if pad is None:
        raise UserError(
            f"--set pad_to: the tokenizer of {hf.name_or_path} has neither an end-of-text nor a padding token"
        )
    return (*ids, *[pad] * missing)
