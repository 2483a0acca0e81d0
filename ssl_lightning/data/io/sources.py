"""Sources of a loader's images: memory, or files decoded by worker processes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ssl_lightning.core.cpu import available_cores
from ssl_lightning.core.progress import tracked
from ssl_lightning.core.seeding import generator, stream_seed
from ssl_lightning.data.io.augment import CropFlip, EvalView, TrainView
from ssl_lightning.data.io.file_list import FileList
from ssl_lightning.data.io.folders import as_tensor, decode
from ssl_lightning.data.io.workers import BatchWorkers, has_gpu

RESIZE_CHUNK = 1024


@dataclass(frozen=True)
class Share:
    """One process's share of one global batch.

    Args:
        stream: Names of the random stream of the epoch.
        batch: Number of the batch in its epoch.
        total: Number of images of the global batch.
        start: Position of the share's first image in the global batch.
        indices: (B,) int64, images of the source, in order.
    """

    stream: tuple[int | str, ...]
    batch: int
    total: int
    start: int
    indices: Tensor


class ImageSource(Protocol):
    """Images by index, each with a label (-1 for none)."""

    labels: Tensor  # (N,) int64, or (N, K) of 1, 0 and -1 (ignored) for multi-label images

    def __len__(self) -> int: ...

    def iterate(self, shares: Iterable[Share], augment: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) uint8 and labels (B,) int64 of each share, in order."""
        ...


@runtime_checkable
class OrderedSource(Protocol):
    """Source with its own order of an epoch, since some orders are faster to read."""

    layout: str  # parameters of the order besides the draw; part of a loader's state

    def shuffled(self, indices: Tensor, draw: torch.Generator) -> Tensor:
        """Return the images (n,) int64 in the order of an epoch, each once."""
        ...


class ArraySource:
    """Images in memory, or on the device after `place`, gathered a batch at a time.

    Args:
        images: (N, H, W, C) uint8; a batch is a channels-last view of the gathered rows.
        labels: (N,) or (N, K) int64, or None for none.
        augment: Augmentation, applied if a loader asks for it.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, augment: CropFlip | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; expected uint8 (N, H, W, C)")
        if augment is not None and augment.mode == "reflect" and augment.padding >= min(images.shape[1:3]):
            raise ValueError(
                f"crop_padding is {augment.padding}; it must be below the image size {min(images.shape[1:3])}"
            )
        self.images = images.contiguous()
        self.labels = torch.full((len(images),), -1) if labels is None else labels
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def place(self, device: torch.device) -> None:
        """Move the images to the device of the model; the few bytes of labels stay."""
        self.images = self.images.to(device)

    def iterate(self, shares: Iterable[Share], augment: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) uint8 and labels (B,) int64 of each share, in order.

        All draws happen on the CPU, so the result does not depend on the device of the images.
        """
        for share in shares:
            indices = self._to_images(share.indices)
            labels = _pinned(self.labels.index_select(0, share.indices))
            if augment and self.augment is not None:
                drawn = self.augment.draw(share.total, generator(*share.stream, "augment", share.batch))
                mine = slice(share.start, share.start + len(share.indices))
                drawn_here = (self._to_images(values[mine]) for values in drawn)
                images = self.augment.gather(self.images, indices, *drawn_here)  # (B, H, W, C)
            else:
                images = self.images.index_select(0, indices)
            yield _pinned(images).permute(0, 3, 1, 2), labels  # (B, C, H, W), channels-last in memory

    def _to_images(self, values: Tensor) -> Tensor:
        """Move values to the device of the images, without waiting for it."""
        return values if self.images.is_cpu else _pinned(values).to(self.images.device, non_blocking=True)


class PictureSource:
    """Pictures of any size, decoded by `num_workers` processes that persist over the epochs.

    Each image's random numbers come from its epoch and index. Pixels do not depend on the number of workers
    or processes. A subclass implements `picture`.

    Args:
        labels: (N,) or (N, K) int64.
        channels: 1 for grey, 3 for RGB, 4 for four channels as they are.
        train_view: View if a loader asks for augmentation; None to use `eval_view` there too.
        eval_view: View without augmentation.
        max_pixels: Larger pictures are refused.
        num_workers: 0 decodes in the calling process.
        value_range: See `eight_bit`.
    """

    def __init__(
        self,
        labels: Tensor,
        *,
        channels: int,
        train_view: TrainView | None,
        eval_view: EvalView,
        max_pixels: int,
        num_workers: int,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.labels = labels
        self.channels = channels
        self.value_range = value_range
        self.train_view = train_view
        self.eval_view = eval_view
        self.max_pixels = max_pixels
        self.num_workers = num_workers
        self._workers: dict[bool, BatchWorkers] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_workers": {}}  # a copy in a worker has no workers of its own

    def __len__(self) -> int:
        return len(self.labels)

    def view_size(self, augment: bool) -> int:
        """Return the height and width of views in pixels."""
        return (self.train_view if augment and self.train_view else self.eval_view).size

    def view(self, index: int, seed: int | None) -> Tensor:
        """Return a view of an image, (C, size, size) uint8, augmented if there is a seed.

        Raises:
            RuntimeError: The file became unreadable after the check; names it.
        """
        picture = self.picture(index)
        if seed is None or self.train_view is None:
            return self.eval_view(picture)
        return self.train_view(picture, torch.Generator().manual_seed(seed))

    def picture(self, index: int) -> Tensor:
        """Return a full picture (C, H, W) uint8, from which `view` is cut."""
        raise NotImplementedError

    def iterate(self, shares: Iterable[Share], augment: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) uint8 and labels (B,) int64 of each share, in order."""
        if augment not in self._workers:  # training and evaluation alternate, so each has its workers
            count = self.num_workers if augment else min(self.num_workers, 2)
            self._workers[augment] = BatchWorkers(copy.copy(self), augment, count)
        wanted = ((share.indices.tolist(), self._seeds(share, augment)) for share in shares)
        yield from self._workers[augment].batches(wanted)

    @staticmethod
    def _seeds(share: Share, augment: bool) -> list[int | None]:
        """Return the seed of each view, which depends on its image and epoch only."""
        if not augment:
            return [None] * len(share.indices)
        return [stream_seed(*share.stream, "image", index) for index in share.indices.tolist()]


class FileSource(PictureSource):
    """Image files.

    Args:
        paths: One file per image.
        labels: (N,) or (N, K) int64, or None for none.
        **base: The other keywords of `PictureSource`.
    """

    def __init__(self, paths: Sequence[str | Path], labels: Tensor | None, **base: Any) -> None:
        super().__init__(torch.full((len(paths),), -1) if labels is None else labels, **base)
        self.paths = FileList.of(paths)

    def picture(self, index: int) -> Tensor:
        """Return a full picture (C, H, W) uint8."""
        try:
            return as_tensor(decode(self.paths[index], self.channels, self.max_pixels, self.value_range))
        except Exception as error:
            raise RuntimeError(
                f"{self.paths[index]} cannot be read: {error}; the next start finds such files before any "
                "work, unless data.verify is false"
            ) from error


def _pinned(values: Tensor) -> Tensor:
    """Pin a batch in memory if there is a GPU, so that its transfer overlaps with computing."""
    return values.pin_memory() if values.is_cpu and has_gpu() else values


def default_workers() -> int:
    """Return the number of decoding processes: one per available core, at most 8."""
    return min(8, available_cores())


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images (N, H, W, C) uint8 to (N, size, size, C), bicubic with antialiasing, in chunks."""
    if images.shape[1:3] == (size, size):
        return images
    out = images.new_empty(len(images), size, size, images.shape[3])
    starts = range(0, len(images), RESIZE_CHUNK)
    for start in tracked(starts, f"resize images to {size} px", "batches"):
        chunk = images[start : start + RESIZE_CHUNK].permute(0, 3, 1, 2)  # (n, C, H, W)
        resized = torch.nn.functional.interpolate(chunk, (size, size), mode="bicubic", antialias=True)
        out[start : start + RESIZE_CHUNK] = resized.permute(0, 2, 3, 1)
    return out
