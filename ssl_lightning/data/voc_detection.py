"""PASCAL VOC 2007 detection, or any data set in its layout with classes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssl_lightning.core.progress import tracked
from ssl_lightning.data._dense import DenseFolders, check_class_names
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.annotations import Boxes, image_sizes, read_voc_boxes, warn_of_sizes
from ssl_lightning.data.io.voc import CLASSES, list_annotations, list_images, obtain_voc, read_list


class VOCDetection(DenseFolders):
    """Boxes in VOC's XML: the list `train` for training, `val` held out, `test` for the reported figures.

    The published protocol trains on all 5,011 pictures of `train` and `val`; a small `heldout` comes close.
    Without a list `val`, a part of `train` is held out. Boxes are clipped to their picture. An annotation
    without objects gives a picture without objects, which serves training too.

    Args:
        dir: Folder with `JPEGImages`, `Annotations` and `ImageSets/Main`; None for VOC 2007 in the cache,
            downloaded if it is missing.
        class_names: In label order; None for VOC's 20.
        **base: The keywords of `DenseFolders`.

    Raises:
        ValueError: A value is out of range. In `setup`: an annotation is missing or not in VOC's XML, a class
            is unknown, or a box lies outside its picture.
    """

    name = "voc_detection"
    targets = "boxes"

    def __init__(
        self, *, dir: str | None = None, class_names: Sequence[str] | None = None, **base: Any
    ) -> None:
        super().__init__(**base)
        self.class_names = check_class_names(CLASSES if class_names is None else class_names)
        self.dir = None if dir is None else Path(dir).expanduser()

    def fetch(self) -> None:
        """Download VOC 2007 if it is missing, and check that the lists exist."""
        folder = self._folder()
        for split in ("train", "test"):
            read_list(folder, "Main", split)

    def load(self) -> Pairing:
        """Read all annotations."""
        images, boxes = self._split("train")
        heldout = None
        if (self._folder() / "ImageSets" / "Main" / "val.txt").is_file():
            count = len(images)
            val_images, val_boxes = self._split("val")
            images, boxes = images + val_images, boxes + val_boxes
            heldout = torch.arange(count, len(images))
        test_images, test_boxes = self._split("test")
        return self.pair(images, boxes, test_images, test_boxes, self.class_names, heldout=heldout)

    def _split(self, split: str) -> tuple[list[Path], list[Boxes]]:
        folder = self._folder()
        names = read_list(folder, "Main", split)
        images = self.check_pictures(folder, list_images(folder, names))
        files = list_annotations(folder, names)
        sizes = image_sizes(images, self.num_workers)
        pairs = list(zip(files, sizes, strict=True))
        warn_of_sizes(pairs)
        reading = tracked(pairs, f"read boxes of {split}", "files")
        return images, [read_voc_boxes(path, size, self.class_names) for path, size in reading]

    def _folder(self) -> Path:
        return obtain_voc(self.root, "2007") if self.dir is None else self.dir
