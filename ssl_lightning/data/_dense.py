"""Base classes for data sets whose labels are masks or boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssl_lightning.core.cache import cache_root
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data._pictures import Pictures
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.data.io.annotations import Boxes
from ssl_lightning.data.io.dense import DenseFiles
from ssl_lightning.data.io.file_list import FileList
from ssl_lightning.data.io.folders import good_images
from ssl_lightning.data.io.loader import BatchLoader
from ssl_lightning.data.io.sources import FileSource


class DenseDataModule(PairedDataModule):
    """Data set whose `pretrain` and `train` are the same pictures in the same order.

    Pretext tasks see square views of the training pictures, without labels. Probes see the full pictures, at
    a size of their own that need not be square.
    """

    def val_dataloader(self) -> BatchLoader:
        """Return the held-out pictures as the pretext sees them, without masks or boxes."""
        return self._loader(self._loaded.pretrain, self._splits.val, self.eval_batch_size, "val")


class DenseFolders(DenseDataModule, Pictures):
    """Picture files with a mask or boxes for each.

    Args:
        root: Cache folder; None for the default one (see `core.cache`).
        size: Height and width of the pictures that probes see. A picture is resized to fit and keeps its
            aspect. The rest, on the right or below, is grey and void.
        eval_batch_size: See `PairedDataModule`.
        image_size, crop_ratio: See `Pictures`; they set the square views of the pretext.
        **base: The other keywords of `Pictures`.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        size: Sequence[int] = (256, 256),
        eval_batch_size: int = 32,
        image_size: int = 96,
        crop_ratio: float = 1.0,
        **base: Any,
    ) -> None:
        base |= {"eval_batch_size": eval_batch_size, "image_size": image_size, "crop_ratio": crop_ratio}
        super().__init__(**base)
        if len(size) != 2 or min(size) < image_size:
            raise ValueError(
                f"data.size is {list(size)}; allowed are a height and a width, both at least data.image_size "
                f"({image_size})"
            )
        self.root = cache_root(root)
        self.size = (int(size[0]), int(size[1]))

    def check_pictures(self, folder: Path, paths: Sequence[str | Path]) -> list[Path]:
        """Return the pictures after decoding each once.

        Raises:
            BadImagesError: A picture cannot be decoded; names it.
        """
        good, _ = good_images(
            folder,
            FileList.of(paths),
            max_pixels=self.max_pixels,
            max_bad=0,
            cache=self.root / "folders",
            channels=self.channels,
            value_range=self.value_range,
        )
        return [Path(path) for path in good]

    def pair(
        self,
        train: Sequence[Path],
        train_annotations: Sequence[Path] | Sequence[Boxes],
        test: Sequence[Path],
        test_annotations: Sequence[Path] | Sequence[Boxes],
        class_names: Sequence[str],
        *,
        heldout: torch.Tensor | None,
        void: Sequence[int] = (),
    ) -> Pairing:
        """Build the `Pairing` of a data set of files.

        Args:
            train: Training pictures, including the held-out ones.
            train_annotations: Masks or boxes of `train`.
            test: Test pictures.
            test_annotations: Masks or boxes of `test`.
            class_names: In label order.
            heldout: Indices into `train` of the published validation split; None if there is none.
            void: See `read_mask`.

        Raises:
            ValueError: A picture is in `train` and in `test`.
        """
        both = set(train) & set(test)
        if both:
            raise ValueError(f"{len(both)} pictures are in both train and test, such as {min(both)}")
        options: dict[str, Any] = {
            "size": self.size,
            "num_classes": len(class_names),
            "void": void,
            "channels": self.channels,
            "value_range": self.value_range,
            "max_pixels": self.max_pixels,
            "num_workers": self.num_workers,
        }
        return Pairing(
            FileSource(train, None, **self.decoding),
            DenseFiles(train, train_annotations, **options),
            DenseFiles(test, test_annotations, **options),
            tuple(class_names),
            overlap=torch.arange(len(train)),
            heldout=heldout,
        )


def check_class_names(class_names: Sequence[str], fewest: int = 1) -> tuple[str, ...]:
    """Return the names as a tuple.

    Raises:
        ValueError: The list has less than `fewest` or more than 255 names, or has a name twice.
    """
    if not fewest <= len(class_names) <= 255 or len(set(class_names)) < len(class_names):
        raise ValueError(
            f"data.class_names is {list(class_names)}; {fewest} to 255 different names are needed"
        )
    return tuple(class_names)
