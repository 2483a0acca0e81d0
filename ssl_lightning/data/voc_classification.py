"""PASCAL VOC 2007 classification: photographs with one or several of 20 classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.core.untrusted import check_folder
from ssl_lightning.data._files import ImageFiles
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.annotations import voc_annotation
from ssl_lightning.data.io.file_list import FileList
from ssl_lightning.data.io.overlap import match
from ssl_lightning.data.io.voc import CLASSES, list_annotations, list_images, obtain_voc, read_list


class VOCClassification(ImageFiles):
    """Labels for each class and image from VOC's XML: 1 shown, 0 not shown, -1 ignored.

    A class is ignored if all its objects in the image are marked as difficult. Goyal et al. 2019 and VOC's
    own lists do the same. Probes train on the list `trainval`, with a part held out for selection, and test
    on `test`. Pretraining uses the same images, or `pretrain_dir`.

    Args:
        dir: Folder with `JPEGImages`, `Annotations` and `ImageSets/Main`; None for VOC 2007 in the cache,
            downloaded if it is missing.
        class_names: In label order; None for VOC's 20.
        pretrain_dir: Images to pretrain on, at any depth, such as ImageNet's; None for `trainval`.
        **base: The keywords of `ImageFiles`.

    Raises:
        ValueError: A value is out of range. In `setup`: an annotation is missing or not in VOC's XML, or a
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
                f"data.class_names is {list(self.class_names)}; at least 2 different names are needed"
            )
        self.dir = None if dir is None else Path(dir).expanduser()
        self.pretrain_dir = None if pretrain_dir is None else Path(pretrain_dir)

    def fetch(self) -> None:
        """Download VOC 2007 if it is missing, and check that the lists and folders exist."""
        for split in ("trainval", "test"):
            read_list(self._folder(), "Main", split)
        if self.pretrain_dir is not None:
            check_folder(self.pretrain_dir, "; data.pretrain_dir is this folder")

    def load(self) -> Pairing:
        """Read all annotations."""
        train, train_labels = self._split("trainval")
        test, test_labels = self._split("test")
        pretrain = train if self.pretrain_dir is None else self.find(self.pretrain_dir)
        unseen, overlap, copies = match(pretrain, train, test, self._folder())
        return Pairing(
            self.source(unseen, None),  # without a single class, there is no supervised control
            self.source(train, train_labels),
            self.source(test, test_labels),
            self.class_names,
            overlap,
            copies,
        )

    def _split(self, split: str) -> tuple[FileList, Tensor]:
        folder = self._folder()
        names = read_list(folder, "Main", split)
        annotations = dict(zip(list_images(folder, names), list_annotations(folder, names), strict=True))
        images = self.usable(folder, FileList.of(annotations))
        labels = [read_labels(annotations[Path(path)], self.class_names) for path in images]
        return images, torch.tensor(labels)

    def _folder(self) -> Path:
        return obtain_voc(self.root, "2007") if self.dir is None else self.dir


def read_labels(path: Path, class_names: Sequence[str]) -> list[int]:
    """Read the labels of an image from its annotation in VOC's XML.

    Returns:
        For each class 1 if it is shown, 0 if not, -1 if all its objects are difficult.

    Raises:
        ValueError: The file is missing or not in VOC's XML, or an object has an unknown class.
    """
    labels = dict.fromkeys(class_names, 0)
    try:
        for item in voc_annotation(path).findall("object"):
            name = (item.findtext("name") or "").strip()
            if name not in labels:
                raise ValueError(f"an object is {name!r}; data.class_names has {', '.join(class_names)}")
            difficult = (item.findtext("difficult") or "0").strip() == "1"
            labels[name] = 1 if labels[name] == 1 or not difficult else -1
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return list(labels.values())
