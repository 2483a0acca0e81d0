"""Download of PASCAL VOC, and the lists of its layout: `JPEGImages`, `Annotations`, `ImageSets`."""

from __future__ import annotations

import shutil
from pathlib import Path

from ssl_lightning.data.io.download import Source, check_file, fetch_url, obtain, unpack

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
MAX_BYTES = 4_000_000_000  # of all files of an archive; the largest archive has 2 GB
ARCHIVES = {"2007": (("2007", 460_032_000), ("2007-test", 451_020_800)), "2012": (("2012", 1_999_639_040),)}


def obtain_voc(root: Path, year: str) -> Path:
    """Return the folder of VOC 2007 (trainval and test) or 2012 (trainval), downloaded if missing.

    Raises:
        DownloadError: The archives are not available; says where to place them by hand.
    """
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    parts = [DATASET_YEAR_DICT[key] for key, _ in ARCHIVES[year]]
    size = sum(size for _, size in ARCHIVES[year])

    def placed(out: Path, scratch: Path) -> None:
        for part in parts:
            if not (root / part["filename"]).is_file():
                raise FileNotFoundError(f"{part['filename']} does not exist; download it from {part['url']}")
            archive = scratch / part["filename"]
            shutil.copyfile(root / part["filename"], archive)  # a failed check removes the copy only
            check_file(archive, part["md5"], "md5")
            _unpack(archive, out, scratch, part["base_dir"])

    def official(out: Path, scratch: Path) -> None:
        for part in parts:
            fetch_url(part["url"], scratch / part["filename"], part["md5"])
            _unpack(scratch / part["filename"], out, scratch, part["base_dir"])

    names = " and ".join(part["filename"] for part in parts)
    sources = (
        Source(f"{names} placed by hand in {root}", placed, size),
        Source("official archives, by the addresses of torchvision", official, size),
    )
    return obtain(f"VOC {year}", root / f"voc{year}", sources, _is_voc)


def read_list(folder: Path, kind: str, split: str) -> list[str]:
    """Return the names in `ImageSets/<kind>/<split>.txt`, in file order.

    Raises:
        FileNotFoundError: The list does not exist.
        ValueError: It is empty.
    """
    path = folder / "ImageSets" / kind / f"{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the VOC layout needs this list of names")
    names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} is empty")
    return names


def list_images(folder: Path, names: list[str]) -> list[Path]:
    """Return the pictures with the given names.

    Raises:
        ValueError: A picture does not exist; gives the number of missing ones and the first.
    """
    paths = [folder / "JPEGImages" / f"{name}.jpg" for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(paths)} pictures do not exist; the first is {missing[0]}")
    return paths


def _is_voc(folder: Path) -> bool:
    return all((folder / part).is_dir() for part in ("JPEGImages", "Annotations", "ImageSets"))


def _unpack(archive: Path, out: Path, scratch: Path, base: str) -> None:
    """Unpack an archive and move the contents of its folder `base` to `out`."""
    unpack(archive, scratch, MAX_BYTES)
    archive.unlink()  # frees as much as its files take
    shutil.copytree(scratch / base, out, copy_function=shutil.move, dirs_exist_ok=True)
    shutil.rmtree(scratch / base)
