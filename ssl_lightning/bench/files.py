"""Epochs of image files: decoded again in each epoch, against cut from the packed cache.

The pictures are CIFAR-10's photographs, enlarged (bicubic) to 500 x 375 px, with noise as of a sensor (the
enlarged ones have no fine detail, and would be decoded too fast), saved as JPEG of quality 90: about 60 kB.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssl_lightning.data.cifar10 import CIFAR10
from ssl_lightning.data.folder import Folder
from ssl_lightning.data.io.arrays import load

WIDTH, HEIGHT, QUALITY = 500, 375, 90
NOISE = 6.0  # standard deviation, of 255


def write_pictures(folder: Path, count: int) -> None:
    """Write JPEGs."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, image in enumerate(load(CIFAR10().obtain(), "train_images")[:count].numpy()):
        large = Image.fromarray(image).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        noisy = np.asarray(large) + random.normal(0, NOISE, (HEIGHT, WIDTH, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:05}.jpg", quality=QUALITY
        )


def images_a_second(data: Folder, epochs: int) -> float:
    """Median over epochs of training batches, after one that is not counted."""
    loader, rates = data.train_dataloader(), []
    for _ in range(epochs + 1):
        began = time.perf_counter()
        seen = sum(len(images) for images, _ in loader)
        rates.append(seen / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def files_against_pack(images: int, epochs: int) -> list[dict[str, Any]]:
    """Images a second of training batches with random crops, as files and packed, for views and workers."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        pictures, root = Path(scratch, "pictures"), Path(scratch, "cache")
        write_pictures(pictures, images)
        for image_size, workers in ((64, 0), (64, 2), (224, 0), (224, 2)):
            rates = {}
            for cache in (False, True):
                data = Folder(
                    pretrain_dir=str(pictures),
                    root=str(root),
                    image_size=image_size,
                    num_workers=workers,
                    verify=False,
                    cache=cache,
                )
                data.setup()
                rates[cache] = images_a_second(data, epochs)
            found = {"view": image_size, "workers": workers, "cached_side": min(data.cache_side, HEIGHT)}
            speeds = {"jpeg_images_per_s": rates[False], "packed_images_per_s": rates[True]}
            rows.append(found | speeds | {"times": rates[True] / rates[False]})
    return rows
