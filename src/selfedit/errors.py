"""The one exception that every package may raise for a mistake of the user's.

The command line turns a `UserError` into one line on standard error and exit code 2; every other exception is a bug and
keeps its traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(Exception):
    """A mistake that the user can mend: the message is one line that names what is wrong, where, and what to do."""


def first_error(error: ValidationError) -> str:
    """The first of a validation's errors in a few words: where it is, and what is expected there."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    what = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
