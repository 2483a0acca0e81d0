"""Time epochs of image files: decoded again in each epoch against cut from the packed cache.

    python benchmarks/cache.py

The pictures are CIFAR-10's photographs, enlarged (bicubic) to 500 x 375 px, with noise as of a sensor
(the enlarged ones have no fine detail, and so would be decoded too fast), saved as JPEG of quality 90: about
60 kB each. Prints images a second of `data=folder`, training batches with their random crops, for each number
of workers: the median of some epochs after one that starts the workers and fills the system's cache of files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ssl_lightning.data.cifar10 import CIFAR10
from ssl_lightning.data.folder import Folder
from ssl_lightning.data.io.arrays import load

WIDTH, HEIGHT, QUALITY = 500, 375, 90
NOISE = 6.0  # standard deviation, of 255


def write_pictures(folder: Path, count: int) -> float:
    """Write JPEGs and return their mean size in bytes."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, image in enumerate(load(CIFAR10().obtain(), "train_images")[:count].numpy()):
        large = Image.fromarray(image).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        noisy = np.asarray(large) + random.normal(0, NOISE, (HEIGHT, WIDTH, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:05}.jpg", quality=QUALITY
        )
    return statistics.fmean(path.stat().st_size for path in folder.iterdir())


def images_a_second(data: Folder, epochs: int) -> float:
    """Median over epochs of training batches, after one that is not counted."""
    loader, rates = data.train_dataloader(), []
    for _ in range(epochs + 1):
        began = time.perf_counter()
        seen = sum(len(images) for images, _ in loader)
        rates.append(seen / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def main() -> None:
    """Write the pictures, run both at each size and number of workers, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--image-size", type=int, nargs="+", default=[64, 224], help="pixels of a view")
    parser.add_argument("--cache-side", type=int, default=None, help="see data.cache_side")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        pictures, root = Path(scratch, "pictures"), Path(scratch, "cache")
        size = write_pictures(pictures, options.images)
        print(f"{options.images} JPEG files of {WIDTH} x {HEIGHT} px, {size / 1e3:.0f} kB each")
        print("view  workers  cached side  kB stored   JPEG img/s  packed img/s  ratio")
        for image_size in options.image_size:
            for workers in options.workers:
                rates = {}
                for cache in (False, True):
                    data = Folder(
                        pretrain_dir=str(pictures),
                        root=str(root),
                        image_size=image_size,
                        num_workers=workers,
                        verify=False,
                        cache=cache,
                        cache_side=options.cache_side,
                    )
                    data.setup()
                    rates[cache] = images_a_second(data, options.epochs)
                pack = max(root.joinpath("packed").glob("*.bin"), key=os.path.getmtime)
                print(
                    f"{image_size:4}  {workers:7}  {min(data.cache_side, HEIGHT):11}  "
                    f"{pack.stat().st_size / options.images / 1e3:9.0f}   {rates[False]:10.0f}  "
                    f"{rates[True]:12.0f}  {rates[True] / rates[False]:5.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
