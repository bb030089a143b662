"""What a summary holds beyond its declared fields: nothing, or else readers would not know of it."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel


def undeclared(part: BaseModel, where: str = "") -> Iterator[str]:
    """Names of keys that were written and that the model does not declare, at any depth."""
    yield from (f"{where}{key}" for key in part.model_extra or {})
    for name in type(part).model_fields:
        value = getattr(part, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, BaseModel):
                yield from undeclared(item, f"{where}{name}.")
