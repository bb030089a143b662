"""Plain text, Markdown, folders and files that markitdown reads."""

import builtins
import os
import re
from pathlib import Path

import pytest

from selfedit.documents import Document, LeftOut, load_documents
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


def test_many_blanks_within_a_heading_take_no_time(tmp_path):
    blanks = " " * 1_000_000
    document = one(write(tmp_path / "a.md", f"# Grey{blanks}sea{blanks}#{blanks}\n\n# B{blanks}B\n\nWaves."))
    assert document.title == "a", "the heading is too long for a title"
    assert document.text.count("#") == 3


def test_a_later_heading_of_a_markdown_file_is_its_title(tmp_path):
    document = one(write(tmp_path / "a.md", "```sh\n# a comment\n```\n\n#hash tag\n\n# Grey sea\n\nWaves."))
    assert document.title == "Grey sea"
    assert document.text.startswith("```sh")


@pytest.mark.parametrize(
    ("front", "title", "text"),
    [
        ("---\ntitle: Grey sea\ntags: [water]\n---\n", "Grey sea", "Waves."),
        ("---\r\ntitle: 2024-05-01\r\n---\r\n", "2024-05-01", "Waves."),
        ("\ufeff---\ndate: 2024-05-01\n...\n# Grey sea\n", "Grey sea", "Waves."),
        ("---\ntitle: [a, b]\n---\n", "a", "Waves."),
        ("---\ntitle: [a, b\n---\n", "a", "---\ntitle: [a, b\n---\nWaves."),  # not YAML
        ("---\nA line between rules.\n---\n", "a", "---\nA line between rules.\n---\nWaves."),
        ("---\ntitle: Grey sea\n", "a", "---\ntitle: Grey sea\nWaves."),  # not closed
    ],
)
def test_what_opens_a_markdown_file_as_yaml_is_no_text(tmp_path, front, title, text):
    document = one(write(tmp_path / "a.md", f"{front}Waves.\n"))
    assert (document.title, document.text) == (title, text)
    assert one(write(tmp_path / "b.txt", "---\ntitle: Grey sea\n---\nWaves.")).text.startswith("---")


def test_a_file_of_front_matter_alone_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.md: the file holds no text"):
        load_documents(write(tmp_path / "a.md", "---\ntitle: Grey sea\n---\n"))


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
    left_out = LeftOut()
    documents = load_documents(tmp_path, left_out=left_out)
    assert [document.id for document in documents] == ["a/b/c.txt", "a/z.md", "b.txt", "row"]
    assert left_out.counts == {"skipped_files": 1}


def test_a_folder_without_documents_is_refused(tmp_path):
    write(tmp_path / "picture.png", "x")
    with pytest.raises(UserError, match="the folder holds no documents"):
        load_documents(tmp_path)


def test_nothing_left_out_is_not_told(tmp_path, caplog):
    write(tmp_path / "a.txt", "A.")
    left_out = LeftOut()
    load_documents(tmp_path, left_out=left_out)
    load_documents(tmp_path)
    assert left_out.lines() == []
    assert caplog.text == ""


def spoilt_folder(folder: Path) -> Path:
    """Files of which only two can be read, and what is wrong with each."""
    write(folder / "a.txt", "A.")
    write(folder / "z.jsonl", '{"id": "z", "title": "Z", "text": "Z."}\n')
    write(folder / "empty.txt", " \n")
    (folder / "latin.md").write_bytes("One.\nCaf\xe9.\n".encode("latin-1"))
    (folder / "binary.txt").write_bytes(b"One.\n\x00\x01\x02")
    (folder / "utf16.txt").write_bytes("One.".encode("utf-16-le"))
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00")
    write(folder / "settings.json", '{"name": "package"}')
    os.mkfifo(folder / "pipe.txt")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    (folder / "circle.txt").symlink_to(folder / "circle.txt")
    return folder


SPOILT = {
    "empty.txt": "the file holds no text",
    "latin.md, line 2": "not UTF-8 text; save the file as UTF-8",
    "binary.txt, line 2": "not UTF-8 text (a NUL byte); save the file as UTF-8 text",
    "utf16.txt, line 1": "not UTF-8 text (a NUL byte); save the file as UTF-8 text",
    "empty.jsonl": "the file is empty; it should hold one JSON object per line",
    "binary.json": "not UTF-8 text (at byte 1); save the file as UTF-8",
    "settings.json": 'no list "data", so not SQuAD JSON; put document rows into a .jsonl file, one object per line',
    "pipe.txt": "a pipe or a device, which may never end; copy what it holds into a file",
    "gone.txt": "a link that leads out of the folder; --follow-links reads it",
    "circle.txt": "cannot be read (Too many levels of symbolic links)",
}


def test_files_of_a_folder_that_cannot_be_read_are_left_out_and_named(tmp_path):
    folder = spoilt_folder(tmp_path / "notes")
    (folder / "gone.txt").unlink()
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    left_out = LeftOut()
    assert [document.id for document in load_documents(folder, left_out=left_out)] == ["a.txt", "z"]
    assert sorted(left_out.files) == sorted(f"{folder / name}: {why}" for name, why in SPOILT.items())
    assert left_out.lines() == [f"left out: {file}" for file in left_out.files]


@pytest.mark.parametrize("name", SPOILT)
def test_a_strict_reader_refuses_each_of_them(tmp_path, name):
    folder = spoilt_folder(tmp_path / "notes")
    name, _, _ = name.partition(",")
    for path in folder.iterdir():
        if path.name not in ("a.txt", name):
            path.unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        load_documents(folder, strict=True)


def test_of_many_files_left_out_ten_are_named(tmp_path):
    write(tmp_path / "a.txt", "A.")
    for number in range(25):
        write(tmp_path / f"empty{number:02}.txt", "")
    left_out = LeftOut()
    load_documents(tmp_path, left_out=left_out)
    lines = left_out.lines()
    assert len(lines) == 11
    assert "empty09.txt" in lines[9]
    assert lines[10] == "left out: 15 more files"


def test_a_folder_of_which_nothing_can_be_read_says_why(tmp_path):
    write(tmp_path / "a.txt", "")
    with pytest.raises(UserError, match=r"the folder holds no documents; .*a\.txt: the file holds no text"):
        load_documents(tmp_path)


def test_a_mistake_among_good_rows_is_never_left_out(tmp_path):
    write(tmp_path / "a.txt", "A.")
    write(tmp_path / "rows.jsonl", '{"id": "row", "title": "Row", "text": "R."}\n{"id": 3}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: id: "):
        load_documents(tmp_path)


def test_links_that_lead_out_of_a_folder_are_followed_only_if_asked(tmp_path):
    secret = write(tmp_path / "secret" / "passwd.txt", "root:x:0:0")
    folder = tmp_path / "notes"
    write(folder / "a.txt", "A.")
    (folder / "same.txt").symlink_to("a.txt")
    (folder / "b.txt").symlink_to(secret)
    (folder / "c").symlink_to(secret.parent)
    left_out = LeftOut()
    assert [document.id for document in load_documents(folder, left_out=left_out)] == ["a.txt", "same.txt"]
    assert left_out.files == [
        f"{folder / name}: a link that leads out of the folder; --follow-links reads it" for name in ("c", "b.txt")
    ]
    followed = [document.id for document in load_documents(folder, follow_links=True, strict=True)]
    assert followed == ["a.txt", "b.txt", "c/passwd.txt", "same.txt"]


def test_links_that_lead_in_a_circle_are_followed_once(tmp_path):
    folder, other = tmp_path / "notes", tmp_path / "other"
    write(folder / "sub" / "a.txt", "A.")
    write(other / "b.txt", "B.")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "out").symlink_to(other)
    (other / "back").symlink_to(folder)
    (other / "self").symlink_to(other)
    documents = load_documents(folder, follow_links=True)
    assert [document.id for document in documents] == ["out/b.txt", "sub/a.txt"]


def test_a_folder_that_is_itself_a_link_is_read(tmp_path):
    write(tmp_path / "notes" / "a.txt", "A.")
    (tmp_path / "link").symlink_to("notes")
    assert [document.id for document in load_documents(tmp_path / "link")] == ["a.txt"]


def test_a_run_among_the_documents_is_not_read(tmp_path):
    write(tmp_path / "a.txt", "A.")
    write(tmp_path / "runs" / "x" / "run.sqlite", "")
    write(tmp_path / "runs" / "x" / "adapters" / "learned" / "README.md", "# An adapter")
    assert [document.id for document in load_documents(tmp_path, strict=True)] == ["a.txt"]


def test_folders_nested_beyond_what_a_path_can_name_are_left_out(tmp_path):
    write(tmp_path / "a.txt", "A.")
    name = "d" * 250
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    left_out = LeftOut()
    assert [document.id for document in load_documents(tmp_path, left_out=left_out)] == ["a.txt"]
    (line,) = left_out.files
    assert line.endswith("cannot be read (File name too long)")


def test_a_device_is_refused_and_a_pipe_that_is_named_is_read(tmp_path):
    with pytest.raises(UserError, match="/dev/zero: a device"):
        load_documents("/dev/zero")
    reader, writer = os.pipe()
    try:
        os.write(writer, b"Waves.")
        os.close(writer)
        assert one(Path(f"/dev/fd/{reader}")).text == "Waves."
    finally:
        os.close(reader)


def test_a_name_that_is_not_utf8_or_has_line_breaks_makes_a_document(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("A.")
    (tmp_path / "two\nlines\u202e.txt").write_text("B.")
    first, second = load_documents(tmp_path)
    assert (first.id, first.title) == ("caf\\xe9.txt", "caf\N{REPLACEMENT CHARACTER}")
    assert (second.id, second.title) == ("two\nlines\u202e.txt", "two lines")


def test_a_heading_too_long_for_a_title_is_text(tmp_path):
    document = one(write(tmp_path / "a.md", "# " + "word " * 300 + "\n\nWaves."))
    assert document.title == "a"
    assert document.text.startswith("# word word")


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


def test_utf16_with_its_mark_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes("Wellen: Öl, 海, بحر.".encode("utf-16"))
    assert one(tmp_path / "a.txt").text == "Wellen: Öl, 海, بحر."
    (tmp_path / "a.txt").write_bytes("Wellen".encode("utf-16") + b"x")
    with pytest.raises(UserError, match=r"a\.txt, line 1: not UTF-8 text"):
        one(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a.pdf"])
def test_a_file_that_is_far_too_large_is_refused_unread(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.truncate(200 * 2**20)
    with pytest.raises(UserError, match=rf"{name}: 200 MiB, more than the 64 of one file; split it"):
        load_documents(tmp_path / name)
