"""Base class for data sets of encoded pictures of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssl_lightning.data.base import PairedDataModule, check_channels
from ssl_lightning.data.io.augment import EvalView, TrainView
from ssl_lightning.data.io.eight_bit import check_value_range
from ssl_lightning.data.io.folders import MAX_PIXELS
from ssl_lightning.data.io.sources import default_workers


class Pictures(PairedDataModule):
    """Pictures of any size, decoded by worker processes.

    Args:
        channels: 1 for grey, 3 for RGB; 4 for four channels as they are, which all files must have.
        value_range: The two values that become black and white in grey pictures of more than 8 bits, such as
            [0, 4095] for 12 bits; None for 0 and 65535. Other pictures are read as they are.
        crop_scale: Smallest and largest area of a training crop, as a share of the picture's area.
        crop_ratio: Side of the central square that evaluation sees, over the picture's shorter side.
        flip: Whether half of the training images are mirrored left to right.
        max_pixels: Pictures with more pixels are bad.
        num_workers: Decoding processes for each rank; None for one per core, at most 8.
        **base: The keywords of `PairedDataModule`.

    Raises:
        ValueError: A value is out of range.
    """

    eval_view: EvalView

    def __init__(
        self,
        *,
        channels: int = 3,
        value_range: Sequence[float] | None = None,
        crop_scale: Sequence[float] = (0.2, 1.0),
        crop_ratio: float = 0.875,
        flip: bool = True,
        max_pixels: int = MAX_PIXELS,
        num_workers: int | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if max_pixels < 1 or (num_workers is not None and num_workers < 0):
            raise ValueError(
                f"data.max_pixels is {max_pixels} and data.num_workers {num_workers}; "
                "allowed are at least 1 pixel, and null or at least 0 workers"
            )
        self.channels = check_channels(channels)
        self.value_range = check_value_range(value_range)
        self.train_view = TrainView(self.image_size, tuple(crop_scale), flip)  # type: ignore[arg-type]
        self.eval_view = EvalView(self.image_size, crop_ratio)
        self.max_pixels = max_pixels
        self.num_workers = default_workers() if num_workers is None else num_workers

    @property
    def decoding(self) -> dict[str, Any]:
        """Keywords of a `PictureSource`, without `labels`."""
        return {
            "channels": self.channels,
            "value_range": self.value_range,
            "train_view": self.train_view,
            "eval_view": self.eval_view,
            "max_pixels": self.max_pixels,
            "num_workers": self.num_workers,
        }
