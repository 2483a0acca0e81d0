"""A data set into the cache, as the package does it: `fetch.py <url> <md5> <cache> <digest of the array>`."""

import sys
import tarfile
from pathlib import Path

import numpy as np

from ssl_lightning.data.io.arrays import has_parts, save_verified
from ssl_lightning.data.io.download import DownloadError, Source, fetch_url, obtain

PARTS = ("first", "second")


def main(url: str, md5: str, cache: str, sha256: str) -> int:
    def fetch(out: Path, scratch: Path) -> None:
        fetch_url(url, scratch / "archive.tar.gz", md5)
        with tarfile.open(scratch / "archive.tar.gz") as archive:
            archive.extractall(scratch / "unpacked", filter="data")
        arrays = {part: np.load(scratch / "unpacked" / f"{part}.npy") for part in PARTS}
        save_verified(out, arrays, dict.fromkeys(PARTS, sha256))

    try:
        obtain("Synthetic", Path(cache) / "set", [Source("local server", fetch, 1 << 20)], has_parts(PARTS))
    except DownloadError as error:
        print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
