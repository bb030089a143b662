"""The prompts: all texts that a model is asked with, read from `prompts.yaml` and from a user's own file.

Knows names and templates.  Knows nothing of models, documents or graders; it is given strings.
"""

from __future__ import annotations

from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from selfedit.errors import UserError

KINDS = ("chat", "base", "system")


class Prompts:
    """Prompts by purpose and name, the built-in ones with a user's on top.

    Errors: UserError for a file that is missing, is not YAML, or has entries that no prompt has.
    """

    def __init__(self, user_file: str | Path | None = None) -> None:
        import yaml

        self._texts: dict[str, dict[str, Any]] = yaml.safe_load(
            (files("selfedit") / "prompts.yaml").read_text(encoding="utf-8")
        )
        self.user_file = user_file
        if user_file is None:
            return
        try:
            own = yaml.safe_load(Path(user_file).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--prompt-file {user_file}: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise UserError(f"--prompt-file {user_file}: not YAML ({' '.join(str(error).split())})") from None
        if not isinstance(own, dict):
            raise UserError(f"--prompt-file {user_file}: a mapping is expected, with some of {', '.join(self._texts)}")
        self._merge(own)

    def _merge(self, own: dict[str, Any]) -> None:
        for purpose, entries in own.items():
            if purpose not in self._texts:
                raise UserError(
                    f"--prompt-file {self.user_file}: no such entry {purpose!r}; there are {', '.join(self._texts)}"
                )
            named = entries if purpose == "edit" else {"": entries}
            if not isinstance(named, dict):
                raise UserError(f"--prompt-file {self.user_file}: {purpose}: expected prompts by name")
            for name, texts in named.items():
                if (
                    not isinstance(texts, dict)
                    or not set(texts) <= set(KINDS)
                    or not all(isinstance(text, str) for text in texts.values())
                ):
                    raise UserError(
                        f"--prompt-file {self.user_file}: {purpose} {name}: expected texts under chat and base"
                    )
            if purpose == "edit":
                self._texts["edit"].update(entries)
            else:
                self._texts[purpose] = {**self._texts[purpose], **entries}

    @property
    def edit_names(self) -> list[str]:
        return list(self._texts["edit"])

    def check(self, name: str) -> None:
        """Errors: UserError where there is no edit prompt of that name."""
        if name not in self._texts["edit"]:
            raise UserError(
                f"no edit prompt {name!r}; there are {', '.join(self.edit_names)} (own ones go into --prompt-file)"
            )

    def edit(self, name: str, *, instruct: bool, title: str, text: str) -> str:
        """The prompt that asks for an edit.  Errors: UserError for a name that is not there, or not for this kind of model."""
        self.check(name)
        kind = "chat" if instruct else "base"
        texts = self._texts["edit"][name]
        if kind not in texts:
            raise UserError(
                f"edit prompt {name!r} has no text for {kind} models; add `{kind}:` to it in {self.user_file}"
            )
        return self._render(texts[kind], title=title, text=text)

    def study(self, *, title: str) -> str:
        """The prompt that a chat model learns a text as the reply to."""
        return self._render(self._texts["study"]["chat"], title=title)

    def exam(self, *, instruct: bool, title: str, question: str) -> str:
        """The prompt that asks an exam question, closed book."""
        return self._render(self._texts["exam"]["chat" if instruct else "base"], title=title, question=question)

    def reward(self, *, title: str, text: str, edit: str, fence: str) -> str:
        """The prompt that has a judge rate an edit."""
        return self._render(self._texts["reward"]["chat"], title=title, text=text, edit=edit, fence=fence)

    def judge(self, *, question: str, gold: str, answer: str, fence: str) -> tuple[str, str]:
        """(system message, user's message) that ask a judge about one answer."""
        fields = {"question": question, "gold": gold, "answer": answer, "fence": fence}
        texts = self._texts["judge"]
        return self._render(texts["system"], **fields), self._render(texts["chat"], **fields)

    @cached_property
    def _environment(self) -> Any:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import SandboxedEnvironment

        return SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)

    def _render(self, template: str, **fields: Any) -> str:
        from jinja2 import TemplateError

        try:
            return self._environment.from_string(template).render(**fields)
        except TemplateError as error:
            raise UserError(f"--prompt-file {self.user_file}: {error}; fields here are {', '.join(fields)}") from None
