"""PASCAL VOC 2007 classification: which of 20 classes a photograph shows, one or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.data._files import ImageFiles, match
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.annotations import voc_objects
from ssl_lightning.data.io.voc import CLASSES, list_images, obtain_voc, read_list


class VOCClassification(ImageFiles):
    """Labels for each class and image: 1 shown, 0 not shown, -1 ignored, read from VOC's XML.

    Ignored, as by Goyal et al. 2019 (VOC's own lists of images mark the same): a class of which an image
    shows only objects that are marked as difficult. Trained on the list `trainval`, of which a part is held
    out for selection, tested on `test`. Pretrained on the same images, or on any other.

    Args:
        dir: A folder with `JPEGImages`, `Annotations` and `ImageSets/Main`; None for VOC 2007 in the cache,
            downloaded unless it is there.
        class_names: In label order; None for VOC's 20.
        pretrain_dir: Images to pretrain on, at any depth, such as those of ImageNet; None for `trainval`.
        **base: The keywords of `ImageFiles`.

    Raises:
        ValueError: A value is out of range; in `setup` also: an annotation is absent or no such XML, or a
            class is unknown.
    """

    name = "voc_classification"
    targets = "multilabel"

    def __init__(
        self,
        *,
        dir: str | None = None,
        class_names: Sequence[str] | None = None,
        pretrain_dir: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.class_names = CLASSES if class_names is None else tuple(class_names)
        if len(self.class_names) < 2 or len(set(self.class_names)) < len(self.class_names):
            raise ValueError(
                f"data.class_names is {list(self.class_names)}; 2 or more different names are needed"
            )
        self.dir = None if dir is None else Path(dir).expanduser()
        self.pretrain_dir = None if pretrain_dir is None else Path(pretrain_dir)

    def fetch(self) -> None:
        """Download VOC 2007 unless it is there, and look for the lists and folders that are given."""
        for split in ("trainval", "test"):
            read_list(self._folder(), "Main", split)
        if self.pretrain_dir is not None and not self.pretrain_dir.expanduser().is_dir():
            raise FileNotFoundError(f"folder {self.pretrain_dir} does not exist")

    def load(self) -> Pairing:
        """Read all annotations."""
        train, train_labels = self._split("trainval")
        test, test_labels = self._split("test")
        pretrain = train if self.pretrain_dir is None else self.find(self.pretrain_dir)
        unseen, overlap = match(pretrain, train, test, self._folder())
        return Pairing(
            self.source(unseen, None),  # no single class, so the supervised control has none to learn from
            self.source(train, train_labels),
            self.source(test, test_labels),
            self.class_names,
            overlap,
        )

    def _split(self, split: str) -> tuple[list[Path], Tensor]:
        folder = self._folder()
        images = list_images(folder, read_list(folder, "Main", split))
        labels = [
            shows_classes(folder / "Annotations" / f"{path.stem}.xml", self.class_names) for path in images
        ]
        return images, torch.tensor(labels)

    def _folder(self) -> Path:
        return obtain_voc(self.root, "2007") if self.dir is None else self.dir


def shows_classes(path: Path, class_names: Sequence[str]) -> list[int]:
    """Say for each class whether an image shows it, from its annotation in VOC's XML.

    Returns:
        1 where it does, 0 where it does not, -1 where all objects of the class are difficult.

    Raises:
        ValueError: The file is absent or no such XML, or an object is of an unknown class.
    """
    labels = dict.fromkeys(class_names, 0)
    try:
        for item in voc_objects(path):
            name = (item.findtext("name") or "").strip()
            if name not in labels:
                raise ValueError(f"an object is {name!r}; data.class_names has {', '.join(class_names)}")
            difficult = (item.findtext("difficult") or "0").strip() == "1"
            labels[name] = 1 if labels[name] == 1 or not difficult else -1
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return list(labels.values())
