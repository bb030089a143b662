"""Real HTML, PDF and Word files, made here, and damaged ones, through markitdown."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfedit.documents import Document, LeftOut, files, load_documents
from selfedit.errors import UserError

pytest.importorskip("markitdown", reason="the extra `files` is not installed")

OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml"


def one(path: Path) -> Document:
    (document,) = load_documents(path)
    return document


def write_docx(path: Path, paragraphs: list[tuple[str, str]]) -> Path:
    """A Word file of paragraphs, each (style's name, text)."""
    styles = {style: f"S{number}" for number, (style, _) in enumerate(paragraphs)}
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{styles[style]}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    named = "".join(
        f'<w:style w:type="paragraph" w:styleId="{id}"><w:name w:val="{style}"/></w:style>'
        for style, id in styles.items()
    )
    files = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">'
        f'<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{TYPE}.document.main+xml"/>'
        f'<Override PartName="/word/styles.xml" ContentType="{TYPE}.styles+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
        f'<Relationship Id="d" Type="{OFFICE}/officeDocument" Target="word/document.xml"/></Relationships>',
        "word/_rels/document.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
        f'<Relationship Id="s" Type="{OFFICE}/styles" Target="styles.xml"/></Relationships>',
        "word/styles.xml": f"<w:styles {WORD}>{named}</w:styles>",
        "word/document.xml": f"<w:document {WORD}><w:body>{body}</w:body></w:document>",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{content}')
    return path


def write_pdf(path: Path, pages: list[str]) -> Path:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    with PdfPages(path) as pdf:
        for text in pages:
            page = Figure()
            page.text(0.1, 0.5, text)
            pdf.savefig(page)
    return path


def write_scan(path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (60, 40), "white").save(path)
    return path


def test_word_headings_become_headings(tmp_path):
    paragraphs = [
        ("heading 1", "Harbour"),
        ("Normal", "It opens at six."),
        ("heading 2", "Prices"),
        ("Normal", "12 €."),
    ]
    document = one(write_docx(tmp_path / "a.docx", paragraphs))
    assert (document.title, document.text) == ("Harbour", "It opens at six.\n\n## Prices\n\n12 €.")


def test_pages_of_a_pdf_are_read_one_after_another(tmp_path):
    document = one(write_pdf(tmp_path / "harbour_rules.pdf", ["It opens at six.", "A ticket costs\ntwelve crowns."]))
    assert document.title == "harbour rules"
    assert document.text.split() == "It opens at six. A ticket costs twelve crowns.".split()


def test_html_is_read_in_its_encoding_without_scripts(tmp_path):
    page = (
        "<html><head><meta charset='iso-8859-1'><title>Grüne See</title></head>"
        "<body><h1>Wellen</h1><script>alert(1)</script><p>Sie rollen über <b>Öl</b>.</p></body></html>"
    )
    (tmp_path / "a.html").write_bytes(page.encode("latin-1"))
    document = one(tmp_path / "a.html")
    assert (document.title, document.text) == ("Grüne See", "# Wellen\n\nSie rollen über **Öl**.")


def test_a_title_over_several_lines_is_not_repeated_as_a_heading(tmp_path):
    (tmp_path / "a.html").write_text("<title>\n  Grey\n  sea\n</title><body><h1>Grey sea</h1><p>Waves.</p></body>")
    document = one(tmp_path / "a.html")
    assert (document.title, document.text) == ("Grey sea", "Waves.")


def test_text_from_right_to_left_and_text_without_spaces_is_read(tmp_path):
    write_docx(tmp_path / "ar.docx", [("Normal", "تغادر العبارة في الساعة التاسعة.")])
    (tmp_path / "ja.html").write_text("<title>港</title><body><p>渡し船は九時に出る。</p>", encoding="utf-8")
    assert [document.text for document in load_documents(tmp_path)] == [
        "تغادر العبارة في الساعة التاسعة.",
        "渡し船は九時に出る。",
    ]


def test_a_workbook_is_titled_by_its_name_and_keeps_those_of_its_sheets(tmp_path, monkeypatch):
    """As markitdown writes them; reading them takes packages that are not needed elsewhere."""
    sheets = SimpleNamespace(markdown="## Sheet1\n| a |\n\n## Sheet2\n| b |", title=None)
    monkeypatch.setattr(files, "_markitdown", lambda: SimpleNamespace(convert_local=lambda _: sheets))
    (tmp_path / "travel_costs.xlsx").write_bytes(b"x")
    document = one(tmp_path / "travel_costs.xlsx")
    assert (document.title, document.text) == ("travel costs", sheets.markdown)


def test_html_that_is_nested_too_deeply_for_markdown_is_read_as_text(tmp_path, recwarn):
    (tmp_path / "a.html").write_text("<div>" * 5000 + "The sea.")
    assert one(tmp_path / "a.html").text == "The sea."
    assert not recwarn.list


def test_files_of_a_folder_that_hold_no_text_or_are_damaged_are_named(tmp_path):
    write_docx(tmp_path / "good.docx", [("Normal", "It opens at six.")])
    write_scan(tmp_path / "scan.pdf")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4\nrubbish")
    (tmp_path / "broken.docx").write_bytes(b"PK\x03\x04" + bytes(range(256)) * 4)
    (tmp_path / "empty.docx").write_bytes(b"")
    left_out = LeftOut()
    assert [document.id for document in load_documents(tmp_path, left_out=left_out)] == ["good.docx"]
    broken_docx, broken_pdf, empty, scan = sorted(left_out.files)
    for line in (broken_docx, broken_pdf, empty):
        assert "cannot be converted to text (" in line
    assert scan == f"{tmp_path / 'scan.pdf'}: no text in it, only pictures (a scan?); recognise its text first (OCR)"
    with pytest.raises(UserError, match="cannot be converted to text"):
        load_documents(tmp_path, strict=True)
