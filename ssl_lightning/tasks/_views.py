"""Base class of the tasks that compare random views of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightly.utils.dist import gather
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.features import stride_and_smallest
from ssl_lightning.networks.heads import PooledHead
from ssl_lightning.ops.views import Strengths, draw_views, make_views
from ssl_lightning.tasks._pixels import to_float
from ssl_lightning.tasks.base import Panel, PretextTask


@dataclass(frozen=True)
class BatchPlace:
    """Place of the images of this process in the batch of all processes.

    Args:
        counts: Number of images of each process.
        rank: Number of this process among them.
    """

    counts: tuple[int, ...]
    rank: int

    @property
    def first(self) -> int:
        """Number of the first image of this process."""
        return sum(self.counts[: self.rank])

    @property
    def total(self) -> int:
        """Number of images of all processes."""
        return sum(self.counts)


class ViewTask(PretextTask):
    """Compare the embeddings of random views of each image, two by default.

    A subclass names its projection head by `projector`, and scores embeddings in `step`. Views are drawn for
    the batch of all processes, of which each process makes its own part, and `everyone` gathers embeddings.
    The number of processes therefore changes a result only by rounding.

    Changes of the colours need three channels. Grey images skip those of hue and saturation; four channels
    need `saturation=0`, `hue=0` and `grey=0`.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        hidden: Units of a hidden layer of the projection head.
        embedding: Size of an embedding.
        crop_scale: Smallest and largest area of the crop, as a share of the image.
        flip: Probability of mirroring.
        jitter: Probability of changing brightness, contrast, saturation and hue.
        brightness: Largest change of the brightness.
        contrast: Largest change of the contrast.
        saturation: Largest change of the saturation.
        hue: Largest turn of the hue, as a share of the colour circle.
        grey: Probability of removing the colours.
        blur: Probability of blurring.
        solarise: Probability of inverting the bright half of the range.
        view_scale: Height and width of the views over the height of the images, rounded to a multiple of the
            stride of the first stage (the patch of a transformer), but at least what the backbone needs. A
            random crop enlarges objects; in smaller views they are about as large as in whole images
            (Touvron et al. 2019, section 3).
        **base: The keywords of `PretextTask`.

    Raises:
        ValueError: A value is out of range, or the images have other channels.
    """

    recordable = True
    shares_draws = True
    views_per_image = 2
    fewest_images = 2
    smallest_embedding = 1

    def __init__(
        self,
        backbone: nn.Module,
        *,
        hidden: int = 512,
        embedding: int = 512,
        crop_scale: Sequence[float] = (0.2, 1.0),
        flip: float = 0.5,
        jitter: float = 0.8,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.1,
        grey: float = 0.2,
        blur: float = 0.0,
        solarise: float = 0.0,
        view_scale: float = 1.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if hidden < 1 or embedding < self.smallest_embedding:
            raise ValueError(
                f"task.hidden is {hidden} and task.embedding {embedding}; allowed: >= 1 and >= "
                f"{self.smallest_embedding}"
            )
        self.hidden, self.embedding = hidden, embedding
        self._strengths = Strengths(
            crop_scale, flip, jitter, brightness, contrast, saturation, hue, grey, blur, solarise
        )
        if not 0 < view_scale <= 2:
            raise ValueError(f"task.view_scale is {view_scale}; allowed are above 0, up to 2")
        self.view_scale = view_scale
        self._shared_batches = 0.0  # validation batches in which every process has images
        self._alone = True  # whether this validation batch is not one of them

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        self.strengths = self._strengths.for_channels(spec.channels)
        self.view_size = self.size_of_views(spec.image_size)
        info: Any = self.backbone.feature_info
        self.head = PooledHead(self.projector(info.channels()[-1]))

    def size_of_views(self, image_size: int) -> int:
        """Return the height and width of the views in pixels."""
        if self.view_scale == 1:
            return image_size
        info: Any = self.backbone.feature_info
        _, smallest = stride_and_smallest(self.backbone)
        step = min(info.reduction())
        return max(smallest, step * round(image_size * self.view_scale / step))

    def projector(self, channels: int) -> nn.Module:
        """Make the network that maps the pooled last stage `(N, channels)` to embeddings `(N, D)`."""
        raise NotImplementedError

    def receive(self, images: Tensor) -> Tensor:
        return images  # `make_views` takes bytes

    def views(self, images: Tensor, place: BatchPlace, stream: torch.Generator) -> Tensor:
        """Make V views of `(B, C, H, W)` images: `(V, B, C, H, W)`, floats in [0, 1]."""
        return self.crops(images, place, stream, self.views_per_image, self.strengths)

    def crops(
        self,
        images: Tensor,
        place: BatchPlace,
        stream: torch.Generator,
        count: int,
        strengths: Strengths,
        size: int | None = None,
    ) -> Tensor:
        """Make `count` views of `(B, C, H, W)` images, `(count, B, C, size, size)`."""
        height, width = images.shape[2:]
        draws = [draw_views(place.total, height, width, strengths, stream) for _ in range(count)]
        rows = [each.rows(place.first, len(images)) for each in draws]
        return torch.stack([make_views(images, each, size or self.view_size) for each in rows])

    def embed(self, views: Tensor) -> Tensor:
        """Embed views `(V, B, C, H, W)`: `(V, B, D)` float32."""
        return self.head(self.backbone(self.inputs(views))).float().unflatten(0, views.shape[:2])

    def inputs(self, views: Tensor) -> Tensor:
        """Convert views `(V, B, C, H, W)` to the input of the backbone, `(V B, C, H, W)`."""
        return self.normalise(views.flatten(0, 1).contiguous(memory_format=self.image_format))

    @torch.no_grad()
    def embeddings(self, features: Tensor) -> dict[str, Tensor]:
        """Return the embeddings too: they may collapse while the features still differ."""
        training = self.head.training
        embedded = self.head.eval().network(features.to(self.device, torch.float32))
        self.head.train(training)
        return {"head": embedded}

    # --- several processes ---

    def place(self, images: Tensor) -> BatchPlace:
        """Return the place of `(B, ...)` images in the batch of all processes."""
        if not self._in_parallel():
            return BatchPlace((len(images),), 0)
        world, rank = dist.get_world_size(), dist.get_rank()
        if self.training:  # the loader gives all processes batches of one size
            return BatchPlace((len(images),) * world, rank)
        counts = images.new_zeros(world, dtype=torch.int64)
        dist.all_gather(list(counts), torch.tensor(len(images), device=images.device))
        return BatchPlace(tuple(counts.tolist()), rank)

    def everyone(self, embedded: Tensor, place: BatchPlace) -> Tensor:
        """Gather own embeddings `(V, B, D)` from all processes: `(V, N, D)`, with gradients."""
        if len(place.counts) == 1:
            return embedded
        padded = F.pad(embedded, (0, 0, 0, max(place.counts) - embedded.shape[1]))
        parts = zip(gather(padded.contiguous()), place.counts, strict=True)
        return torch.cat([part[:, :count] for part, count in parts], 1)

    def on_validation_start(self) -> None:
        """Agree on the batches in which all processes have images; only these may gather."""
        self._shared_batches = float(sum(self.trainer.num_val_batches))
        if dist.is_available() and dist.is_initialized():
            fewest = torch.tensor(self._shared_batches, device=self.device)
            dist.all_reduce(fewest, dist.ReduceOp.MIN)
            self._shared_batches = float(fewest)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._alone = batch_idx >= self._shared_batches

    def _in_parallel(self) -> bool:
        return dist.is_available() and dist.is_initialized() and (self.training or not self._alone)

    # --- the picture ---

    def panel(self, images: Tensor) -> Panel:
        """Show two views of each image, whether they are each other's nearest, and their cosine."""
        place = BatchPlace((len(images),), 0)  # only one process draws panels
        views = self.views(images, place, generator("panel", device=images.device))[:2]
        first, second = F.normalize(self.embed(views), dim=2)
        cosines = first @ second.T  # (B, B)
        right = (cosines.argmax(1) == torch.arange(len(images), device=images.device)).tolist()
        text = [["", "", f"cosine {cosine:.2f}"] for cosine in cosines.diagonal().tolist()]
        columns = ["image", "first view", "second view"]
        pictures = torch.stack([to_float(images), *(enlarged(view, images) for view in views)], 1)
        return Panel(pictures, columns, text, [[None, None, hit] for hit in right])


def enlarged(views: Tensor, images: Tensor) -> Tensor:
    """Show views `(B, C, h, w)` at the size of the images `(B, C, H, W)`: `(B, C, H, W)`."""
    return F.interpolate(views, images.shape[2:])


def two_or_more(embedded: Tensor) -> Tensor:
    """Double a single image of `(2, N, D)`, the last one of a validation, so that it has a deviation."""
    return embedded if embedded.shape[1] > 1 else embedded.expand(-1, 2, -1)
