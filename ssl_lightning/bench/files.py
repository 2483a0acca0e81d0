"""Benchmark of image files against the packed cache and shards of the same pictures."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssl_lightning.bench.build import ratio
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.data.cifar10 import CIFAR10
from ssl_lightning.data.folder import Folder
from ssl_lightning.data.io.arrays import load
from ssl_lightning.data.pack.__main__ import main as pack
from ssl_lightning.data.shards import Shards

WIDTH, HEIGHT, QUALITY = 500, 375, 90
NOISE = 6.0  # standard deviation, in 0..255
SHARDS, WINDOW = 8, 4
VIEWS = ((64, 0), (64, 2), (224, 0), (224, 2))  # image size in pixels, decoding processes


def files_against_pack(images: int, epochs: int) -> list[dict[str, Any]]:
    """Measure images/s of training batches with random crops, by view and workers; sources take turns."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        pictures, shards, root = (Path(scratch, name) for name in ("pictures", "shards", "cache"))
        write_pictures(pictures, images)
        if pack([str(pictures), str(shards), "--samples-per-shard", str(-(-images // SHARDS))]):
            raise RuntimeError("the pictures could not be packed")
        for image_size, workers in VIEWS:
            files: dict[str, Any] = {"pretrain_dir": str(pictures), "root": str(root), "verify": False}
            view: dict[str, Any] = {"image_size": image_size, "num_workers": workers}
            packed = Folder(**files, **view, cache=True)
            sources = {
                "jpeg": Folder(**files, **view),
                "packed": packed,
                "shards": Shards(pretrain_dir=str(shards), window=WINDOW, **view),
            }
            rates = in_turns(sources, epochs)
            found: dict[str, Any] = {
                "view": f"{image_size} px, {workers} workers",
                "cached_side": min(packed.cache_side, HEIGHT),
            }
            found |= {f"{name}_images_per_s": statistics.median(each) for name, each in rates.items()}
            for name in ("packed", "shards"):
                times = [rate / jpeg for rate, jpeg in zip(rates[name], rates["jpeg"], strict=True)]
                found |= ratio(f"{name}_times", times)
            rows.append(found)
    return rows


def write_pictures(folder: Path, count: int) -> None:
    """Write CIFAR-10 photographs as JPEG files of quality 90 (about 60 kB).

    They are enlarged (bicubic) to 500 x 375 px, with added sensor noise. Without noise they have no fine
    detail and decode too fast.
    """
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, image in enumerate(load(CIFAR10().obtain(), "train_images")[:count].numpy()):
        large = Image.fromarray(image).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        noisy = np.asarray(large) + random.normal(0, NOISE, (HEIGHT, WIDTH, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:05}.jpg", quality=QUALITY
        )


def in_turns(sources: Mapping[str, PairedDataModule], epochs: int) -> dict[str, list[float]]:
    """Return images/s of each source in each epoch, after one warm-up epoch."""
    loaders: dict[str, Iterable[Any]] = {}
    for name, data in sources.items():
        data.setup()
        loaders[name] = data.train_dataloader()
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(epochs + 1):
        for name, batches in loaders.items():
            began = time.perf_counter()
            seen = sum(len(images) for images, _ in batches)
            rates[name].append(seen / (time.perf_counter() - began))
    return {name: found[1:] for name, found in rates.items()}
