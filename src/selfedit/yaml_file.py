"""Reads YAML: a file of settings, a recipe, prompts, prices; or one value on the command line.

What a user's file can do wrong is one line, whatever it is: not there, not text, not YAML, or YAML that unfolds without
end."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from selfedit.errors import UserError, reason

_DEEPEST = 50


def read_yaml(path: str | Path, where: str) -> Any:
    """The file's content as plain data; `where` begins an error's line (`--config mine.yaml`).

    Aliases are refused: a few lines of them can stand for more data than any memory holds.  So is deep nesting, for
    which PyYAML's time grows with the square of the depth.  So is a key that its mapping has twice, of which PyYAML
    would take the last.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        text = Path(path).read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{where}: aliases (*name) are not read here; write the value out")
            if depth > _DEEPEST:
                raise UserError(f"{where}: not YAML that can be read (nested too deeply)")
        return yaml.load(text, Loader)
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (at byte {error.start}); save it as UTF-8") from None
    # ValueError: dates and numbers that look right and are none.
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: not YAML ({reason(error)})") from None


def read_shipped(package: str, name: str) -> Any:
    import yaml

    # libyaml, where PyYAML has it, takes a tenth of the time; what it says of mistakes does not matter here.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((files(package) / name).read_text(encoding="utf-8"), loader)


def parse_value(text: str) -> Any:
    """A setting's value as YAML reads it: 3, 1e-3, true, [q_proj, v_proj], or text."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    try:
        return float(value) if isinstance(value, str) else value  # YAML 1.1 takes 2e-3 for text
    except ValueError:
        return value
