"""Pack image files into shards for `data=shards`: `python -m ssl_lightning.data.pack <images> <shards>`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from ssl_lightning.core.atomic_files import naming_full_disk
from ssl_lightning.core.entry import ENTRY
from ssl_lightning.core.messages import shorten_warnings, showing_messages
from ssl_lightning.data.io.folders import BadImagesError
from ssl_lightning.data.io.shard_index import ShardError, check_shards
from ssl_lightning.data.pack.plan import make_plan
from ssl_lightning.data.pack.writer import LOCK_NAME, write_shards

MODULE = "python -m ssl_lightning.data.pack"
RESUME = "Run the same command again to resume"


def main(arguments: Sequence[str]) -> int:
    """Pack or check shards; return the exit status."""
    options = _parser().parse_args(arguments)
    shorten_warnings()
    try:
        with showing_messages(sys.stderr):
            if options.check:
                read = check_shards(options.images)
                print(f"{options.images} is complete: {read / 1e6:,.1f} MB of shards match their digests")
            elif options.shards is None:
                raise ValueError("name the folder of the images and the folder of the shards")
            else:
                _pack(options)
    except KeyboardInterrupt:
        print(f"\nstopped. {RESUME}", file=sys.stderr)
        return 130
    except (OSError, ValueError, BadImagesError, ShardError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _pack(options: argparse.Namespace) -> None:
    plan = make_plan(
        options.images,
        labels=options.labels,
        shard_bytes=round(options.megabytes * 1e6),
        shard_images=options.samples_per_shard,
        seed=None if options.keep_order else options.seed,
        max_pixels=options.max_pixels,
        max_bad=options.max_bad,
    )
    out = options.shards.expanduser()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / LOCK_NAME, timeout=0), naming_full_disk(out, f"{RESUME} once there is room."):
            index = write_shards(plan, out)
    except Timeout:
        raise ValueError(f"another process is packing into {out}") from None
    size, count = sum(shard["bytes"] for shard in index["shards"]), len(index["shards"])
    classes = "" if index["class_names"] is None else f" of {len(index['class_names'])} classes"
    print(
        f"{index['images']:,} images{classes} in {count} shard{'s'[: count != 1]}, {size / 1e6:,.1f} MB, "
        f"in {out}; {index['skipped']} left out"
    )


def _parser() -> argparse.ArgumentParser:
    about = "Shards are tar files in webdataset's format, with the unchanged bytes of the image files."
    parser = argparse.ArgumentParser(
        prog=os.environ.get(ENTRY, MODULE).replace("{}", "pack"),
        description="Pack image files into shards, a few large files to train on.",
        epilog=about,
    )
    parser.add_argument("images", type=Path, help="tree of images; with --check, a folder of shards")
    parser.add_argument("shards", type=Path, nargs="?", help="folder for the shards, new or empty")
    parser.add_argument("--labels", action="store_true", help="the first folder below <images> is the class")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--megabytes", type=float, default=128.0, help="size of a shard (%(default)s)")
    size.add_argument("--samples-per-shard", type=int, help="images of a shard, regardless of their size")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--seed", type=int, default=0, help="seed of the order in which images are stored (0)")
    order.add_argument("--keep-order", action="store_true", help="store them in the order of their paths")
    parser.add_argument("--max-pixels", type=int, default=50_000_000, help="larger pictures are bad")
    parser.add_argument(
        "--max-bad", type=float, default=0.01, help="largest fraction of bad files that is skipped (0.01)"
    )
    parser.add_argument("--check", action="store_true", help="compare shards with their digests")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
