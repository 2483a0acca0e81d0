"""Folders of pictures and of masks of class ids, as CamVid is handed round (Brostow et al. 2009; SegNet)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssl_lightning.data._dense import DenseFolders, check_class_names
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.annotations import check_masks, matched
from ssl_lightning.data.io.folders import scan

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)  # SegNet's 11 (Badrinarayanan et al. 2017)


class CamVid(DenseFolders):
    """Pictures in `train`, `val` and `test`; masks of the same names in `trainannot`, `valannot`,
    `testannot`.

    Pretrained on the training pictures. Those of `val` are held out, unless `heldout` is a number: then as
    many of both are. A mask without a picture is passed over.

    Args:
        dir: The folder of these folders; `val` and `valannot` may be absent, then a tenth is held out.
        class_names: Names of the ids 0, 1, ...
        void: Further ids that count nowhere; 255 never does.
        **base: The keywords of `DenseFolders`.

    Raises:
        ValueError: A value is out of range; in `setup` also: a picture has no mask, a mask has unknown ids or
            another size than its picture.
    """

    name = "camvid"
    targets = "masks"

    def __init__(
        self, *, dir: str, class_names: Sequence[str] = CLASSES, void: Sequence[int] = (11,), **base: Any
    ) -> None:
        super().__init__(**base)
        self.class_names = check_class_names(class_names)
        if any(not len(class_names) <= id <= 255 for id in void):
            raise ValueError(
                f"data.void is {list(void)}; allowed are ids that no class has, {len(class_names)} to 255"
            )
        self.dir = Path(dir).expanduser()
        self.void = tuple(void)

    def fetch(self) -> None:
        """Look for the folders, so that a wrong path is told before anything else starts."""
        for name in ("train", "trainannot", "test", "testannot"):
            if not (self.dir / name).is_dir():
                raise FileNotFoundError(f"folder {self.dir / name} does not exist; data.dir must hold it")

    def load(self) -> Pairing:
        """Match the masks to the pictures, and read all of them once."""
        images, masks = self._split("train")
        count = len(images)
        heldout = None
        if (self.dir / "val").is_dir():
            val_images, val_masks = self._split("val")
            images, masks = images + val_images, masks + val_masks
            heldout = torch.arange(count, len(images))
        test_images, test_masks = self._split("test")
        return self.pair(
            images, masks, test_images, test_masks, self.class_names, heldout=heldout, void=self.void
        )

    def _split(self, split: str) -> tuple[list[Path], list[Path]]:
        folder, annotated = self.dir / split, self.dir / f"{split}annot"
        images = self.checked(folder, scan(folder))
        masks = matched(images, {path.stem: path for path in scan(annotated)}, "mask", annotated)
        check_masks(images, masks, len(self.class_names), self.void, self.num_workers)
        return images, masks
