"""PASCAL VOC 2012 segmentation: 20 classes and background, with the extra masks of SBD where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_lightning.data._dense import DenseFolders
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.annotations import check_masks, matched
from ssl_lightning.data.io.voc import CLASSES, list_images, obtain_voc, read_list


class VOCSegmentation(DenseFolders):
    """Trained on `train` (1,464 pictures), tested on `val` (1,449), whose labels are public, as is usual.

    With SBD (Hariharan et al. 2011) training has every picture of it that is not in `val`, 10,582 in all;
    VOC's own masks count where both have one. Held out is a part of the training pictures.

    Args:
        dir: A folder with `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation`; None for VOC 2012
            in the cache, downloaded unless it is there.
        sbd_dir: SBD's folder `dataset` with `img` and `cls`; None for VOC alone.
        **base: The keywords of `DenseFolders`.

    Raises:
        ValueError: A value is out of range; in `setup` also: a picture has no mask, a mask has unknown ids or
            another size than its picture.
    """

    name = "voc_segmentation"
    targets = "masks"

    def __init__(self, *, dir: str | None = None, sbd_dir: str | None = None, **base: Any) -> None:
        super().__init__(**base)
        self.dir = None if dir is None else Path(dir).expanduser()
        self.sbd_dir = None if sbd_dir is None else Path(sbd_dir).expanduser()

    def fetch(self) -> None:
        """Download VOC 2012 unless it is there; look for the other folders."""
        if self.sbd_dir is not None and not (self.sbd_dir / "cls").is_dir():
            raise FileNotFoundError(
                f"folder {self.sbd_dir / 'cls'} does not exist; data.sbd_dir must hold it"
            )
        self._folder()

    def load(self) -> Pairing:
        """Match the masks to the pictures, and read all of them once."""
        train, train_masks = self._split("train")
        test, test_masks = self._split("val")
        if self.sbd_dir is not None:
            have = {path.stem for path in (*train, *test)}
            extra = sorted(path for path in (self.sbd_dir / "cls").glob("*.mat") if path.stem not in have)
            found = {path.stem: path for path in (self.sbd_dir / "img").glob("*.jpg")}
            images = self.checked(self.sbd_dir, matched(extra, found, "picture", self.sbd_dir / "img"))
            check_masks(images, extra, len(CLASSES) + 1, (), self.num_workers)
            train, train_masks = train + images, train_masks + extra
        return self.pair(train, train_masks, test, test_masks, ("background", *CLASSES), heldout=None)

    def _split(self, split: str) -> tuple[list[Path], list[Path]]:
        folder = self._folder()
        images = self.checked(folder, list_images(folder, read_list(folder, "Segmentation", split)))
        masks = matched(
            images,
            {path.stem: path for path in (folder / "SegmentationClass").glob("*.png")},
            "mask",
            folder / "SegmentationClass",
        )
        check_masks(images, masks, len(CLASSES) + 1, (), self.num_workers)
        return images, masks

    def _folder(self) -> Path:
        return obtain_voc(self.root, "2012") if self.dir is None else self.dir
