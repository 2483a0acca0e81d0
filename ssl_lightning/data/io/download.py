"""Download data sets into the cache: try sources in order, verify, place atomically."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ssl_lightning.core.atomic_files import is_full
from ssl_lightning.core.progress import watched

CONNECT_TIMEOUT_S = 15  # so that a machine without internet falls back quickly
TOOL_TIMEOUT_S = 1800
CHUNK = 1 << 20
MB = 1_000_000
TAR_BLOCK = 512  # bytes of the header of every member, also of an empty one


class DownloadError(RuntimeError):
    """Every source of a data set failed, or the cache is not writable; no files are left behind."""


class ChecksumError(RuntimeError):
    """Data do not match their digest."""


@dataclass(frozen=True)
class Source:
    """One way to get a data set.

    Args:
        description: Name for the progress line and the error.
        fetch: `fetch(out, scratch)` writes verified files to `out`. `scratch` is for archives and is
            removed afterwards. It raises if this source does not work.
        size: Approximate bytes to transfer, for the progress bar.
    """

    description: str
    fetch: Callable[[Path, Path], None]
    size: int


def obtain(title: str, final: Path, sources: Sequence[Source], ready: Callable[[Path], bool]) -> Path:
    """Ensure that the folder `final` exists and is complete; safe with concurrent processes.

    A data set is one folder in the cache (`ssl_lightning.core.cache`), either complete or absent. A source
    writes into a work folder of the same file system, and one rename makes the result visible.

    Args:
        title: Name of the data set, for messages.
        final: Folder of the data set; its parent is the cache.
        sources: Sources, tried in order until one works.
        ready: Check that a folder is complete; must be cheap, as it runs at every start.

    Returns:
        `final`.

    Raises:
        DownloadError: No source worked (names each with its reason), or the cache is not writable.
    """
    if ready(final):  # without a lock, so that a filled read-only cache works
        if any(_work_folders(final)):  # of a process killed between its last two lines
            with contextlib.suppress(OSError, Timeout), lock_of(final).acquire(timeout=0):
                _remove_leftovers(final)
        return final
    with locked(title, final):
        if not ready(final):  # another process may have filled it in the meantime
            _try_sources(title, final, sources, ready)
    return final


def lock_of(final: Path) -> FileLock:
    """Return the lock of the cache entry `final`, not acquired yet."""
    return FileLock(final.parent / f".{final.name}.lock")


@contextlib.contextmanager
def locked(title: str, final: Path) -> Iterator[None]:
    """Hold the lock of the cache entry `final`; create the cache, and print a line while waiting.

    Raises:
        DownloadError: The cache is not writable.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_of(final)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            say(f"{title}: waiting for another process to finish it")
            lock.acquire()
    except OSError as error:
        raise DownloadError(
            f"{title}: cannot write to the cache {final.parent} ({error}); "
            "set data.root or SSL_LIGHTNING_DATA to a writable folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _try_sources(title: str, final: Path, sources: Sequence[Source], ready: Callable[[Path], bool]) -> None:
    """Fill `final` from the first source that works; the caller holds the lock."""
    _remove_leftovers(final)
    failures = []
    for source in sources:
        work = Path(tempfile.mkdtemp(prefix=f".{final.name}.tmp-", dir=final.parent))
        out, scratch = work / "out", work / "scratch"
        start = time.monotonic()
        try:
            out.mkdir()
            scratch.mkdir()
            with _progress(f"{title}: {source.description}", scratch, source.size):
                source.fetch(out, scratch)
            if not ready(out):
                raise RuntimeError("the source did not produce every file")
            _sync(out)
            if final.exists():  # incomplete, else `ready` would have accepted it
                os.replace(final, work / "incomplete")
            os.replace(out, final)
            say(f"{title}: ready in {final} after {time.monotonic() - start:.0f} s")
            return
        except Exception as error:
            if is_full(error, work):
                raise DownloadError(
                    f"{title}: no space is left in the cache {final.parent}; the partial files are removed. "
                    "Make room, or set data.root or SSL_LIGHTNING_DATA to a folder on a larger disk"
                ) from error
            failures.append(f"{source.description}: {error or type(error).__name__}")
            say(f"{title}: {failures[-1]}")
        finally:
            shutil.rmtree(work, ignore_errors=True)
    tried = "".join(f"\n  {number}. {failure}" for number, failure in enumerate(failures, 1))
    raise DownloadError(f"{title}: no source worked, and nothing was written to {final}. Tried:{tried}")


def _work_folders(final: Path) -> Iterator[Path]:
    return final.parent.glob(f".{final.name}.tmp-*")


def _remove_leftovers(final: Path) -> None:
    """Remove work folders of killed processes; the caller holds the lock and so owns them."""
    for leftover in _work_folders(final):
        shutil.rmtree(leftover, ignore_errors=True)


def fetch_url(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path` and check its MD5, the digest that torchvision publishes.

    Raises:
        OSError: The host does not answer, or sends nothing, for 15 s.
        ChecksumError: The content differs; `path` is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    request = urllib.request.Request(url, headers={"User-Agent": "ssl-lightning"})
    with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S) as response, path.open("wb") as file:
        shutil.copyfileobj(response, file, CHUNK)
    check_file(path, md5, "md5")


def check_file(path: Path, expected: str, algorithm: str = "sha256") -> None:
    """Raise ChecksumError and remove the file if its hex digest is not `expected`."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, algorithm).hexdigest()
    if got != expected:
        path.unlink()
        raise ChecksumError(f"{algorithm} of {path.name} is {got}, expected {expected}")


def unpack(archive: Path, into: Path, max_bytes: int) -> None:
    """Unpack a tar archive that may be malicious: it cannot write outside, run code, or fill the disk.

    Python's filter `data` refuses absolute names, `..`, links that lead outside, devices and pipes. A member
    cannot write more than its declared size, so the sum of sizes bounds the total even if compressed.

    Args:
        archive: The file, compressed or not.
        into: An empty folder.
        max_bytes: Limit for all members together.

    Raises:
        ValueError: The archive is broken, or a member is refused (names it). `into` may then hold files.
    """
    try:
        with tarfile.open(archive) as tar:
            _extract(tar, into, max_bytes)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{archive.name} cannot be unpacked: {error}") from error


def unpack_deb(archive: Path, into: Path, max_bytes: int) -> None:
    """Unpack a Debian package as `unpack` does; `dpkg-deb` only streams it as a tar archive.

    Raises:
        ValueError: See `unpack`.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                _extract(tar, into, max_bytes)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise ValueError(f"{archive.name} cannot be unpacked: {error}") from error
        finally:
            process.kill()  # the rest of an archive that is refused is not needed


def _extract(tar: tarfile.TarFile, into: Path, max_bytes: int) -> None:
    left, names = max_bytes, set()
    for member in tar:  # streamed: a list of all members would read the full archive first
        name = os.path.normpath(member.name).casefold()
        left -= member.size + TAR_BLOCK
        if left < 0:
            raise ValueError(f"{member.name!r} exceeds the limit of {max_bytes:,} bytes for all members")
        if name in names and not member.isdir():
            raise ValueError(f"the archive holds {member.name!r} twice")
        names.add(name)
        tar.extract(member, into, filter="data")


def run_tool(command: Sequence[str], cwd: Path) -> str:
    """Run an external program in `cwd` and return its standard output.

    Raises:
        RuntimeError: It is not installed, fails (gives its last lines), or takes more than half an hour.
    """
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, errors="replace", timeout=TOOL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"`{' '.join(command[:3])}` took more than {TOOL_TIMEOUT_S} s") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        tail = " / ".join(line.strip() for line in lines[-3:])
        raise RuntimeError(f"`{' '.join(command[:3])}` failed with status {done.returncode}: {tail}")
    return done.stdout


def say(line: str) -> None:
    """Print a line on standard error."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)


@contextlib.contextmanager
def _progress(text: str, folder: Path, size: int) -> Iterator[None]:
    """Show a progress bar of the bytes in `folder`; without a terminal, print and log lines.

    Watching the folder works for every source, also for external programs.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True, soft_wrap=True)
    if not console.is_terminal:
        say(f"{text} ({size / 1e6:.0f} MB)")
        with watched(text, size // MB, "MB", alone=True) as work:

            def count(loaded: int) -> None:
                work.done = loaded // MB

            with _polled(folder, size, count):
                yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=size)
        with _polled(folder, size, lambda loaded: progress.update(task, completed=loaded)):
            yield


@contextlib.contextmanager
def _polled(folder: Path, size: int, show: Callable[[int], None]) -> Iterator[None]:
    """Show the bytes in `folder`, at most `size`, again and again from a thread."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            show(min(_bytes_in(folder), size))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # files come and go while the source works
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _sync(folder: Path) -> None:
    """Flush the files to disk before the rename, so that a power cut leaves no truncated file."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
