"""What the data sets share whose labels are masks or boxes: two kinds of images of the same pictures.

The pretext tasks see square views of the training pictures, without labels; the probes see the whole
pictures, at a size of their own that need not be square.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssl_lightning.core.cache import cache_root
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.data.io.annotations import Boxes
from ssl_lightning.data.io.augment import EvalView, TrainView
from ssl_lightning.data.io.dense import DenseFiles
from ssl_lightning.data.io.folders import good_images
from ssl_lightning.data.io.loader import BatchLoader
from ssl_lightning.data.io.sources import FileSource, default_workers


class DenseDataModule(PairedDataModule):
    """A pairing whose `pretrain` and `train` are the same pictures in the same order."""

    eval_view: EvalView

    def val_dataloader(self) -> BatchLoader:
        """Return the held-out pictures as the pretext sees them; their labels are the probes'."""
        return self._loader(self._loaded.pretrain, self._splits.val, self.eval_batch_size, "val")


class DenseFolders(DenseDataModule):
    """Picture files with a mask or boxes for each.

    Args:
        root: Cache folder; None for the default one (see `io.download`).
        size: Height and width of the pictures that probes see: resized to fit, their aspect kept; what is
            left on the right or below is grey, and void.
        crop_scale, crop_ratio, flip, max_pixels: See `Folder`; of the pretext's square views.
        num_workers: Decoding processes and threads of each rank; None for one per core, at most 8.
        batch_size, eval_batch_size, image_size, channels, seed, mean, std, heldout, max_labels,
            pretrain_size: See `PairedDataModule`.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 32,
        image_size: int = 96,
        size: Sequence[int] = (256, 256),
        channels: int = 3,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        heldout: int | None = None,
        max_labels: int | None = None,
        pretrain_size: int | None = None,
        crop_scale: Sequence[float] = (0.2, 1.0),
        crop_ratio: float = 1.0,
        flip: bool = True,
        max_pixels: int = 50_000_000,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            image_size=image_size,
            channels=channels,
            seed=seed,
            mean=mean,
            std=std,
            heldout=heldout,
            max_labels=max_labels,
            pretrain_size=pretrain_size,
        )
        if len(size) != 2 or min(size) < image_size:
            raise ValueError(
                f"data.size is {list(size)}; allowed are a height and a width, both at least data.image_size "
                f"({image_size})"
            )
        if max_pixels < 1 or (num_workers is not None and num_workers < 0):
            raise ValueError(
                f"data.max_pixels is {max_pixels} and data.num_workers {num_workers}; "
                "allowed are 1 pixel or more, and null or 0 workers or more"
            )
        self.root = cache_root(root)
        self.size = (int(size[0]), int(size[1]))
        self.train_view = TrainView(image_size, tuple(crop_scale), flip)  # type: ignore[arg-type]
        self.eval_view = EvalView(image_size, crop_ratio)
        self.max_pixels = max_pixels
        self.num_workers = default_workers() if num_workers is None else num_workers

    def checked(self, folder: Path, paths: Sequence[Path]) -> list[Path]:
        """Return the pictures, all of which can be decoded.

        Raises:
            BadImagesError: One cannot; names it.
        """
        good, _ = good_images(
            folder, paths, max_pixels=self.max_pixels, max_bad=0, cache=self.root / "folders"
        )
        return good

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
        """Make the pairing of `load` out of files.

        Args:
            train: Training pictures, those set aside for validation among them.
            train_annotations: Their masks or boxes.
            test: Test pictures.
            test_annotations: Theirs.
            class_names: In label order.
            heldout: Which of `train` are set aside for validation, if that is published.
            void: See `read_mask`.

        Raises:
            ValueError: A picture is in both.
        """
        both = set(train) & set(test)
        if both:
            raise ValueError(f"{len(both)} pictures are for training and for test, such as {min(both)}")
        options: dict[str, Any] = {
            "size": self.size,
            "num_classes": len(class_names),
            "void": void,
            "channels": self.channels,
            "max_pixels": self.max_pixels,
            "num_workers": self.num_workers,
        }
        pretrain = FileSource(
            train,
            None,
            channels=self.channels,
            train_view=self.train_view,
            eval_view=self.eval_view,
            max_pixels=self.max_pixels,
            num_workers=self.num_workers,
        )
        return Pairing(
            pretrain,
            DenseFiles(train, train_annotations, **options),
            DenseFiles(test, test_annotations, **options),
            tuple(class_names),
            overlap=torch.arange(len(train)),
            heldout=heldout,
        )


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple.

    Raises:
        ValueError: There are none, more than 255, or one twice.
    """
    if not 1 <= len(class_names) <= 255 or len(set(class_names)) < len(class_names):
        raise ValueError(f"data.class_names is {list(class_names)}; 1 to 255 different names are needed")
    return tuple(class_names)
