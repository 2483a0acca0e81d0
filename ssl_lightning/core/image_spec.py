"""Shape and statistics of the images of a data set."""

from __future__ import annotations

from dataclasses import dataclass

CHANNELS = (1, 3, 4)  # grey, RGB, and RGB with a fourth channel such as near infrared or opacity


@dataclass(frozen=True)
class ImageSpec:
    """Shape and statistics of the images that a DataModule yields.

    Args:
        channels: Number of channels C (1, 3 or 4).
        image_size: Height and width in pixels of the square images.
        mean: Per-channel mean of the pretraining images, in [0, 1].
        std: Per-channel standard deviation of these images, in (0, 1].
        class_names: Names of the downstream classes, in label order; None without labels.
        pretrain_labels: Whether the pretraining images carry labels of these classes.
    """

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None = None
    pretrain_labels: bool = False

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS:
            raise ValueError(f"channels is {self.channels}; allowed are 1 (grey), 3 (RGB) and 4")
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it must be a positive number of pixels")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"mean has {len(self.mean)} and std {len(self.std)} values; "
                f"both need one for each of the {self.channels} channels"
            )
        if not all(0 <= value <= 1 for value in self.mean):  # NaN fails this too
            raise ValueError(f"mean is {self.mean}; every value must be in 0 to 1, the range of pixels")
        if not all(0 < value <= 1 for value in self.std):
            raise ValueError(f"std is {self.std}; every value must be above 0, and at most 1")

    @property
    def num_classes(self) -> int | None:
        """Number of downstream classes; None without labels."""
        return None if self.class_names is None else len(self.class_names)
