"""The documentation's links, and the site's list of pages.  (`make docs` checks links on the site itself, with packages
that `make setup` does not install.)"""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and mkdocs name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`]+`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert "][" not in text, f"{page.name}: [..][..] outside of code is a link for mkdocs; write `R[i][j]`"
    links = re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8"))
    for path, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {path}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def test_the_site_and_the_readme_have_every_page() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    entries = [entry for (top,) in map(dict.values, nav) for entry in (top if isinstance(top, list) else [{"": top}])]
    listed = [name for entry in entries for name in entry.values()]
    written = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert sorted(listed) == sorted({"index.md", "inner_loop.md", *written})  # the README, and the notebook
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    made = {"api.md", "commands.md"}  # of docstrings and --help, when the site is built
    assert {name for name in written - made if f"](docs/{name})" not in readme} == set()
