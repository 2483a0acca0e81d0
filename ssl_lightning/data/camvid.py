"""CamVid: folders of pictures and of masks of class ids (Brostow et al. 2009), in SegNet's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssl_lightning.core.untrusted import check_folder
from ssl_lightning.data._dense import DenseFolders, check_class_names
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.annotations import check_masks, match_by_stem
from ssl_lightning.data.io.scan import scan

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
    """Pictures in `train`, `val`, `test`; masks of the same names in `trainannot`, `valannot`, `testannot`.

    Pretraining uses the training pictures. `val` is held out by default. If `heldout` is a number, that many
    pictures are drawn from `train` and `val` together. A mask without a picture is ignored.

    Args:
        dir: Parent of these folders. `val` and `valannot` may be absent; a tenth is then held out.
        class_names: Names of the ids 0, 1, ...; at least two, since a background is a class too.
        void: Ids that count nowhere, besides 255.
        **base: The keywords of `DenseFolders`.

    Raises:
        ValueError: A value is out of range. In `setup`: a picture has no mask, or a mask has unknown ids or
            another size than its picture.
    """

    name = "camvid"
    targets = "masks"

    def __init__(
        self, *, dir: str, class_names: Sequence[str] = CLASSES, void: Sequence[int] = (11,), **base: Any
    ) -> None:
        super().__init__(**base)
        self.class_names = check_class_names(class_names, fewest=2)
        if any(not len(class_names) <= id <= 255 for id in void):
            raise ValueError(
                f"data.void is {list(void)}; allowed are ids that no class has, {len(class_names)} to 255"
            )
        self.dir = Path(dir).expanduser()
        self.void = tuple(void)

    def fetch(self) -> None:
        """Check that the folders exist, so that a wrong path fails early."""
        for name in ("train", "trainannot", "test", "testannot"):
            check_folder(self.dir / name, "; data.dir must contain it")

    def load(self) -> Pairing:
        """Match masks to pictures, and read every mask once."""
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
        images = self.check_pictures(folder, scan(folder))
        masks = match_by_stem(images, list(map(Path, scan(annotated))), "mask", annotated, folder)
        check_masks(images, masks, len(self.class_names), self.void, self.num_workers)
        return images, masks
