"""Flags made from settings: every field of a settings class is a flag, and a key of `--config FILE.yaml`.

pydantic-settings would make the flags, but it splits every value of a list at its commas, which `--grid rank=8,16` and
names of files contain, and its own errors are several lines.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from selfedit.errors import UserError
from selfedit.methods.settings import Settings, make_settings
from selfedit.yaml_file import parse_value, read_yaml

S = TypeVar("S", bound=Settings)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other mistake's, and whose words may stand anywhere among the
    flags (`ask RUN --compare "question"`), which argparse's own refuses of a word that may be left out."""

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        if self._mixing or self._subparsers is not None:  # which go by the order
            return super().parse_known_args(args, namespace)
        self._mixing = True  # it calls this method
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def add_settings(
    parser: argparse.ArgumentParser, kind: type[Settings], *, positional: str | None = None, repeated: str | None = None
) -> None:
    """Adds a flag for each setting, the command's own first; `positional` names one that is given without a flag,
    `repeated` one that may be given several times although a run has one value of it."""
    parser.add_argument("--config", metavar="FILE.yaml", help="settings from a file; a flag wins")
    own, shared = parser.add_argument_group("this command"), parser.add_argument_group("all commands that make a run")
    for name, field in kind.model_fields.items():
        group = own if name in kind.__annotations__ else shared
        annotation, many = _element(field.annotation)
        default = None if field.default is PydanticUndefined else field.default
        text = (field.description or "").replace("%", "%%")
        shown = "" if default in (None, (), {}, False) or "if left out" in text else f" [{_show(default)}]"
        if name == positional:
            group.add_argument(name, nargs="*", metavar=name.upper()[:-1], help=text)
            continue
        flag = "--" + name.replace("_", "-")
        options: dict[str, Any] = {"dest": name, "default": None, "help": text + shown}
        if annotation is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif get_origin(annotation) is dict:
            group.add_argument(flag, action="append", metavar="NAME=VALUE", **options)
        elif get_origin(annotation) is Literal:
            action = "append" if many else "store"
            group.add_argument(flag, choices=get_args(annotation), action=action, **options)
        else:
            metavar = {int: "N", float: "X", Path: "PATH"}.get(annotation, "TEXT")
            # Types are checked by the settings, whose messages name the bound that is broken.
            action = "append" if many or name == repeated else "store"
            group.add_argument(flag, metavar=metavar, action=action, **options)


def read_settings(kind: type[S], arguments: argparse.Namespace) -> S:
    """The settings of a command: the file's, with the flags' on top.  Errors: UserError."""
    values: dict[str, Any] = {}
    where = "settings"
    if arguments.config is not None:
        values = _read_yaml(Path(arguments.config))
        where = arguments.config
    for name in kind.model_fields:
        given = getattr(arguments, name, None)
        if given is None or given == []:
            continue
        pairs = isinstance(given, list) and get_origin(kind.model_fields[name].annotation) is dict
        values[name] = _pairs(name, given) if pairs else given
    return make_settings(kind, values, where)


def _pairs(name: str, given: Sequence[str]) -> dict[str, Any]:
    pairs = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"--{name.replace('_', '-')} {text}: write NAME=VALUE, such as learning_rate=2e-3")
        pairs[key.strip()] = parse_value(value)
    return pairs


def _read_yaml(path: Path) -> dict[str, Any]:
    values = read_yaml(path, f"--config {path}")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: a mapping of settings is expected, such as `edits: 3`")
    return values


def _element(annotation: Any) -> tuple[Any, bool]:
    """(type of one value, whether there can be several), optional types unwrapped."""
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        annotation = parts[0] if len(parts) == 1 else str
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0], True
    return annotation, False


def _show(value: Any) -> str:
    return "yes" if value is True else " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
