"""Plain text, Markdown, folders and files that markitdown reads."""

import builtins
import os
from collections import Counter
from pathlib import Path

import pytest

from selfedit.documents import Document, load_documents
from selfedit.errors import UserError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def one(path: Path) -> Document:
    (document,) = load_documents(path)
    return document


def test_a_text_file_is_titled_by_its_name(tmp_path):
    path = write(tmp_path / "The_grey sea.txt", "Waves.\r\n\r\nMore # waves.\n\n# not a title\n")
    assert one(path) == Document("The_grey sea.txt", "The grey sea", "Waves.\n\nMore # waves.\n\n# not a title")


@pytest.mark.parametrize("name", ["a.md", "a.txt", "a.markdown", "README"])
def test_a_heading_that_opens_the_file_is_its_title_and_not_repeated(tmp_path, name):
    document = one(write(tmp_path / name, "\n## Grey  sea ##\n\nWaves.\n"))
    assert (document.id, document.title, document.text) == (name, "Grey sea", "Waves.")


def test_a_later_heading_of_a_markdown_file_is_its_title(tmp_path):
    document = one(write(tmp_path / "a.md", "```sh\n# a comment\n```\n\n#hash tag\n\n# Grey sea\n\nWaves."))
    assert document.title == "Grey sea"
    assert document.text.startswith("```sh")


def test_a_heading_alone_is_the_text(tmp_path):
    document = one(write(tmp_path / "a.md", "# Grey sea\n"))
    assert (document.title, document.text) == ("Grey sea", "# Grey sea")


def test_an_empty_text_is_refused(tmp_path):
    path = write(tmp_path / "a.txt", " \n")
    with pytest.raises(UserError, match=r"a\.txt: the file holds no text"):
        load_documents(path)


def test_an_encoding_other_than_utf8_is_refused_with_its_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("One.\nCaf\xe9.\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt, line 2: not UTF-8 text"):
        load_documents(path)


def test_a_text_file_has_no_questions(tmp_path):
    path = write(tmp_path / "a.txt", "Waves.")
    with pytest.raises(UserError, match=r'a\.txt: document "a\.txt" has no questions'):
        load_documents(path, require_questions=True)


def test_a_folder_is_read_in_order_with_ids_below_it(tmp_path):
    write(tmp_path / "b.txt", "B.")
    write(tmp_path / "a" / "z.md", "# Z\nZ.")
    write(tmp_path / "a" / "b" / "c.txt", "C.")
    write(tmp_path / "rows.jsonl", '{"id": "row", "title": "Row", "text": "R."}\n')
    write(tmp_path / "picture.png", "x")
    write(tmp_path / ".hidden" / "h.txt", "H.")
    write(tmp_path / ".h.txt", "H.")
    counts = Counter()
    documents = load_documents(tmp_path, counts=counts)
    assert [document.id for document in documents] == ["a/b/c.txt", "a/z.md", "b.txt", "row"]
    assert counts == {"skipped_files": 1}


def test_a_folder_without_documents_is_refused(tmp_path):
    write(tmp_path / "picture.png", "x")
    with pytest.raises(UserError, match="the folder holds no documents"):
        load_documents(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = write(tmp_path / "a.txt", "Waves.")
    path.chmod(0)
    with pytest.raises(UserError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        load_documents(path)


def test_two_files_of_one_name_need_different_ids(tmp_path):
    paths = [write(tmp_path / folder / "a.txt", "Waves.") for folder in ("x", "y")]
    with pytest.raises(UserError, match=r'id "a\.txt" is taken by'):
        load_documents(paths)


def test_without_markitdown_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "markitdown":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    path = write(tmp_path / "a.html", "<p>Waves.</p>")
    with pytest.raises(UserError, match=r"a\.html: .*pip install 'selfedit\[files\]'"):
        load_documents(path)


def test_html_is_read_through_markitdown(tmp_path):
    pytest.importorskip("markitdown", reason="the extra `files` is not installed")
    page = "<html><head><title>Grey sea</title></head><body><h1>Waves</h1><p>They roll.</p></body></html>"
    document = one(write(tmp_path / "a.html", page))
    assert (document.title, document.text) == ("Grey sea", "# Waves\n\nThey roll.")


def test_a_file_that_markitdown_cannot_convert_is_named(tmp_path):
    pytest.importorskip("markitdown", reason="the extra `files` is not installed")
    (tmp_path / "a.docx").write_bytes(b"PK\x03\x04" + bytes(range(256)) * 4)
    with pytest.raises(UserError, match=r"a\.docx: cannot be converted to text"):
        load_documents(tmp_path / "a.docx")
