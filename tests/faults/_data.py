"""Data for the tests of the cache: an archive on a slow server, and a folder of images."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_lightning.data.io.arrays import digest

CACHE = [str(Path(__file__).parent / "cache.py")]
CHUNKS, PAUSE_S = 16, 0.03  # speed of the server


@dataclass
class Archive:
    """Archive on a server."""

    content: bytes
    sha256: str  # of each of its two equal arrays
    url: str = ""
    sent: list[str] = field(default_factory=list)  # the path of each requested transfer

    def fetch(self, cache: Path) -> list[str]:
        """Return the command that downloads the archive into a cache."""
        md5 = hashlib.md5(self.content).hexdigest()
        return [*CACHE, "fetch", self.url, md5, str(cache), self.sha256]


@contextmanager
def served() -> Iterator[Archive]:
    """Serve a synthetic archive slowly on this machine."""
    array = np.random.default_rng(0).integers(0, 256, (700, 32, 32, 3), np.uint8)
    packed, plain = io.BytesIO(), io.BytesIO()
    np.save(plain, array)
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("first.npy", "second.npy"):
            member = tarfile.TarInfo(name)
            member.size = len(plain.getvalue())
            tar.addfile(member, io.BytesIO(plain.getvalue()))
    archive = Archive(packed.getvalue(), digest(array))

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            archive.sent.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive.content)))
            self.end_headers()
            step = -(-len(archive.content) // CHUNKS)
            for begin in range(0, len(archive.content), step):
                try:
                    self.wfile.write(archive.content[begin : begin + step])
                except OSError:  # the client was killed
                    return
                time.sleep(PAUSE_S)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    archive.url = f"http://127.0.0.1:{server.server_port}/archive.tar.gz"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()


def paint(folder: Path, count: int = 40, size: int = 400) -> Path:
    """Write a folder of JPEGs of two classes."""
    for number in range(count):
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(noise).save(place / f"{number:03}.jpg")
    return folder


def pack(images: Path, cache: Path) -> list[str]:
    """Return the command that writes a pack."""
    return [*CACHE, "pack", str(images), str(cache)]
