"""Fill the cache like the package does, in a process that may be struck.

`cache.py fetch <url> <md5> <cache> <digest of the arrays>`, `cache.py pack <images> <cache>`.
"""

import sys
from pathlib import Path

import numpy as np

from ssl_lightning.data.io.arrays import has_parts, save_verified
from ssl_lightning.data.io.download import DownloadError, Source, fetch_url, obtain, unpack
from ssl_lightning.data.io.packed import CacheSpaceError, make_pack
from ssl_lightning.data.io.scan import scan

PARTS = ("first", "second")


def fetch(url: str, md5: str, cache: str, sha256: str) -> None:
    def arrays(out: Path, scratch: Path) -> None:
        fetch_url(url, scratch / "archive.tar.gz", md5)
        unpack(scratch / "archive.tar.gz", scratch / "unpacked", 10**8)
        found = {part: np.load(scratch / "unpacked" / f"{part}.npy") for part in PARTS}
        save_verified(out, found, dict.fromkeys(PARTS, sha256))

    obtain("Synthetic", Path(cache) / "set", [Source("local server", arrays, 1 << 20)], has_parts(PARTS))


def pack(images: str, cache: str) -> None:
    make_pack(scan(images), Path(cache), channels=3, side=512, max_pixels=10**6)


if __name__ == "__main__":
    try:
        {"fetch": fetch, "pack": pack}[sys.argv[1]](*sys.argv[2:])
    except (CacheSpaceError, DownloadError) as error:
        sys.exit(f"error: {error}")
