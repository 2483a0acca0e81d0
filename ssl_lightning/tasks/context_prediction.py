"""Context prediction: predict the relative position of two patches (Doersch, Gupta, Efros 2015)."""

from __future__ import annotations

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
    draw_neighbours,
    place_tiles,
    regular_corners,
)
from ssl_lightning.ops.tile_grid import AROUND, CENTRE, NEIGHBOURS, neighbour_grid
from ssl_lightning.ops.tile_guards import (
    colour_projection,
    drop_colours,
    mix_colours,
    resample_tiles,
    resampling_table,
)
from ssl_lightning.tasks._pixels import white_of
from ssl_lightning.tasks._tiles import check_on, encode_tiles
from ssl_lightning.tasks.base import Panel, PretextTask

COLOURS = ("dropping", "projection")


class ContextPrediction(PretextTask):
    """Predict which of the eight neighbours of a centre patch another patch is.

    The backbone sees each patch alone and once; the head sees the centre beside one neighbour. A transformer
    may see both together: their tokens then attend to each other, without positions that tell them apart.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        on: "tiles" encodes each patch alone. "tokens" encodes the two patches of a pair together; it needs a
            transformer of `create_small_vit` (`backbone=vit_tiny_small_images`).
        pairs_per_image: 8 scores all neighbours of the centre, on tiles in one pass over 9 patches; fewer
            draws so many of them.
        tile: Size of a patch in pixels. None takes three quarters of a third of the image, rounded up
            (255 px: 64, 64: 16, 32: 8).
        gap: Guard: pixels between neighbours. None takes the rest of a third of the image (21, 5, 2). 0: off.
        jitter: Guard: maximum shift of each patch in each direction, at most gap / 2. None takes gap // 2.
            0: off.
        colours: Guard against lens errors: "projection" removes the green-magenta axis of each patch.
            "dropping" keeps one of its channels (slower to learn, and less like the probed images). None
            leaves the colours. No effect on grey images.
        downsample: Guard: probability that a patch is shrunk and enlarged again (paper: 0.33). 0: off.
        downsample_to: Smallest size of a shrunk patch. None scales the paper's 10 of 96 px, at least 4 px.
        embedding: Dimension of the embedding of a patch.
        hidden: Hidden units of the head; 0 for none.
        **base: The keywords of `PretextTask`.

    Raises:
        ValueError: A value is out of range, a patch is smaller than the stride of the backbone, or the
            backbone has no tokens.
    """

    recalibrate = True
    recordable = True
    chance = 1 / len(NEIGHBOURS)
    guards = MappingProxyType(
        {
            "gap": {"gap": 0, "jitter": 0},
            "jitter": {"jitter": 0},
            "colours": {"colours": None},
            "downsample": {"downsample": 0.0},
        }
    )

    around: Tensor
    table: Tensor
    projection: Tensor
    offset: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        on: str = "tiles",
        pairs_per_image: int = 8,
        tile: int | None = None,
        gap: int | None = None,
        jitter: int | None = None,
        colours: str | None = "projection",
        downsample: float = 0.33,
        downsample_to: int | None = None,
        embedding: int = 128,
        hidden: int = 512,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        check_on(on, self.backbone, self.origin.kind)
        if not 1 <= pairs_per_image <= len(NEIGHBOURS):
            raise ValueError(f"task.pairs_per_image is {pairs_per_image}; allowed are 1 to {len(NEIGHBOURS)}")
        if colours is not None and colours not in COLOURS:
            raise ValueError(f"task.colours is {colours!r}; allowed are {', '.join(COLOURS)} and null")
        if not 0 <= downsample <= 1:
            raise ValueError(f"task.downsample is {downsample}; allowed are probabilities, 0 to 1")
        if embedding < 1 or hidden < 0:
            raise ValueError(
                f"task.embedding is {embedding} and task.hidden {hidden}; allowed: >= 1 and >= 0"
            )
        self.views_per_image = 2 * pairs_per_image if on == "tokens" else pairs_per_image + 1
        self.on, self.pairs_per_image = on, pairs_per_image
        self.colours, self.downsample = colours, downsample
        self._make_grid = partial(neighbour_grid, tile=tile, gap=gap, jitter=jitter)
        self._smallest, self._widths = downsample_to, (embedding, hidden)
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        self.grid = self._make_grid(spec.image_size)
        tile = self.grid.tile
        check_tile_size(self.backbone, tile, spec.image_size)
        smallest = min(tile, max(4, -(-10 * tile // 96))) if self._smallest is None else self._smallest
        if not 1 <= smallest <= tile:
            raise ValueError(
                f"task.downsample_to is {smallest} px; allowed are 1 to {tile}, the patch's size"
            )
        self.register_buffer("around", torch.tensor(AROUND), persistent=False)
        self.register_buffer("table", resampling_table(tile, smallest), persistent=False)
        mean, std = self.mean.flatten(), self.std.flatten()
        # one linear map: remove green-magenta, then standardise
        self.register_buffer("projection", colour_projection(len(std)) / std[:, None], persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)
        embedding, hidden = self._widths
        self.embed = TileEmbedding(self.backbone, embedding)
        self.head = SequenceClassifier(2, embedding, hidden, len(NEIGHBOURS))

    def receive(self, images: Tensor) -> Tensor:
        return images  # keep bytes; only the patches become floats

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        corners = draw_corners(self.grid, len(images), stream)  # (B, 9, 2)
        place = self.draw_places(len(images), stream)  # (B, P)
        patches = self.cut(images, corners, place)  # (B, 1 + P, C, t, t)
        patches = self.prepare(patches, stream, white_of(images))
        logits = self.score(patches)  # (B * P, 8)
        place = place.flatten()
        return {
            "loss": F.cross_entropy(logits, place),
            "acc": (logits.argmax(1) == place).float().mean(),
        }

    def draw_places(self, batch: int, stream: torch.Generator) -> Tensor:
        """Choose different neighbours of each image: `(B, P)` int64 in 0..7."""
        if self.pairs_per_image == len(NEIGHBOURS):
            return torch.arange(len(NEIGHBOURS), device=stream.device).expand(batch, -1)
        return draw_neighbours(batch, self.pairs_per_image, stream)

    def cut(self, images: Tensor, corners: Tensor, place: Tensor) -> Tensor:
        """Cut the centre and the neighbours at `(B, P)` places: `(B, 1 + P, C, t, t)`, as floats."""
        wanted = F.pad(self.around[place], (1, 0), value=CENTRE)  # (B, 1 + P)
        corners = corners.take_along_dim(wanted[..., None], 1)
        # the projection mixes channels per pixel; `drop_colours` works per channel
        channels_last = self.colours == "projection"
        return cut_tiles(images, corners, self.grid.tile, torch.float32, channels_last=channels_last)

    def prepare(self, patches: Tensor, stream: torch.Generator, white: float = 1.0) -> Tensor:
        """Convert patches `(B, n, C, t, t)`, floats from 0 to `white`, to backbone input; may modify them."""
        if self.downsample:
            patches = resample_tiles(patches, self.table, self.downsample, stream, inplace=True)
        if self.colours == "projection":  # linear like resampling, so the order does not matter
            return mix_colours(patches, self.projection / white, self.offset)
        patches = patches.sub_(self.mean * white).div_(self.std * white)
        return drop_colours(patches, stream) if self.colours == "dropping" else patches

    def encode(self, patches: Tensor) -> Tensor:
        """Embed every patch: `(B, n, C, t, t)` to `(B, n, E)`."""
        maps = encode_tiles(self.backbone, patches, self.on, self.image_format)
        return self.embed(maps).unflatten(0, patches.shape[:2])

    def score(self, patches: Tensor) -> Tensor:
        """Score the centre beside each neighbour: `(B, 1 + P, C, t, t)` to logits `(B * P, 8)`."""
        if self.on == "tokens":
            return self.head(self.encode(self.pair(patches)))
        return self.head(self.pair(self.encode(patches)))

    def pair(self, each: Tensor) -> Tensor:
        """Put the centre beside each neighbour: `(B, 1 + P, ...)` to `(B * P, 2, ...)`."""
        centre, neighbours = each[:, :1].expand_as(each[:, 1:]), each[:, 1:]
        return torch.stack([centre, neighbours], 2).flatten(0, 1)

    def probe_views(self, images: Tensor) -> Tensor:
        """Cut the patches of plain images at regular places: `(B, 9, C, t, t)`, in colour."""
        corners = regular_corners(self.grid, images.device).expand(len(images), -1, -1)
        return self.normalise(cut_tiles(images, corners, self.grid.tile))

    def panel(self, images: Tensor) -> Panel:
        """Show the patches, one pair as the backbone sees it, and the pair at the predicted place."""
        stream = generator("panel", device=images.device)  # the same patches in every epoch
        corners = draw_corners(self.grid, len(images), stream)
        place = draw_neighbours(len(images), 1, stream)  # (B, 1)
        pair = self.prepare(self.cut(images, corners, place), stream)  # (B, 2, C, t, t)
        confidence, answer = self.score(pair).softmax(1).max(1)
        shown = (pair * self.std + self.mean).clamp(0, 1)
        regular = regular_corners(self.grid, images.device)  # (9, 2)
        around, size, place = regular[list(AROUND)], self.spec.image_size, place[:, 0]

        def picture_of_pair(at: Tensor) -> Tensor:
            centre = regular[CENTRE].expand(len(at), 2)
            return place_tiles(shown, torch.stack([centre, around[at]], 1), size, 1.0)

        tiles = cut_tiles(images, corners, self.grid.tile)
        pictures = [place_tiles(tiles, corners, size, 1.0), picture_of_pair(place), picture_of_pair(answer)]
        text = [
            ["", NEIGHBOURS[truth], f"{NEIGHBOURS[said]}, {sure:.2f}"]
            for truth, said, sure in zip(place.tolist(), answer.tolist(), confidence.tolist(), strict=True)
        ]
        right: list[list[bool | None]] = [[None, None, hit] for hit in (answer == place).tolist()]
        return Panel(torch.stack(pictures, 1), ["patches", "pair", "as answered"], text, right)
