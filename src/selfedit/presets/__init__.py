"""Presets: settings and recipes of a published experiment, each in one YAML file."""

from __future__ import annotations

import functools
from typing import Any

from selfedit.yaml_file import read_shipped

NAMES = ("seal",)


@functools.cache
def read_preset(name: str) -> dict[str, Any]:
    """The parts of a preset: `recipes` by name, and settings of `every command`, of a command, or of a command with one
    more word that was given (`compare --regime joint`)."""
    found: dict[str, Any] = read_shipped(__name__, f"{name}.yaml")
    return found


def preset_settings(name: str, command: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a preset for a command that is given these."""
    parts = read_preset(name)
    found = {**parts["every command"], **parts.get(command, {})}
    for flag, value in given.items():
        found |= parts.get(f"{command} --{flag.replace('_', '-')} {value}", {})
    return found
