"""The one exception that every package may raise for a mistake of the user's.

The command line turns a `UserError` into one line on standard error and exit code 2; every other exception is a bug and
keeps its traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    M = TypeVar("M", bound=BaseModel)

_SHAPES = {"missing": "is missing", "model_type": "must be an object"}


class UserError(Exception):
    """A mistake that the user can mend: the message is one line that names what is wrong, where, and what to do."""


def reason(error: object) -> str:
    """What an error says, in one line of at most 300 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def first_error(error: ValidationError) -> str:
    """The first of a validation's errors in a few words: where it is (`questions[0].answers`), and what is expected."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    what = _SHAPES.get(first["type"]) or str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def checked(kind: type[M], data: Any, where: str, remedy: str) -> M:
    """Data of a file as a model.  Errors: UserError, in one line that begins with `where` and ends with the remedy."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {first_error(error)}; {remedy}") from None
