"""Getting a data set into the cache: sources tried in order, verified, placed atomically.

A data set is one folder in the cache (`ssl_lightning.core.cache`), which is either whole or absent: a source
writes into a work folder of the same file system, and one rename makes the result visible.
"""

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

CONNECT_TIMEOUT_S = 15  # so that a machine without internet falls back quickly
TOOL_TIMEOUT_S = 1800
CHUNK = 1 << 20
TAR_BLOCK = 512  # bytes of the header that every member has, empty ones too


class DownloadError(RuntimeError):
    """Every source of a data set failed, or the cache cannot be written; nothing was left behind."""


class ChecksumError(RuntimeError):
    """Data differ from what their digest promises."""


@dataclass(frozen=True)
class Source:
    """One way to get a data set.

    Args:
        description: What is tried, for the progress line and the error.
        fetch: `fetch(out, scratch)` leaves the finished, verified files in `out`; `scratch` is for
            archives and is removed afterwards. It raises to say that this source does not work.
        size: Bytes to be transferred, roughly, for the progress bar.
    """

    description: str
    fetch: Callable[[Path, Path], None]
    size: int


def obtain(title: str, final: Path, sources: Sequence[Source], ready: Callable[[Path], bool]) -> Path:
    """Make sure that the folder `final` is there and whole, whatever else runs at the same time.

    Args:
        title: Name of the data set for people.
        final: Where its folder belongs; its parent is the cache.
        sources: Tried in this order until one works.
        ready: Says whether a folder holds everything; must be cheap, it runs at every start.

    Returns:
        `final`.

    Raises:
        DownloadError: If no source worked, naming each with its reason, or the cache is not writable.
    """
    if ready(final):  # no lock: a cache that is read-only, and filled, is good enough
        if any(_work_folders(final)):  # of a process that was killed between its last two lines
            with contextlib.suppress(OSError, Timeout), lock_of(final).acquire(timeout=0):
                _remove_leftovers(final)
        return final
    with locked(title, final):
        if not ready(final):  # another process may have filled it meanwhile
            _try_sources(title, final, sources, ready)
    return final


def lock_of(final: Path) -> FileLock:
    """Return the lock of what belongs at `final` in the cache, not taken yet."""
    return FileLock(final.parent / f".{final.name}.lock")


@contextlib.contextmanager
def locked(title: str, final: Path) -> Iterator[None]:
    """Hold the lock of what belongs at `final`; makes its folder, and tells people where it has to wait.

    Raises:
        DownloadError: If the cache is not writable.
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
            "set data.root or SSL_LIGHTNING_DATA to a folder that is writable"
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
                raise RuntimeError("it did not produce every file")
            _sync(out)
            if final.exists():  # incomplete, or `ready` had accepted it
                os.replace(final, work / "incomplete")
            os.replace(out, final)
            say(f"{title}: ready in {final} after {time.monotonic() - start:.0f} s")
            return
        except Exception as error:
            if is_full(error, work):
                raise DownloadError(
                    f"{title}: no space is left in the cache {final.parent}, where nothing of it stays; "
                    "make room, or set data.root or SSL_LIGHTNING_DATA to a folder on a larger disk"
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
    """Remove what killed processes left: whoever holds the lock owns it."""
    for leftover in _work_folders(final):
        shutil.rmtree(leftover, ignore_errors=True)


def fetch_url(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path` and check its MD5, which is what torchvision publishes.

    Raises:
        OSError: If the host cannot be reached within 15 s or stops sending for as long.
        ChecksumError: If the content differs; `path` is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    request = urllib.request.Request(url, headers={"User-Agent": "ssl-lightning"})
    with urllib.request.urlopen(request, timeout=CONNECT_TIMEOUT_S) as response, path.open("wb") as file:
        shutil.copyfileobj(response, file, CHUNK)
    check_file(path, md5, "md5")


def check_file(path: Path, expected: str, algorithm: str = "sha256") -> None:
    """Raise ChecksumError, and remove the file, if its hex digest is not `expected`."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, algorithm).hexdigest()
    if got != expected:
        path.unlink()
        raise ChecksumError(f"{algorithm} of {path.name} is {got}, expected {expected}")


def unpack(archive: Path, into: Path, max_bytes: int) -> None:
    """Unpack a tar archive that may be malicious: nothing of it lands outside, nor runs, nor fills the disk.

    Python's filter `data` refuses absolute names, `..`, links that lead out, devices and pipes. What a member
    says of its size is what is written of it, so that the sum bounds the whole, however it is compressed.

    Args:
        archive: The file, compressed or not.
        into: An empty folder.
        max_bytes: Of all members together.

    Raises:
        ValueError: The archive is broken, or a member is refused; names it. Something may lie in `into` then.
    """
    try:
        with tarfile.open(archive) as tar:
            _extract(tar, into, max_bytes)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{archive.name} is not unpacked: {error}") from error


def unpack_deb(archive: Path, into: Path, max_bytes: int) -> None:
    """Unpack a package of Debian in the same way: `dpkg-deb` only turns it into a tar archive, as it is read.

    Raises:
        ValueError: As `unpack` does.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                _extract(tar, into, max_bytes)
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise ValueError(f"{archive.name} is not unpacked: {error}") from error
        finally:
            process.kill()  # of what is too large the rest is not wanted


def _extract(tar: tarfile.TarFile, into: Path, max_bytes: int) -> None:
    left, names = max_bytes, set()
    for member in tar:  # as they come: a list of all would read the whole archive first
        name = os.path.normpath(member.name).casefold()
        left -= member.size + TAR_BLOCK
        if left < 0:
            raise ValueError(f"{member.name!r} makes it more than the {max_bytes:,} bytes expected")
        if name in names and not member.isdir():
            raise ValueError(f"{member.name!r} is in it twice")
        names.add(name)
        tar.extract(member, into, filter="data")


def run_tool(command: Sequence[str], cwd: Path) -> str:
    """Run an outside program in `cwd` and return what it printed on standard output.

    Raises:
        RuntimeError: If it is not installed, fails (with its last lines), or takes half an hour.
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
        said = " / ".join(line.strip() for line in lines[-3:])
        raise RuntimeError(f"`{' '.join(command[:3])}` ended with status {done.returncode}: {said}")
    return done.stdout


def say(line: str) -> None:
    """Print a line for people on standard error."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)


@contextlib.contextmanager
def _progress(text: str, folder: Path, size: int) -> Iterator[None]:
    """Show how many bytes have arrived in `folder`; on a terminal as a bar, else as one line.

    Watching the folder works for every source alike, outside programs included.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True, soft_wrap=True)
    if not console.is_terminal:
        say(f"{text} ({size / 1e6:.0f} MB)")
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    done = threading.Event()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text, total=size)

        def watch() -> None:
            while not done.wait(0.2):
                progress.update(task, completed=min(_bytes_in(folder), size))

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
    """Flush the files to disk before the rename makes them visible, so a power cut leaves no husk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
