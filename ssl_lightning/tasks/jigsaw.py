"""Jigsaw puzzles (context-free network: Noroozi, Favaro 2016)."""

from __future__ import annotations

import logging
import os
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.heads import SequenceClassifier, TileEmbedding, check_tile_size
from ssl_lightning.ops.patches import (
    cut_tiles,
    draw_corners,
    permute_tiles,
    place_tiles,
    regular_corners,
    shift_channels,
)
from ssl_lightning.ops.permutations import permutation_set
from ssl_lightning.ops.tile_grid import jigsaw_grid
from ssl_lightning.ops.tile_guards import grey_scale, standardise_tiles
from ssl_lightning.tasks._pixels import white_of
from ssl_lightning.tasks._tiles import check_on, encode_tiles
from ssl_lightning.tasks.base import Panel, PretextTask

log = logging.getLogger(__name__)


class Jigsaw(PretextTask):
    """Predict in which of a fixed set of orders the tiles of an image appear.

    The backbone sees each tile once, and only the head sees the orders. A transformer may see the tiles of an
    image together: their tokens then attend to each other, without positions that tell the tiles apart.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        on: "tiles" encodes each tile alone. "tokens" encodes the tiles of an image together; it needs a
            transformer of `create_small_vit` (`backbone=vit_tiny_small_images`).
        grid: Tiles along an edge; n = grid squared.
        cell: Size in pixels of the cell that holds a tile; None: image_size // grid (255 px: 85, 64: 21,
            32: 10).
        tile: Size of a tile in pixels; None: three quarters of the cell, rounded up (64, 16, 8).
        permutations: Number of orders (paper: 64, 100, 1000).
        method: "minimum" or "mean", see `permutation_set`.
        cache_dir: Folder that caches the set of orders for later runs; None disables the cache.
        permutations_per_image: Number of different orders per image.
        embedding: Dimension of the embedding of a tile.
        hidden: Hidden units of the head; 0 for none.
        gap: Guard: each tile lies at a random place in its cell. False: tiles touch, edges continue.
        standardise: Guard: each tile gets mean 0 and deviation 1. False uses the statistics of the data set.
        grey: Guard: probability that an image becomes grey.
        channel_jitter: Guard: maximum shift in pixels of the channels of a tile. None takes tile // 32: 2 at
            64 px, and 0 for small tiles, which do not show lens errors.
        **base: The keywords of `PretextTask`.

    Raises:
        ValueError: A value is out of range, a tile is smaller than the stride of the backbone, or the
            backbone has no tokens.
    """

    recalibrate = True
    recordable = True
    guards = MappingProxyType(
        {
            "gap": {"gap": False},
            "standardise": {"standardise": False},
            "grey": {"grey": 0.0},
            "channel_jitter": {"channel_jitter": 0},
        }
    )

    orders: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        on: str = "tiles",
        grid: int = 3,
        cell: int | None = None,
        tile: int | None = None,
        permutations: int = 64,
        method: str = "minimum",
        cache_dir: str | os.PathLike[str] | None = None,
        permutations_per_image: int = 8,
        embedding: int = 128,
        hidden: int = 512,
        gap: bool = True,
        standardise: bool = True,
        grey: float = 0.3,
        channel_jitter: int | None = None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        check_on(on, self.backbone, self.origin.kind)
        if not 0 <= grey <= 1:
            raise ValueError(f"task.grey is {grey}; allowed are probabilities, 0 to 1")
        if not 1 <= permutations_per_image <= permutations:
            raise ValueError(
                f"task.permutations_per_image is {permutations_per_image}; allowed are 1 to {permutations}, "
                "the number of task.permutations"
            )
        if embedding < 1 or hidden < 0:
            raise ValueError(
                f"task.embedding is {embedding} and task.hidden {hidden}; allowed: >= 1 and >= 0"
            )
        self.on, self.permutations_per_image = on, permutations_per_image
        self.standardise, self.grey = standardise, grey
        self._make_grid = partial(jigsaw_grid, side=grid, cell=cell, tile=tile, gap=gap)
        self._make_orders = partial(permutation_set, size=permutations, method=method, cache_dir=cache_dir)
        self._jitter, self._widths = channel_jitter, (embedding, hidden)
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        self.grid = self._make_grid(spec.image_size)
        check_tile_size(self.backbone, self.grid.tile, spec.image_size)
        jitter = self.grid.tile // 32 if self._jitter is None else self._jitter
        if not 0 <= jitter < self.grid.tile:
            raise ValueError(f"task.channel_jitter is {jitter} px; allowed are 0 to {self.grid.tile - 1}")
        self.channel_jitter = jitter
        self.views_per_image = self.grid.count
        self.permutations = self._make_orders(self.grid.count)
        # (P, n); in the checkpoint, because they define the classes
        self.register_buffer("orders", self.permutations.orders)
        self.chance = 1 / len(self.orders)
        embedding, hidden = self._widths
        self.embed = TileEmbedding(self.backbone, embedding)
        self.head = SequenceClassifier(self.grid.count, embedding, hidden, len(self.orders))

    def receive(self, images: Tensor) -> Tensor:
        return images  # keep bytes; only the tiles become floats

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        corners = draw_corners(self.grid, len(images), stream)
        tiles = self.prepare(self.cut(images, corners, stream), white_of(images))  # (B, n, C, t, t)
        order = self.draw_orders(len(images), stream)  # (B, P)
        logits = self.score(self.encode(tiles), order)  # (B * P, K)
        order = order.flatten()
        return {
            "loss": F.cross_entropy(logits, order),
            "acc": (logits.argmax(1) == order).float().mean(),
        }

    def cut(self, images: Tensor, corners: Tensor, stream: torch.Generator) -> Tensor:
        """Cut tiles at `(B, n, 2)` places as floats of the same range, with random grey and shifts."""
        if self.channel_jitter and self.spec.channels > 1:
            last = self.spec.image_size - self.grid.tile
            corners = shift_channels(corners, self.spec.channels, self.channel_jitter, last, stream)
        tiles = cut_tiles(images, corners, self.grid.tile, torch.float32)
        return grey_scale(tiles, self.grey, stream, inplace=True)

    def prepare(self, tiles: Tensor, white: float = 1.0) -> Tensor:
        """Convert tiles `(B, n, C, t, t)`, floats from 0 to `white`, to backbone input in place."""
        if self.standardise:
            return standardise_tiles(tiles, white / 255, inplace=True)
        return tiles.sub_(self.mean * white).div_(self.std * white)

    def encode(self, tiles: Tensor) -> Tensor:
        """Embed every tile: `(B, n, C, t, t)` to `(B, n, E)`."""
        maps = encode_tiles(self.backbone, tiles, self.on, self.image_format)
        return self.embed(maps).unflatten(0, tiles.shape[:2])

    def score(self, embedded: Tensor, order: Tensor) -> Tensor:
        """Score the tiles `(B, n, E)` in the orders of classes `(B, P)`: logits `(B * P, K)`."""
        return self.head(permute_tiles(embedded, self.orders[order]).flatten(0, 1))

    def draw_orders(self, batch: int, stream: torch.Generator) -> Tensor:
        """Draw different classes of orders for each image: `(B, P)` int64."""
        scores = torch.rand(batch, len(self.orders), generator=stream, device=stream.device)
        return scores.argsort(dim=1)[:, : self.permutations_per_image]

    def probe_views(self, images: Tensor) -> Tensor:
        """Cut the tiles of plain images at regular places: `(B, n, C, t, t)`, unshuffled."""
        corners = regular_corners(self.grid, images.device).expand(len(images), -1, -1)
        return self.prepare(cut_tiles(images, corners, self.grid.tile))

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.trainer.is_global_zero:
            log.info("jigsaw: %s", self.permutations)

    def panel(self, images: Tensor) -> Panel:
        """Show the tiles in the image, in shuffled order, and in the predicted order."""
        stream = generator("panel", device=images.device)  # the same tiles in every epoch
        corners = draw_corners(self.grid, len(images), stream)
        tiles = self.cut(images, corners, stream)
        order = self.draw_orders(len(images), stream)[:, :1]  # (B, 1)
        probability = self.score(self.encode(self.prepare(tiles.clone())), order).softmax(1)
        confidence, answer = probability.max(1)
        places = regular_corners(self.grid, images.device).expand_as(corners)
        shuffled = permute_tiles(tiles, self.orders[order])[:, 0]  # (B, n, C, t, t)
        undone = permute_tiles(shuffled, self.orders[answer].argsort(1)[:, None])[:, 0]
        size, order = self.spec.image_size, order[:, 0]
        pictures = [
            place_tiles(tiles, corners, size, 1.0),
            place_tiles(shuffled, places, size, 1.0),
            place_tiles(undone, places, size, 1.0),
        ]
        text = [
            ["", self.name_order(truth), f"{said}, {sure:.2f}"]
            for truth, said, sure in zip(order.tolist(), answer.tolist(), confidence.tolist(), strict=True)
        ]
        right: list[list[bool | None]] = [[None, None, hit] for hit in (answer == order).tolist()]
        return Panel(torch.stack(pictures, 1), ["tiles", "shuffled", "put back"], text, right)

    def name_order(self, number: int) -> str:
        """Name an order by its class and its tiles, row by row: "7: 120 345 678"."""
        shown = self.orders[number].view(self.grid.side, -1).tolist()
        gap = "" if self.grid.count < 11 else ","
        return f"{number}: " + " ".join(gap.join(map(str, row)) for row in shown)
