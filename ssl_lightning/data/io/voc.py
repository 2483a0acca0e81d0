"""Download of PASCAL VOC, and the lists of its layout: `JPEGImages`, `Annotations`, `ImageSets`."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from ssl_lightning.data.io.annotations import voc_annotation
from ssl_lightning.data.io.download import Source, check_file, fetch_url, obtain, unpack
from ssl_lightning.data.io.scan import EXTENSIONS

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
LABEL = re.compile(r"\s+(-1|0|1)$")  # after a name in the lists of a class
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

    A name may have spaces. A label after it (1, 0 or -1, as in the lists of a class) is ignored.

    Raises:
        FileNotFoundError: The list does not exist.
        ValueError: It is empty.
    """
    path = folder / "ImageSets" / kind / f"{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the VOC layout needs this list of names")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = [LABEL.sub("", line.strip()) for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path} is empty")
    return names


def list_images(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the pictures with the given names, with or without an ending.

    If `JPEGImages` has no such picture, or several, the `<filename>` in its annotation decides.

    Raises:
        ValueError: A picture does not exist; gives the number of missing ones and the first.
    """
    pictures = FilesByName(folder / "JPEGImages", EXTENSIONS)
    annotations = FilesByName(folder / "Annotations", (".xml",))
    paths = [pictures.one(name) or pictures.one(_filename(annotations.one(_bare(name)))) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        several = ", ".join(path.name for path in pictures.called(missing[0]))
        raise ValueError(
            f"{len(missing)} of {len(names)} pictures do not exist; the first is "
            f"{pictures.folder / missing[0]}"
            + (f", which may be {several}; its annotation must name one as <filename>" if several else "")
            + f"; endings that are read: {' '.join(sorted(EXTENSIONS))}"
        )
    return [path for path in paths if path is not None]


def list_annotations(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the XML files of pictures with the given names.

    Raises:
        ValueError: An annotation does not exist; gives the number of missing ones and the first.
    """
    annotations = FilesByName(folder / "Annotations", (".xml",))
    paths = [annotations.one(_bare(name)) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        first = annotations.folder / f"{_bare(missing[0])}.xml"
        raise ValueError(f"{len(missing)} of {len(paths)} annotations do not exist; the first is {first}")
    return [path for path in paths if path is not None]


class FilesByName:
    """Files of a folder, found by name or by stem; case counts only if several files match.

    Args:
        folder: The folder; it may be absent.
        endings: Endings of the files, in lower case.
    """

    def __init__(self, folder: Path, endings: Collection[str]) -> None:
        self.folder = folder
        self._files: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() in endings:
                for key in (path.name.lower(), path.stem.lower()):
                    self._files.setdefault(key, []).append(path)

    def called(self, name: str) -> list[Path]:
        """Return the files with a name or a stem, in any case."""
        return self._files.get(name.lower(), [])

    def one(self, name: str | None) -> Path | None:
        """Return the file with a name or a stem; None if there is none, or several."""
        if name is None:
            return None
        alike = self.called(name)
        same = [path for path in alike if name in (path.name, path.stem)]
        found = same or alike
        return found[0] if len(found) == 1 else None


def _bare(name: str) -> str:
    """Return the name of a picture without its ending."""
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in EXTENSIONS else name


def _filename(annotation: Path | None) -> str | None:
    """Return the picture that an annotation names, without its folder."""
    try:
        named = None if annotation is None else voc_annotation(annotation).findtext("filename")
    except (OSError, ValueError):  # reading the annotation reports it
        return None
    return None if named is None else named.strip().replace("\\", "/").rpartition("/")[2]


def _is_voc(folder: Path) -> bool:
    return all((folder / part).is_dir() for part in ("JPEGImages", "Annotations", "ImageSets"))


def _unpack(archive: Path, out: Path, scratch: Path, base: str) -> None:
    """Unpack an archive and move the contents of its folder `base` to `out`."""
    unpack(archive, scratch, MAX_BYTES)
    archive.unlink()  # frees as much as its files take
    shutil.copytree(scratch / base, out, copy_function=shutil.move, dirs_exist_ok=True)
    shutil.rmtree(scratch / base)
