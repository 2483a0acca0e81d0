"""Epochs of shards against the files in them and against webdataset's pipeline, and plain reads of both.

All three decode with the same view code in as many workers. Only the first two have each image exactly once
an epoch and go on from any batch.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_lightning.bench.files import write_pictures
from ssl_lightning.data.base import MAX_PIXELS
from ssl_lightning.data.folder import Folder
from ssl_lightning.data.io.augment import TrainView
from ssl_lightning.data.io.folders import as_tensor, decode, scan
from ssl_lightning.data.io.read_ahead import CHUNK
from ssl_lightning.data.io.shard_index import ShardIndex, read_index
from ssl_lightning.data.pack.__main__ import main as pack
from ssl_lightning.data.shards import Shards

SHARDS, WINDOW = 8, 4


@contextlib.contextmanager
def packed_pictures(images: int) -> Iterator[tuple[Path, Path]]:
    """Give a folder of JPEG files, and one of the same in SHARDS shards."""
    with tempfile.TemporaryDirectory() as scratch:
        pictures, shards = Path(scratch, "pictures"), Path(scratch, "shards")
        write_pictures(pictures, images)
        if pack([str(pictures), str(shards), "--samples-per-shard", str(-(-images // SHARDS))]):
            raise RuntimeError("the pictures could not be packed")
        yield pictures, shards


def shards_against_files(images: int, epochs: int) -> list[dict[str, Any]]:
    """Images a second of training batches with random crops, for views and workers; sources take turns."""
    rows = []
    with packed_pictures(images) as (pictures, shards):
        for image_size, workers in ((64, 0), (64, 2), (224, 0), (224, 2)):
            sources = {
                "jpeg": _batches(Folder, pictures, image_size, workers, verify=False),
                "shards": _batches(Shards, shards, image_size, workers, window=WINDOW),
            }
            with contextlib.suppress(ImportError):
                sources["webdataset"] = _webdataset(shards, image_size, workers)
            rates = _in_turns(sources, epochs)
            found = {f"{name}_images_per_s": rate for name, rate in rates.items()}
            times = {"shards_times_jpeg": rates["shards"] / rates["jpeg"]}
            rows.append({"view": image_size, "workers": workers} | found | times)
    return rows


def plain_reads(images: int, repeats: int) -> list[dict[str, Any]]:
    """Images a second that are read from the disk, not decoded; none is in the system's memory then."""
    with packed_pictures(images) as (pictures, shards):
        files, index = scan(pictures), read_index(shards)
        draw = np.random.default_rng(0)
        order = draw.permutation(len(files))
        place = draw.permutation(len(index.shards))[index.table["shard"]]
        window = order[np.argsort(place[order] // WINDOW, kind="stable")]
        ways: dict[str, Callable[[], object]] = {
            "files, one by one": lambda: [files[number].read_bytes() for number in order],
            "shards, one by one in a window": lambda: _read_places(index, window),
            "shards, front to back": lambda: _read_whole(index.shards),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, read in ways.items():
                for path in (*files, *index.shards):
                    _forget(path)
                began = time.perf_counter()
                read()
                times[way].append(time.perf_counter() - began)
    size = float(index.table["size"].sum())
    medians = {way: statistics.median(found) for way, found in times.items()}
    return [
        {"read": way, "images_per_s": images / seconds, "mb_per_s": size / seconds / 1e6}
        for way, seconds in medians.items()
    ]


def _batches(kind: type, folder: Path, image_size: int, workers: int, **options: Any) -> Iterable:
    data = kind(pretrain_dir=str(folder), image_size=image_size, num_workers=workers, **options)
    data.setup()
    return data.train_dataloader()


def _webdataset(folder: Path, image_size: int, workers: int) -> Iterable:
    """The pipeline of webdataset's documentation, with our view."""
    import webdataset as wds

    view = TrainView(image_size, (0.2, 1.0), True)

    def cut(content: bytes) -> torch.Tensor:
        picture = as_tensor(decode(io.BytesIO(content), 3, MAX_PIXELS))
        return view(picture, torch.Generator().manual_seed(int(torch.randint(2**62, ()))))

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    images = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(1000)
    batches = images.map_dict(jpg=cut).to_tuple("jpg", "__key__").batched(64, partial=False)
    return wds.WebLoader(batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


def _in_turns(sources: dict[str, Iterable], epochs: int) -> dict[str, float]:
    """Median images a second of each, after an epoch that is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(epochs + 1):
        for name, batches in sources.items():
            began = time.perf_counter()
            seen = sum(len(images) for images, _ in batches)
            rates[name].append(seen / (time.perf_counter() - began))
    return {name: statistics.median(found[1:]) for name, found in rates.items()}


def _read_places(index: ShardIndex, order: np.ndarray) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(shard, "rb")).fileno() for shard in index.shards]
        for row in index.table[order]:
            os.pread(files[row["shard"]], int(row["size"]), int(row["offset"]))


def _read_whole(paths: Iterable[Path]) -> None:
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(CHUNK):
                pass


def _forget(path: Path) -> None:
    """Have the system keep nothing of a file in memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
