"""What the site has beside the pages of this folder: the README as its first page, the notebook, `--help` of every
command, the settings of recipes, copies of the files outside this folder that pages link to, and `llms.txt` with the
pages as Markdown (https://llmstxt.org).  mkdocs calls the functions."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

from selfedit.cli.commands import COMMANDS
from selfedit.cli.main import main
from selfedit.training.recipes import RECIPES, Recipe

DOCS = Path(__file__).parent
ROOT = DOCS.parent
README = ROOT / "README.md"
NOTEBOOK = ROOT / "examples" / "inner_loop.ipynb"
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")

pages: list[Page] = []  # in the order of the navigation
texts: dict[str, str] = {}  # their Markdown, by file name


def on_files(files: Files, config: Any) -> None:
    files.append(File.generated(config, "index.md", abs_src_path=str(README)))
    files.append(File.generated(config, "inner_loop.md", content=as_markdown(NOTEBOOK)))


def on_nav(nav: Navigation, config: Any, files: Files) -> None:
    pages.extend(nav.pages)


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    folder = ROOT if page.file.src_uri == "index.md" else DOCS

    def on_the_site(link: re.Match[str]) -> str:
        target = (folder / link[1]).resolve()
        if target == README:
            name = "index.md"
        elif target == NOTEBOOK:
            name = "inner_loop.md"
        elif target.is_relative_to(DOCS):
            name = target.relative_to(DOCS).as_posix()
        else:
            name = target.relative_to(ROOT).as_posix()
            if target.is_file() and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(target)))
        return f"]({name}"

    markdown = LINK.sub(on_the_site, markdown)
    if page.file.src_uri == "commands.md":
        markdown += "".join(f"## {name}\n\n```text\n{help_of(name)}```\n\n" for name in COMMANDS) + recipes()
    texts[page.file.src_uri] = markdown
    return markdown


def as_markdown(notebook: Path) -> str:
    """A notebook's cells, each code cell followed by what it printed."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += ["```text\n" + "".join(output["text"]).strip() + "\n```" for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def help_of(command: str) -> str:
    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([command, "--help"])
    return printed.getvalue()


def recipes() -> str:
    """A table of what `--set` takes, with the values of the built-in recipes."""
    names = [name for name in RECIPES if name != "outer"]
    rows = [["setting", "meaning", *names], ["---"] * (2 + len(names))]
    for name, field in Recipe.model_fields.items():
        if name != "name":
            values = [getattr(RECIPES[recipe], name) for recipe in names]
            shown = [
                ", ".join(value) if isinstance(value, tuple) else "" if value is None else f"{value}"
                for value in values
            ]
            rows.append([f"`{name}`", field.description or "", *shown])
    return "## Settings of a recipe\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def on_post_build(config: Any) -> None:
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", "", "## Pages", ""]
    for page in pages:
        name = page.file.src_uri
        markdown = texts[name]
        if ":::" in markdown:  # made from docstrings
            name = page.file.dest_uri
        else:
            (site / name).write_text(markdown, encoding="utf-8")
        paragraph = re.search(r"^# .*\n+((?:.+\n)+)", markdown, re.MULTILINE)
        assert paragraph is not None, f"{page.file.src_uri}: a page begins with its title and a paragraph"
        first = re.split(r"(?<=\.) (?=[A-Z`])", " ".join(paragraph[1].split()))[0]
        lines.append(f"- [{page.title}]({name}): {first}")
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
