"""A run directory belongs to one run, one process and one set of settings."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.numpy import save_file

from selfedit.errors import UserError
from selfedit.reports.watching import watch
from selfedit.runs import directory, files
from selfedit.runs.directory import RunDirectory, library_versions, read_recorded
from selfedit.runs.files import TEMPORARY, directory_atomically, write_atomically
from selfedit.runs.lock import RunLock
from selfedit.runs.records import Event

CONFIG = {"procedure": "compare", "recipe": {"rank": 16, "lr": 1e-3}, "data": "news.jsonl", "device": "cpu"}


def test_a_new_run_records_settings_and_versions(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "runs" / "a", CONFIG) as run:
        assert run.config == CONFIG
        assert run.store.documents() == []
        assert run.adapter("self") == run.path / "adapters" / "self"
        assert run.checkpoint(3) == run.path / "checkpoints" / "round-03"
        assert run.checkpoint(12) == run.path / "checkpoints" / "round-12"
    written = yaml.safe_load((tmp_path / "runs" / "a" / "config.yaml").read_text())
    assert written.pop("versions") == library_versions()
    assert written == run.config == read_recorded(run.path / "config.yaml")[0]
    assert {"python", "selfedit", "torch", "transformers"} <= run.versions.keys()
    assert run.versions["python"] == ".".join(map(str, sys.version_info[:3]))


def test_what_is_resolved_is_decided_once(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path, CONFIG, free=["device"]) as run:
        assert run.resolve("dtype", "float32", "the precision") == "float32"
        assert run.resolve("memory", 12) == 12
    with RunDirectory.open(tmp_path, {**CONFIG, "device": "cuda"}, free=["device"]) as run:
        assert run.resolved == {"dtype": "float32", "memory": 12}
        assert run.resolve("memory", 5) == 12
        line = "the precision changed since this run began; put it back, or name another directory"
        with pytest.raises(UserError, match=line):
            run.resolve("dtype", "bfloat16", "the precision")
    with RunDirectory.read(tmp_path) as run:
        assert run.resolved == {"dtype": "float32", "memory": 12}
        assert "resolved" not in run.config
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace("resolved:", "resolved: 1\nelsewhere:"))
    with pytest.raises(UserError, match=r"config\.yaml: not the settings of a run"):
        RunDirectory.read(tmp_path)


def test_the_room_imports_no_torch() -> None:
    code = (
        "import sys, selfedit.runs.directory, selfedit.runs.costs, selfedit.runs.seeds;"
        "from selfedit.runs.directory import library_versions; library_versions();"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_same_settings_resume(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path, CONFIG) as run:
        run.store.add_event("a", "", "")
    with RunDirectory.open(tmp_path, CONFIG) as run:
        assert run.store.events() == [Event("a", "", "")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"rank": 32, "lr": 1e-3}}, r"recipe\.rank = 16, now it is 32"),
        ({"recipe": {"rank": 16}}, r"recipe\.lr = 0\.001, now it is not set"),
        ({"seed": 3}, "seed = not set, now it is 3"),
        ({"procedure": None}, "procedure = 'compare', now it is not set"),
        ({"device": "cuda"}, "device = 'cpu', now it is 'cuda'"),
    ],
)
def test_a_changed_setting_is_refused_by_name(tmp_path: Path, change: dict, message: str) -> None:
    RunDirectory.open(tmp_path, CONFIG).close()
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=message):
        RunDirectory.open(tmp_path, {**CONFIG, **change})
    assert (tmp_path / "config.yaml").read_bytes() == before
    RunDirectory.open(tmp_path, CONFIG).close()  # the refusal let go of the lock


def test_free_settings_may_change_and_the_last_are_recorded(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path, CONFIG).close()
    changed = {**CONFIG, "device": "cuda", "recipe": {"rank": 16, "lr": 0.1}}
    with RunDirectory.open(tmp_path, changed, free=["device", "recipe.lr"]) as run:
        assert run.config["device"] == "cuda"
    assert read_recorded(tmp_path / "config.yaml")[0]["recipe"] == {"rank": 16, "lr": 0.1}
    with pytest.raises(UserError, match=r"recipe\.rank"):
        RunDirectory.open(tmp_path, {**changed, "recipe": {"rank": 1}}, free=["device", "recipe.lr"])
    RunDirectory.open(tmp_path, {**changed, "recipe": {"rank": 1}}, free=["recipe"]).close()


def test_other_library_versions_are_noted_once_and_not_refused(tmp_path: Path, monkeypatch) -> None:
    RunDirectory.open(tmp_path, CONFIG).close()
    began_with = library_versions()
    monkeypatch.setattr(directory, "library_versions", lambda: {**began_with, "torch": "99.0"})
    for _ in range(2):
        with RunDirectory.open(tmp_path, CONFIG) as run:
            message = f"torch was {began_with['torch']} when the run began, 99.0 on resume"
            assert run.store.events("versions") == [Event("versions", "torch", message)]
            assert run.versions == began_with


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc.é \n'", max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@example({"a": "\x85"})
@given(st.dictionaries(st.text("abcxyz", min_size=1), plain, max_size=4))
def test_settings_survive_the_file(tmp_path_factory: pytest.TempPathFactory, config: dict) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    write_atomically(path, directory._config_text(config, {"selfedit": "1"}, {}))
    assert read_recorded(path)[0] == config


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"not empty and not a run \(it holds 'thesis\.tex'\)"):
        RunDirectory.open(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        RunDirectory.open(tmp_path / "thesis.tex", CONFIG)
    with pytest.raises(UserError, match=r"not the directory of a run"):
        RunDirectory.read(tmp_path)


def test_links_lead_to_nothing_that_a_run_overwrites(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="lock: is a link"):
        RunDirectory.open(tmp_path / "run", CONFIG)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link: is a link that leads nowhere"):
        RunDirectory.open(tmp_path / "link", CONFIG)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1\nb: 2", r"config\.yaml: not YAML .*line \d"), ("a: 1", "not the settings of a run"), ("", "not the set")],
)
def test_a_strange_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        RunDirectory.open(tmp_path, CONFIG)
    with pytest.raises(UserError, match=message):
        RunDirectory.read(tmp_path)


def test_what_is_not_there_is_empty(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "whole", CONFIG) as run:
        run.store.add_event("a", "", "")
    for name in ("config.yaml", "run.sqlite"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "whole" / name, tmp_path / name)
    with RunDirectory.read(tmp_path / "config.yaml") as run:
        assert run.config["procedure"] == "compare"
        assert (run.summary, run.store.events()) == (None, [])
    with RunDirectory.read(tmp_path / "run.sqlite") as run:
        assert (run.config, len(run.store.events())) == ({}, 1)
    with pytest.raises(UserError, match="no such directory"):
        RunDirectory.read(tmp_path / "nowhere")


def test_a_run_killed_before_its_settings_were_written_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on earth\n")
    (tmp_path / f".config.yaml{TEMPORARY}").write_text("half")
    RunDirectory.open(tmp_path, CONFIG).close()
    assert not (tmp_path / f".config.yaml{TEMPORARY}").exists()


HOLDER = """
import os, sys, time
from selfedit.runs.directory import RunDirectory
run = RunDirectory.open(sys.argv[1], {"a": 1})
if sys.argv[2] == "alone" or os.fork() == 0:
    print("locked", flush=True)  # a child that can say so has let go
    os.close(1)
time.sleep(60)
"""


@pytest.mark.parametrize("worker", ["alone", "fork"])
def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path, worker: str) -> None:
    """Also where the first leaves a forked worker behind, which must not keep the run locked."""
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run), worker], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(UserError, match=rf"{run}: in use by process {holder.pid} on \S+; wait until it ends"):
                RunDirectory.open(run, {"a": 1})
            with RunDirectory.read(run) as reader:
                assert reader.store.documents() == []
            holder.kill()
            holder.wait()
            RunDirectory.open(run, {"a": 1}).close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)


def test_a_lock_is_one_per_run_even_within_a_process(tmp_path: Path) -> None:
    first = RunLock(tmp_path / "lock")
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        RunLock(tmp_path / "lock")
    first.release()
    first.release()
    RunLock(tmp_path / "lock").release()


def test_adapters_of_different_names_lie_in_different_places(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path, CONFIG) as run:
        names = ["a/b", "a:b", "a-b", "..", ".", "", "é" * 200, "x" * 90, "x" * 91, "-a-b", "api:gpt-5"]
        places = {run.adapter(name) for name in names}
    assert len(places) == len(names)
    assert all(place.parent == tmp_path / "adapters" and len(place.name) < 100 for place in places)
    assert run.adapter("..").resolve() == run.adapter("..")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"summary\.json: the disk is full; make room"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_full_disk_under_a_directory_is_one_line(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk, for Python's writes and for those of safetensors."""
    target = tmp_path / "adapters" / "learned"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with (
            pytest.raises(UserError, match=r"learned: the disk is full; make room"),
            directory_atomically(target) as new,
        ):
            (new / "adapter_model.safetensors").write_bytes(bytes(2000))
        with (
            pytest.raises(UserError, match=r"learned: the disk is full; make room"),
            directory_atomically(target) as new,
        ):
            save_file({"a": np.zeros(2000)}, new / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_a_run_is_its_owners_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with RunDirectory.open(tmp_path / "run", CONFIG) as run:
            run.store.add_event("a", "", "")
            with directory_atomically(run.adapter("learned")) as folder:
                (folder / "part").mkdir()
                (folder / "part").chmod(0o700)  # where the umask is 0o777, only root could write into it
                (folder / "part" / "weights").write_bytes(b"x")
            write_atomically(run.path / "report.html", "page")
            found = {path: path.stat().st_mode & 0o777 for path in [run.path, *run.path.rglob("*")]}
        assert {0o600 if path.is_file() else 0o700 for path in found} == set(found.values())
        assert len(found) > 8
        os.umask(0o022)
        with directory_atomically(tmp_path / "elsewhere") as folder:
            (folder / "weights").write_bytes(b"x")
        (tmp_path / "lock").touch()  # some other program's, in a directory that all may read
        tmp_path.chmod(0o755)
        write_atomically(tmp_path / "page.html", "page")
        assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o755
        assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("elsewhere/weights", "page.html")} == {0o644}
    finally:
        os.umask(before)


def test_files_in_missing_directories_are_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its directory is not there"):
        write_atomically(tmp_path / "no" / "file", b"x")


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints" / "round-01"
    with pytest.raises(RuntimeError), directory_atomically(target) as folder:  # noqa: PT012
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    for content in ("old", "new"):
        with directory_atomically(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / content).write_text(content)
            assert not target.exists() or content == "new"
    assert [path.name for path in target.rglob("*")] == ["sub", "new"]
    assert [path.name for path in target.parent.iterdir()] == ["round-01"]


def test_what_a_crash_left_unfinished_is_swept_on_resume(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path, CONFIG).close()
    unfinished = tmp_path / "checkpoints" / f".round-01{TEMPORARY}"
    unfinished.mkdir(parents=True)
    (unfinished / "half").write_text("x")
    (tmp_path / f".summary.json{TEMPORARY}").write_text("{")
    RunDirectory.open(tmp_path, CONFIG).close()
    assert not unfinished.exists()
    assert not (tmp_path / f".summary.json{TEMPORARY}").exists()


@pytest.mark.parametrize("closed", ["run", "parent"])
def test_someone_elses_run_is_refused_in_one_line(tmp_path: Path, closed: str) -> None:
    run = tmp_path / "parent" / "run"
    RunDirectory.open(run, CONFIG).close()
    folder = run if closed == "run" else run.parent
    root = os.geteuid() == 0
    folder.chmod(0)
    try:
        if root:
            os.seteuid(65534)
        for read in (RunDirectory.read, partial(watch, console=Console(), every=1)):
            with pytest.raises(UserError, match=r"run: cannot be read \(Permission denied\)"):
                read(run)
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)
