"""Masks and boxes of images: readers and checks."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.core.progress import tracked
from ssl_lightning.data.io.eight_bit import raw_mode
from ssl_lightning.data.io.folders import open_image
from ssl_lightning.data.io.scan import SHOWN

MAX_XML = 8_000_000  # bytes of an annotation
SCALED = {"L;2": 85, "L;4": 17}  # Pillow spreads grey of 2 and 4 bits over 0 to 255
VOID = 255  # id of pixels that count nowhere, in every mask returned here
T = TypeVar("T")


@dataclass(frozen=True)
class Boxes:
    """The objects of one image.

    Args:
        boxes: `(n, 4)` float32, left, top, right, bottom in pixels from the top left corner; never empty.
        labels: `(n,)` int64, in 0..K-1.
        difficult: `(n,)` bool, objects that an evaluation ignores.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor

    def target(self, scale: tuple[float, float] = (1.0, 1.0)) -> dict[str, Tensor]:
        """Return the target that a loader yields, with boxes scaled by factors across and down."""
        factors = torch.tensor(scale).repeat(2)
        return {"boxes": self.boxes * factors, "labels": self.labels, "difficult": self.difficult}


def read_mask(
    path: Path, num_classes: int, void: Sequence[int], size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read a mask of class ids: a PNG in grey or with a palette (its indices), or SBD's `.mat`.

    Args:
        path: The file.
        num_classes: Classes of the data set.
        void: Ids that count nowhere, besides 255.
        size: Required width and height, as of the image; None for any.

    Returns:
        `(H, W)` uint8, 0..num_classes-1, or 255 for void pixels.

    Raises:
        ValueError: The file has unknown ids, colours instead of ids, or another size; names the file.
    """
    if path.suffix == ".mat":
        from scipy.io import loadmat  # imported here, since only SBD needs it

        try:
            ids = np.asarray(loadmat(path)["GTcls"][0]["Segmentation"][0])
        except Exception as error:  # SciPy raises nearly everything on broken files
            raise ValueError(f"{path} is not a mask of SBD: {error}") from error
    else:
        with open_image(path) as image:
            _check_size(path, image.size, size)  # before the pixels take memory
            if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
                raise ValueError(f"{path} has pixels of mode {image.mode}; a mask has one class id a pixel")
            scale = SCALED.get(raw_mode(image), 1)
            ids = np.asarray(image).astype(np.int64) // scale
    _check_size(path, ids.shape[::-1], size)
    table = np.full(256, -1, np.int16)
    table[:num_classes] = np.arange(num_classes)
    table[[*void, VOID]] = VOID
    mask = np.where((ids >= 0) & (ids < 256), table[ids.clip(0, 255)], -1)
    if (mask < 0).any():
        raise ValueError(
            f"{path} has the ids {np.unique(ids[mask < 0]).tolist()}; allowed are the classes "
            f"0..{num_classes - 1} and the void ids {sorted({*void, VOID})}; set "
            "data.class_names or data.void"
        )
    return mask.astype(np.uint8)


def voc_annotation(path: Path) -> ET.Element:
    """Read an annotation in VOC's XML.

    Raises:
        ValueError: The file is not XML, is too large, or declares entities, which can expand without limit.
        OSError: The file cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        data = file.read(MAX_XML + 1)
    if len(data) > MAX_XML:
        raise ValueError(f"the file is too large; an annotation has at most {MAX_XML:,} bytes")
    if b"<!ENTITY" in data.replace(b"\0", b""):  # in UTF-16 too
        raise ValueError("the file declares entities; an annotation must not")
    try:
        return ET.fromstring(data)
    except (ET.ParseError, LookupError) as error:
        raise ValueError(str(error)) from error


def read_voc_boxes(path: Path, image_size: tuple[int, int], class_names: Sequence[str]) -> Boxes:
    """Read the boxes of one image in VOC's XML; there may be none.

    VOC counts pixels from 1 and includes both ends of a box: pixels 1 to 1 become [0, 1). Boxes are clipped
    to the image.

    Args:
        path: The XML file.
        image_size: Width and height of the image itself; for the size in the file see `warn_of_sizes`.
        class_names: In label order.

    Raises:
        ValueError: The file is not in VOC's XML, or an object has an unknown class or no pixel in the image.
    """
    number = {name: label for label, name in enumerate(class_names)}
    width, height = image_size
    rows: list[tuple[list[float], int, bool]] = []
    try:
        for item in voc_annotation(path).findall("object"):
            name = (item.findtext("name") or "").strip()
            corners = [
                float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")
            ]
            rows.append((corners, number.get(name, -1), (item.findtext("difficult") or "0").strip() == "1"))
            if name not in number:
                raise ValueError(f"an object is {name!r}; data.class_names has {', '.join(class_names)}")
            left, top, right, bottom = corners
            inside = min(right, width) >= max(left, 1) and min(bottom, height) >= max(top, 1)
            if not inside or not all(map(math.isfinite, corners)):
                raise ValueError(
                    f"the box {corners} of {name!r} has no pixel in the image of {width} x {height} pixels"
                )
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4) - torch.tensor([1.0, 1.0, 0.0, 0.0])
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    return Boxes(
        boxes.clamp(min=0).minimum(limit),
        torch.tensor([row[1] for row in rows], dtype=torch.int64),
        torch.tensor([row[2] for row in rows], dtype=torch.bool),
    )


def warn_of_sizes(pairs: Sequence[tuple[Path, tuple[int, int]]]) -> None:
    """Warn of annotations in VOC's XML that state another size than their picture has.

    Such boxes were drawn on another version of the picture, resized or turned. A size of 0 states nothing.

    Args:
        pairs: Path of each annotation, and width and height of its upright picture.
    """
    others = []
    for path, size in pairs:
        try:
            root = voc_annotation(path)
            stated = int(root.findtext("size/width") or 0), int(root.findtext("size/height") or 0)
        except (OSError, ValueError):  # reading the boxes reports it, and no number states no size
            continue
        if min(stated) > 0 and stated != size:
            others.append(
                f"{path.name} states {stated[0]} x {stated[1]}, and its picture has {size[0]} x {size[1]}"
            )
    if others:
        rank_zero_warn(
            f"{len(others)} of {len(pairs)} annotations state another size than their upright picture "
            f"has, so their boxes may be wrong: {others[0]}"
        )


def image_sizes(paths: Sequence[Path], num_workers: int) -> list[tuple[int, int]]:
    """Return width and height of each image from its header, upright as from `decode`."""

    def size(path: Path) -> tuple[int, int]:
        with open_image(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap the sides
            return (height, width) if turned else (width, height)

    return map_in_threads(size, paths, num_workers, "read image sizes")


def _check_size(path: Path, found: tuple[int, ...], wanted: tuple[int, int] | None) -> None:
    if wanted is not None and tuple(found) != wanted:
        of_mask, of_image = (" x ".join(map(str, size)) for size in (found, wanted))
        raise ValueError(f"{path} has {of_mask} pixels, and its image has {of_image}")


def check_masks(
    images: Sequence[Path], masks: Sequence[Path], num_classes: int, void: Sequence[int], num_workers: int
) -> None:
    """Read every mask once, so that a bad one fails before any work.

    Raises:
        ValueError: A mask has unknown ids or another size than its image (names the first ten masks), or no
            mask has another class than 0 and void.
    """
    sizes = image_sizes(images, num_workers)

    def check(pair: tuple[Path, tuple[int, int]]) -> str | set[int]:
        """Return what is wrong with a mask, or its ids."""
        mask, size = pair
        try:
            return set(np.unique(read_mask(mask, num_classes, void, size)).tolist())
        except (OSError, ValueError) as error:
            return str(error) if str(mask) in str(error) else f"{mask}: {error}"

    results = map_in_threads(check, list(zip(masks, sizes, strict=True)), num_workers, "check masks")
    found = [result for result in results if isinstance(result, str)]
    ids: set[int] = set().union(*(result for result in results if isinstance(result, set)))
    if not found and ids == {0, VOID}:
        raise ValueError(
            f"the {len(masks)} masks such as {masks[0]} hold no class but 0, and void ids "
            f"{sorted({*void, VOID})}, which count nowhere; write the classes as 0, 1, 2, ..."
        )
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise ValueError("\n  ".join([f"{len(found)} masks cannot be used:", *found[:SHOWN], *more]))


def match_by_stem(
    images: Sequence[Path], found: Sequence[Path], what: str, where: Path, root: Path | None = None
) -> list[Path]:
    """Return the file of each image: of the same name without ending, in any folder.

    Args:
        images: The images.
        found: The files, below `where`.
        what: Kind of the files, for messages.
        where: Their folder.
        root: Folder of the images; if several files have a name, the same folder below it decides.

    Raises:
        ValueError: An image has no file, or several; gives the number of such images and the first.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in found:
        by_stem.setdefault(path.stem, []).append(path)
    shared = Counter(path.stem for path in images)

    def files(image: Path) -> list[Path]:
        alike = by_stem.get(image.stem, [])
        if root is None or len(alike) == shared[image.stem] == 1:
            return alike
        place = image.parent.relative_to(root)
        return [path for path in alike if path.parent.relative_to(where) == place]

    matched = [files(path) for path in images]
    for kind, wrong in (("no", 0), ("several", 2)):
        missing = [path for path, its in zip(images, matched, strict=True) if min(len(its), 2) == wrong]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(images)} images have {kind} {what} in {where}; the first is "
                f"{missing[0]}"
            )
    return [its[0] for its in matched]


def map_in_threads(
    function: Callable[[Any], T], items: Sequence[Any], num_workers: int, what: str
) -> list[T]:
    """Map in threads, since Pillow releases the GIL while it decodes; `what` names the work."""
    if num_workers == 0 or len(items) < 2:
        return [function(item) for item in tracked(items, what, "files")]
    with ThreadPoolExecutor(num_workers) as pool:
        return list(tracked(pool.map(function, items), what, "files", total=len(items)))
