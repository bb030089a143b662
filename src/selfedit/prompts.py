"""The prompts: all texts that a model is asked with, read from `prompts.yaml` and from a user's own file.

A prompt is text with fields, conditions and filters.  There are no loops, calls, assignments or includes: a prompt is
no longer than its template and its fields, and is made at once, whatever its file holds."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfedit.errors import UserError, reason
from selfedit.yaml_file import read_shipped, read_yaml

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

FIELDS = {
    "edit": ("title", "text"),
    "reward": ("title", "text", "edit", "fence"),
    "study": ("title",),
    "topic": ("text",),
    "exam": ("title", "question"),
    "open-book": ("passages", "title", "question"),
    "judge": ("question", "gold", "answer", "fence"),
}
# Without it all questions, texts, edits or answers would be one prompt.  (An edit may be asked for by its title.)
_NEEDED = {"reward": "edit", "topic": "text", "exam": "question", "open-book": "question", "judge": "answer"}
# What a template may hold: nothing that repeats, and no filter that makes its text longer.
_NODES = (
    "Template Output TemplateData Name Const If CondExpr And Or Not Compare Operand Test Filter Keyword Concat Add Neg"
    " Getitem Slice Tuple List"
).split()
_FILTERS = "capitalize count d default first last length lower string title trim truncate upper wordcount".split()


class Prompts:
    """Prompts by purpose and name, the built-in ones with a user's on top.

    Errors: UserError for a file that is missing, is not YAML, or has entries that no prompt has.
    """

    def __init__(self, user_file: str | Path | None = None) -> None:
        self._texts: dict[str, dict[str, Any]] = read_shipped("selfedit", "prompts.yaml")
        self._templates: dict[str, Template] = {}
        self.user_file = user_file
        if user_file is None:
            return
        own = read_yaml(user_file, f"--prompt-file {user_file}")
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
            kinds = ("chat", "base") if purpose == "edit" else tuple(self._texts[purpose])
            if not isinstance(named, dict) or not all(isinstance(name, str) for name in named):
                raise UserError(f"--prompt-file {self.user_file}: {purpose}: expected prompts by name")
            for name, texts in named.items():
                if (
                    not isinstance(texts, dict)
                    or not texts.keys() <= set(kinds)
                    or not all(isinstance(text, str) for text in texts.values())
                ):
                    raise UserError(f"{self._where(purpose, name)}: expected texts under {' and '.join(kinds)}")
                for kind, text in texts.items():
                    if not text.strip() and kind != "system":
                        raise UserError(f"{self._where(purpose, name)} ({kind}): empty")
                    used = self._check_template(text, FIELDS[purpose], f"{self._where(purpose, name)} ({kind})")
                    if purpose in _NEEDED and kind != "system" and (needed := _NEEDED[purpose]) not in used:
                        raise UserError(f"{self._where(purpose, name)} ({kind}): has no {{{{ {needed} }}}}; add it")
            self._texts[purpose] = {**self._texts[purpose], **entries}

    def _check_template(self, text: str, fields: tuple[str, ...], where: str) -> set[str]:
        """The fields that a text has."""
        from jinja2 import TemplateSyntaxError, nodes

        try:
            tree = self._environment.parse(text)
            found = [*tree.find_all(nodes.Node)]
        except TemplateSyntaxError as error:
            raise UserError(f"{where}, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise UserError(f"{where}: nested too deeply") from None
        for node in found:
            line = f"{where}, line {node.lineno}"
            if isinstance(node, nodes.Name) and node.name not in fields:
                raise UserError(f"{line}: no field {node.name!r}; fields here are {', '.join(fields)}")
            if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
                raise UserError(f"{line}: no filter {node.name!r}; filters here are {', '.join(_FILTERS)}")
            if type(node).__name__ not in _NODES:
                raise UserError(
                    f"{line}: {type(node).__name__} has no place in a prompt; there are fields, `if`, `~`, "
                    "[...] and filters"
                )
        try:
            self._environment.from_string(text)
        except (SyntaxError, RecursionError, MemoryError):  # Python's own limits on what jinja makes of a template
            raise UserError(f"{where}: nested too deeply") from None
        return {node.name for node in found if isinstance(node, nodes.Name)}

    def _where(self, purpose: str, name: str) -> str:
        source = "" if self.user_file is None else f"--prompt-file {self.user_file}: "
        return f"{source}{purpose} {name}".rstrip()

    @property
    def content(self) -> dict[str, Any]:
        return self._texts

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
        """The prompt that asks for an edit.  Errors: UserError for a name that is not there, or not for this kind of
        model."""
        self.check(name)
        kind = "chat" if instruct else "base"
        if kind not in self._texts["edit"][name]:
            raise UserError(
                f"edit prompt {name!r} has no text for {kind} models; add `{kind}:` to it in {self.user_file}"
            )
        return self._render("edit", name, kind, title=title, text=text)

    def study(self, *, title: str) -> str:
        """The prompt that a chat model learns a text as the reply to."""
        return self._render("study", "", "chat", title=title)

    def topic(self, *, instruct: bool, text: str) -> str:
        """The prompt that asks which title a text, or a question, is about."""
        return self._render("topic", "", "chat" if instruct else "base", text=text)

    def exam(self, *, instruct: bool, title: str, question: str) -> str:
        """The prompt that asks an exam question, closed book."""
        return self._render("exam", "", "chat" if instruct else "base", title=title, question=question)

    def open_book(self, *, instruct: bool, passages: str, title: str, question: str) -> str:
        """The prompt that asks an exam question with passages to look it up in."""
        kind = "chat" if instruct else "base"
        return self._render("open-book", "", kind, passages=passages, title=title, question=question)

    def reward(self, *, title: str, text: str, edit: str, fence: str) -> str:
        """The prompt that has a judge rate an edit."""
        return self._render("reward", "", "chat", title=title, text=text, edit=edit, fence=fence)

    def judge(self, *, question: str, gold: str, answer: str, fence: str) -> tuple[str, str]:
        """(system message, user's message) that ask a judge about one answer; the first may be empty."""
        fields = {"question": question, "gold": gold, "answer": answer, "fence": fence}
        return self._render("judge", "", "system", **fields), self._render("judge", "", "chat", **fields)

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        return ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)

    def _render(self, purpose: str, name: str, kind: str, **fields: str) -> str:
        texts = self._texts[purpose][name] if purpose == "edit" else self._texts[purpose]
        text = texts[kind]
        try:
            if text not in self._templates:
                self._templates[text] = self._environment.from_string(text)
            return self._templates[text].render(**fields)
        except Exception as error:  # a user's template is a user's code: whatever it raises is theirs to mend
            raise UserError(f"{self._where(purpose, name)} ({kind}): {reason(error)}") from error


def edit_lead(prompt: str) -> str:
    """What an edit begins with because a plain prompt ends with it: a last line such as `Question:`."""
    last = prompt.rsplit("\n", 1)[-1]
    return last if last.startswith("Question:") else ""
