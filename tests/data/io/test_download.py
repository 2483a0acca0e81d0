"""Downloads: sources in order, atomic folders, one process at a time."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from pathlib import Path

import pytest

from ssl_lightning.core.cache import cache_root
from ssl_lightning.data.io.download import (
    ChecksumError,
    DownloadError,
    Source,
    check_file,
    lock_of,
    obtain,
    run_tool,
)


def ready(folder: Path) -> bool:
    return (folder / "data").is_file()


def works(out: Path, scratch: Path) -> None:
    (scratch / "archive").write_text("large")
    (out / "data").write_text("good")


def refused(out: Path, scratch: Path) -> None:
    (out / "data").write_text("half")
    raise OSError("no route to host")


def corrupt(out: Path, scratch: Path) -> None:
    (scratch / "archive").write_text("changed")
    check_file(scratch / "archive", "0" * 64)
    works(out, scratch)


def forgetful(out: Path, scratch: Path) -> None:
    pass


def test_later_source_is_used_when_the_first_fails(tmp_path):
    final = obtain("X", tmp_path / "x", [Source("a", refused, 1), Source("b", works, 1)], ready)
    assert (final / "data").read_text() == "good"
    assert [path.name for path in final.iterdir()] == ["data"]  # without the archive


def test_all_failing_is_one_error_that_lists_the_sources_and_leaves_nothing(tmp_path):
    sources = [
        Source("site A", refused, 1),
        Source("package B", corrupt, 1),
        Source("mirror C", forgetful, 1),
    ]
    with pytest.raises(DownloadError) as caught:
        obtain("X", tmp_path / "x", sources, ready)
    message = str(caught.value)
    assert "site A: no route to host" in message
    assert "package B: sha256 of archive is" in message
    assert "expected " + "0" * 64 in message
    assert "mirror C: the source did not produce every file" in message
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]


def test_leftovers_of_a_killed_run_and_an_incomplete_folder_are_replaced(tmp_path):
    (tmp_path / ".x.tmp-abc" / "out").mkdir(parents=True)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "other").write_text("incomplete")
    obtain("X", tmp_path / "x", [Source("a", works, 1)], ready)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.lock", "x"]
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["data"]


def test_what_is_ready_is_not_fetched_again(tmp_path):
    obtain("X", tmp_path / "x", [Source("a", works, 1)], ready)
    leftover = tmp_path / ".x.tmp-abc"  # of a process killed after it placed the folder
    leftover.mkdir()
    with lock_of(tmp_path / "x"):  # another process may work there
        obtain("X", tmp_path / "x", [Source("a", refused, 1)], ready)
    assert leftover.exists()
    obtain("X", tmp_path / "x", [Source("a", refused, 1)], ready)
    assert (tmp_path / "x" / "data").read_text() == "good"
    assert not leftover.exists()


def slow(out: Path, scratch: Path) -> None:
    with (out.parents[1] / "count").open("a") as file:
        file.write("1")
    time.sleep(1.5)  # longer than the other process takes to reach the lock
    works(out, scratch)


def start_together(cache: Path, barrier) -> None:
    barrier.wait()
    obtain("X", cache / "x", [Source("a", slow, 1)], ready)


def test_two_processes_do_the_work_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=start_together, args=(tmp_path, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "count").read_text() == "1"


def test_unwritable_cache_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="SSL_LIGHTNING_DATA"):
        obtain("X", tmp_path / "file" / "x", [Source("a", works, 1)], ready)


def test_check_file_keeps_the_good_and_removes_the_bad(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    check_file(path, hashlib.sha256(b"abc").hexdigest())
    assert path.exists()
    with pytest.raises(ChecksumError, match="md5 of file is 900150983cd24fb0d6963f7d28e17f72"):
        check_file(path, "f" * 32, "md5")
    assert not path.exists()


def test_run_tool_says_what_went_wrong(tmp_path):
    assert run_tool(["sh", "-c", "pwd"], tmp_path).strip() == str(tmp_path)
    with pytest.raises(RuntimeError, match="status 3: two / three"):
        run_tool(["sh", "-c", "printf 'two\nthree\n' >&2; exit 3"], tmp_path)
    with pytest.raises(RuntimeError, match="no-such-tool is not installed"):
        run_tool(["no-such-tool"], tmp_path)


def test_cache_root_follows_argument_then_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_LIGHTNING_DATA", str(tmp_path / "env"))
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    assert cache_root() == tmp_path / "env"
    monkeypatch.delenv("SSL_LIGHTNING_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root(None) == tmp_path / "xdg" / "ssl_lightning"
