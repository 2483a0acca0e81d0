"""A folder of images into a pack, as the package does it: `pack.py <images> <cache>`."""

import sys
from pathlib import Path

from ssl_lightning.data.io.folders import scan
from ssl_lightning.data.io.packed import CacheSpaceError, make_pack


def main(images: str, cache: str) -> int:
    try:
        make_pack(scan(images), Path(cache), channels=3, side=512, max_pixels=10**6)
    except CacheSpaceError as error:
        print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
