"""JSON files, read with one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfedit.errors import UserError


def read_json(path: Path, remedy: str) -> Any:
    """What a JSON file holds.  Raises UserError, which ends with the remedy where it is no JSON."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    return parsed(decoded(content, str(path)), str(path), remedy)


def decoded(content: bytes, where: str) -> str:
    """UTF-8, with a mark before it or without.  Raises UserError."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (at byte {error.start + 1}); save the file as UTF-8") from None


def parsed(text: str, where: str, remedy: str) -> Any:
    """JSON's value.  Raises UserError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise UserError(f"{where}: not valid JSON at {place} ({error.msg}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
        raise UserError(f"{where}: {why}; {remedy}") from None
