"""Write the shards of a plan, and resume after an interruption."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ssl_lightning.core.atomic_files import DiskFullError, atomic_file, remove_leftovers, write_file
from ssl_lightning.core.progress import Work, watched
from ssl_lightning.core.untrusted import check_plain, printable
from ssl_lightning.data.io.download import say
from ssl_lightning.data.io.folders import BadImagesError, describe_bad, open_image
from ssl_lightning.data.io.packed import map_in_order
from ssl_lightning.data.io.shard_index import (
    FORMAT,
    INDEX_NAME,
    MAX_IMAGE_BYTES,
    NAMES_NAME,
    ROW,
    SHARD_NAME,
    TABLE_NAME,
    TAR_BLOCK,
    entry,
    read_index,
)
from ssl_lightning.data.io.sources import default_workers
from ssl_lightning.data.pack.plan import PackPlan

PLAN_NAME, LOCK_NAME = ".plan", ".lock"


def write_shards(plan: PackPlan, out: Path) -> dict[str, Any]:
    """Write the missing shards of a pack; the caller holds its lock.

    During packing the folder holds `.plan`, the digest of the plan, and a hidden record for each finished
    shard. An interrupted pack resumes after the last record. The index is written last; then the plan and the
    records are removed.

    Returns:
        The index.

    Raises:
        BadImagesError: More than `max_bad` of the images cannot be decoded, or no image of a class can.
        FileExistsError: The folder holds other files or another pack.
        DiskFullError: The disk has no room for the shards.
    """
    if (out / INDEX_NAME).exists():
        index = json.loads((out / INDEX_NAME).read_bytes())
        if index.get("plan") != plan.digest:
            raise FileExistsError(
                f"{out} holds shards of other images or settings; name another folder, or remove this one"
            )
        read_index(out)
        _tidy(out)
        say(f"{out} already holds these images")
        return index
    done = _records(plan, out)
    needed = int(plan.bytes.sum()) + 4 * TAR_BLOCK * len(plan.paths)
    left = needed - sum(each["bytes"] for each in done.values())
    if shutil.disk_usage(out).free < left:
        raise DiskFullError(
            f"the shards need about {left / 1e9:.1f} GB more in {out}, and the disk has "
            f"{shutil.disk_usage(out).free / 1e9:.1f} GB free; name a folder on a larger disk"
        )
    records: list[dict[str, Any]] = []
    bad: dict[str, str] = {}
    missing = sum(len(_places(plan, number)) for number in range(len(plan.ends)) if number not in done)
    with watched(f"pack into {out}", missing, "images") as progress:
        for number, end in enumerate(plan.ends):
            record = done.get(number) or _write_shard(plan, out, number, progress)
            records.append(record)
            bad |= {plan.paths[int(place)]: why for place, why in record["bad"].items()}
            if len(bad) > plan.max_bad * len(plan.paths):
                raise BadImagesError(
                    f"{len(bad)} of the first {end:,} images of {plan.folder} cannot be decoded; allowed is "
                    f"a fraction max-bad {plan.max_bad:g} of {len(plan.paths):,}:\n{describe_bad(bad)}"
                )
    if bad:
        say(
            f"{len(bad)} of {len(plan.paths):,} images cannot be decoded and are left out:\n"
            + describe_bad(bad)
        )
    return _write_index(plan, out, records, len(bad))


def _places(plan: PackPlan, number: int) -> range:
    """Return the places in the plan of the images of one shard."""
    return range(plan.ends[number - 1] if number else 0, plan.ends[number])


def _shard_path(out: Path, number: int) -> Path:
    return out / f"shard-{number:06}.tar"


def _record_path(out: Path, number: int) -> Path:
    return out / f".shard-{number:06}.json"


def _records(plan: PackPlan, out: Path) -> dict[int, dict[str, Any]]:
    """Return the records of finished shards; start an empty folder, and clear one of another plan."""
    held = [path for path in out.iterdir() if path.name != LOCK_NAME]
    plan_path = out / PLAN_NAME
    if not plan_path.exists():
        others = [path.name for path in held if not path.name.endswith(".tmp")]
        if others:
            first = printable(min(others), lines=False)
            raise FileExistsError(f"{out} holds other files, such as {first}; name a new or empty folder")
        write_file(plan_path, plan.digest)
        return {}
    remove_leftovers(out)
    if plan_path.read_bytes() != plan.digest.encode():
        say(f"{out}: images or settings changed since the interrupted pack; packing starts over")
        for path in held:
            if SHARD_NAME.fullmatch(path.name) or path.name.startswith(".shard-"):
                path.unlink(missing_ok=True)
        write_file(plan_path, plan.digest)
        return {}
    found = {}
    for number in range(len(plan.ends)):
        record, shard = _record_path(out, number), _shard_path(out, number)
        if record.exists():
            stored = json.loads(record.read_bytes())
            if not stored["rows"] or (shard.is_file() and shard.stat().st_size == stored["bytes"]):
                found[number] = stored
    if found:
        say(f"{out}: packing resumes, {len(found)} of {len(plan.ends)} shards are done")
    return found


def _write_shard(plan: PackPlan, out: Path, number: int, progress: Work) -> dict[str, Any]:
    """Write one shard, then its record; a shard without a record is overwritten."""

    def read(place: int) -> tuple[int, bytes, int] | tuple[int, str, int]:
        try:
            return place, *_read_good(Path(plan.paths[place]), plan.max_pixels)
        except Exception as error:  # decoders raise nearly everything on broken files
            return place, str(error) or type(error).__name__, 0

    rows, bad, largest = [], {}, 0
    shard = _shard_path(out, number)
    with atomic_file(shard) as work:
        with tarfile.open(work, "w", format=tarfile.USTAR_FORMAT) as tar:
            for place, content, pixels in map_in_order(read, _places(plan, number), default_workers()):
                progress.advance()
                if isinstance(content, str):
                    bad[str(place)] = content
                    continue
                key, suffix = f"{place:09}", Path(plan.paths[place]).suffix.lower()
                offset = _add(tar, key + suffix, content)
                if plan.class_names is not None:
                    _add(tar, f"{key}.cls", str(plan.labels[place]).encode())
                digest = int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
                rows.append([place, offset, len(content), zlib.crc32(content), digest])
                largest = max(largest, pixels)
        stored = entry(work) | {"name": shard.name}
    if not rows:
        shard.unlink()
    record = stored | {"rows": rows, "bad": bad, "largest": largest}
    write_file(_record_path(out, number), json.dumps(record))
    return record


def _read_good(path: Path, max_pixels: int) -> tuple[bytes, int]:
    """Read and decode an image file of any pixels; return its bytes and its number of pixels."""
    check_plain(path, MAX_IMAGE_BYTES)
    content = path.read_bytes()
    with open_image(BytesIO(content), max_pixels) as image:
        image.load()
        return content, image.width * image.height


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Add a member; return the offset of its content."""
    member = tarfile.TarInfo(name)  # without owner and time: the same images give the same shards
    member.size = len(content)
    tar.addfile(member, BytesIO(content))
    return tar.offset - -(-len(content) // TAR_BLOCK) * TAR_BLOCK


def _write_index(
    plan: PackPlan, out: Path, records: Sequence[dict[str, Any]], skipped: int
) -> dict[str, Any]:
    records = [record for record in records if record["rows"]]
    counts = [len(record["rows"]) for record in records]
    places = [row[0] for record in records for row in record["rows"]]
    names = [printable(name, lines=False) for name in plan.paths.take(np.array(places, np.int64)).names()]
    lines = [name.encode() + b"\n" for name in names]
    columns = np.array([row[1:] for record in records for row in record["rows"]], np.uint64)
    table = np.zeros(len(places), ROW)
    for column, name in enumerate(("offset", "size", "crc", "digest")):
        table[name] = columns[:, column]
    table["shard"] = np.repeat(np.arange(len(records)), counts)
    table["label"] = plan.labels[places]
    table["name"] = [0, *accumulate(map(len, lines[:-1]))]
    missing = set(range(len(plan.class_names or ()))) - set(table["label"].tolist())
    if missing and plan.class_names is not None:
        raise BadImagesError(f"no image of class {plan.class_names[missing.pop()]} can be decoded")
    write_file(out / NAMES_NAME, b"".join(lines))
    with atomic_file(out / TABLE_NAME) as work, work.open("wb") as file:
        np.save(file, table)
    index = {
        "format": FORMAT,
        "images": len(places),
        "skipped": skipped,
        "largest": max(record["largest"] for record in records),
        "class_names": plan.class_names,
        "table": entry(out / TABLE_NAME),
        "names": entry(out / NAMES_NAME),
        "shards": [
            {"images": len(record["rows"])} | {key: record[key] for key in ("name", "bytes", "sha256")}
            for record in records
        ],
        "plan": plan.digest,
    }
    write_file(out / INDEX_NAME, json.dumps(index, indent=1))
    _tidy(out)
    return index


def _tidy(out: Path) -> None:
    """Remove the plan and the records, which only an unfinished pack needs."""
    for path in [*out.glob(".shard-*.json"), out / PLAN_NAME]:
        path.unlink(missing_ok=True)
