"""PIRL: the same embedding for an image and for its shuffled tiles (Misra, van der Maaten 2020)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.heads import PooledClassifier, SequenceClassifier, check_tile_size
from ssl_lightning.networks.own_statistics import OwnStatistics
from ssl_lightning.ops.contrastive import info_nce
from ssl_lightning.ops.patches import cut_tiles, draw_corners, permute_tiles, place_tiles, regular_corners
from ssl_lightning.ops.tile_grid import jigsaw_grid
from ssl_lightning.tasks._pixels import to_float
from ssl_lightning.tasks._views import BatchPlace, ViewTask, enlarged
from ssl_lightning.tasks.base import Panel


class PIRL(ViewTask):
    """Find the image that shuffled tiles come from: jigsaw as a view, not as a question.

    Three views are made of each image. The embedding of the first is its key. The second view has to find its
    key among the keys of all images of the batch, and so have the tiles of the third, in a random order. The
    loss is the sum of both, of which the tiles have the share `tiles_weight`.

    In the paper, the keys are moving averages of the embeddings of 32,000 images, kept in a memory bank, and
    the loss is noise-contrastive. Here the images of the batch take their place, with the cross-entropy over
    their keys: there is no bank, and large batches help. Tiles have batch-norm statistics of their own.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        tiles_weight: Share of the loss that the tiles get, 0 to 1 (paper: lambda, 0.5).
        temperature: Divides the cosine similarities (paper: 0.07).
        grid: Tiles along an edge; n = grid squared (paper: 3).
        hidden: Size of the embedding of a tile (paper: 128).
        embedding: Size of the embedding of a view, and of all tiles of an image (paper: 128).
        **base: The keywords of `ViewTask`, for the views, and of `PretextTask`.

    Raises:
        ValueError: A number is out of range, or the tiles are too small for the backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        tiles_weight: float = 0.5,
        temperature: float = 0.07,
        grid: int = 3,
        hidden: int = 128,
        embedding: int = 128,
        **base: Any,
    ) -> None:
        super().__init__(backbone, hidden=hidden, embedding=embedding, **base)
        if not 0 <= tiles_weight <= 1:
            raise ValueError(f"task.tiles_weight is {tiles_weight}; allowed are 0 to 1, a share of the loss")
        if temperature <= 0:
            raise ValueError(f"task.temperature is {temperature}; it must be above 0")
        self.tiles_weight, self.temperature = tiles_weight, temperature
        self._make_grid = partial(jigsaw_grid, side=grid)
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        self.grid = self._make_grid(spec.image_size)
        check_tile_size(self.backbone, self.grid.tile, spec.image_size)
        self.views_per_image = 2 + self.grid.count
        self.tile_head = PooledClassifier(self.backbone, self.hidden)
        self.join = SequenceClassifier(self.grid.count, self.hidden, 0, self.embedding)
        self.tile_statistics = OwnStatistics(self.backbone)

    def projector(self, channels: int) -> nn.Module:
        return nn.Linear(channels, self.embedding)

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        place = self.place(images)
        views, tiles, order = self.make_inputs(images, place, stream)
        own, query = self.embed(views)  # (B, D) each
        keys = self.everyone(own[None], place)[0]  # (N, D)
        find = partial(info_nce, keys=keys, first=place.first, temperature=self.temperature)
        of_tiles, accuracy = find(self.embed_tiles(tiles, order))
        of_view, _ = find(query)
        loss = self.tiles_weight * of_tiles + (1 - self.tiles_weight) * of_view
        return {"loss": loss, "tiles_loss": of_tiles, "view_loss": of_view, "acc": accuracy}

    def make_inputs(
        self, images: Tensor, place: BatchPlace, stream: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make two views of `(B, C, H, W)` images, and the tiles of another view.

        Returns:
            Views `(2, B, C, H, W)`, tiles `(B, n, C, t, t)` row by row, and their random orders `(B, n)`.
        """
        views = self.crops(images, place, stream, 2, self.strengths)
        (whole,) = self.crops(images, place, stream, 1, self.strengths, self.spec.image_size)
        own = slice(place.first, place.first + len(images))
        corners = draw_corners(self.grid, place.total, stream)[own]
        scores = torch.rand(place.total, self.grid.count, generator=stream, device=stream.device)
        return views, cut_tiles(whole, corners, self.grid.tile), scores.argsort(1)[own]

    def embed_tiles(self, tiles: Tensor, order: Tensor) -> Tensor:
        """Embed the tiles `(B, n, C, t, t)` of each image in an order `(B, n)`: `(B, D)` float32."""
        with self.tile_statistics.used_by(self.backbone):
            each = self.tile_head(self.backbone(self.inputs(tiles))).unflatten(0, tiles.shape[:2])
        return self.join(shuffled(each, order)).float()

    def panel(self, images: Tensor) -> Panel:
        """Show a view of each image, the shuffled tiles of another, and whether they find it."""
        place = BatchPlace((len(images),), 0)  # only one process draws panels
        stream = generator("panel", device=images.device)
        views, tiles, order = self.make_inputs(images, place, stream)
        keys = F.normalize(self.embed(views[:1])[0], dim=1)
        cosines = F.normalize(self.embed_tiles(tiles, order), dim=1) @ keys.T  # (B, B)
        right = (cosines.argmax(1) == torch.arange(len(images), device=images.device)).tolist()
        places = regular_corners(self.grid, images.device).expand(len(images), -1, -1)
        puzzle = place_tiles(shuffled(tiles, order), places, self.spec.image_size, 1.0)
        text = [["", "", f"cosine {cosine:.2f}"] for cosine in cosines.diagonal().tolist()]
        pictures = torch.stack([to_float(images), enlarged(views[0], images), puzzle], 1)
        return Panel(
            pictures, ["image", "view", "shuffled tiles"], text, [[None, None, hit] for hit in right]
        )


def shuffled(tiles: Tensor, order: Tensor) -> Tensor:
    """Put the tiles `(B, n, ...)` of each image, or their embeddings, into an order `(B, n)`."""
    return permute_tiles(tiles, order[:, None])[:, 0]
