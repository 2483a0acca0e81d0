"""PASCAL VOC 2012 segmentation: 20 classes and background, with the extra masks of SBD if given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_lightning.core.untrusted import check_folder
from ssl_lightning.data._dense import DenseFolders
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.annotations import check_masks, match_by_stem
from ssl_lightning.data.io.scan import scan
from ssl_lightning.data.io.voc import CLASSES, list_images, obtain_voc, read_list


class VOCSegmentation(DenseFolders):
    """Training on `train` (1,464 pictures), test on `val` (1,449), whose labels are public.

    SBD (Hariharan et al. 2011) adds every picture of its own that is not in `val`: 10,582 training pictures
    in all. If both have a mask, VOC's counts. A part of the training pictures is held out.

    Args:
        dir: Folder with `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation`; None for VOC 2012
            in the cache, downloaded if it is missing.
        sbd_dir: SBD's folder `dataset` with `img` and `cls`; None for VOC only.
        **base: The keywords of `DenseFolders`.

    Raises:
        ValueError: A value is out of range. In `setup`: a picture has no mask, or a mask has unknown ids or
            another size than its picture.
    """

    name = "voc_segmentation"
    targets = "masks"

    def __init__(self, *, dir: str | None = None, sbd_dir: str | None = None, **base: Any) -> None:
        super().__init__(**base)
        self.dir = None if dir is None else Path(dir).expanduser()
        self.sbd_dir = None if sbd_dir is None else Path(sbd_dir).expanduser()

    def fetch(self) -> None:
        """Download VOC 2012 if it is missing, and check that the other folders exist."""
        if self.sbd_dir is not None:
            check_folder(self.sbd_dir / "cls", "; data.sbd_dir must contain it")
        self._folder()

    def load(self) -> Pairing:
        """Match masks to pictures, and read every mask once."""
        train, train_masks = self._split("train")
        test, test_masks = self._split("val")
        if self.sbd_dir is not None:
            have = {path.stem for path in (*train, *test)}
            extra = sorted(path for path in (self.sbd_dir / "cls").glob("*.mat") if path.stem not in have)
            where = self.sbd_dir / "img"
            images = self.check_pictures(self.sbd_dir, _match(extra, "picture", where))
            check_masks(images, extra, len(CLASSES) + 1, (), self.num_workers)
            train, train_masks = train + images, train_masks + extra
        return self.pair(train, train_masks, test, test_masks, ("background", *CLASSES), heldout=None)

    def _split(self, split: str) -> tuple[list[Path], list[Path]]:
        folder = self._folder()
        images = self.check_pictures(folder, list_images(folder, read_list(folder, "Segmentation", split)))
        where = folder / "SegmentationClass"
        masks = _match(images, "mask", where)
        check_masks(images, masks, len(CLASSES) + 1, (), self.num_workers)
        return images, masks

    def _folder(self) -> Path:
        return obtain_voc(self.root, "2012") if self.dir is None else self.dir


def _match(images: Sequence[Path], what: str, where: Path) -> list[Path]:
    return match_by_stem(images, [Path(path) for path in scan(where)], what, where)
