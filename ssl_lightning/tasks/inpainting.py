"""Inpainting (context encoder: Pathak, Krähenbühl, Donahue, Darrell, Efros 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.channelwise import ChannelwiseLinear
from ssl_lightning.networks.decoder import Decoder
from ssl_lightning.networks.features import deepest_map_size
from ssl_lightning.ops.image_quality import masked_mse, psnr
from ssl_lightning.ops.masks import block_masks, border_weights, centre_mask, fill, region_masks, square_masks
from ssl_lightning.tasks._adversarial import AdversarialTask, Attempt
from ssl_lightning.tasks.base import Panel

MASKS = ("center", "square", "blocks", "region", "none")
SEEN = (None, "image", "filling")  # by the discriminator
DRAWN = {"square": square_masks, "blocks": block_masks, "region": region_masks}


class Inpainting(AdversarialTask):
    """Fill in a removed part of an image.

    The backbone sees the image with the data set's mean colour in the hole. A bottleneck connects all
    places of the deepest stage, and a decoder predicts the full picture. The squared error covers the hole
    and a band around it, with weight 1 - adversarial_weight as in the paper.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        mask: "center" removes a square in the middle, "square" one at a random place, "blocks" four squares
            of half its side at random places, which may overlap. "region" removes a random shape of its area
            (sec. 3.3), which gives the paper's features. "none" removes nothing, and the squared error covers
            the full image: an autoencoder, the paper's control (table 2).
        hole: Side of that square in pixels; None: half the image, a quarter of its area, or with "none" all.
        discriminator_sees: "image" shows the discriminator the image with the filling in it, whose seam may
            give it away. "filling" shows the filling alone: cut out if all holes are the same square, else on
            the mean colour, and real pictures likewise. None: "filling" for "center", else "image".
        overlap: Width in pixels of the predicted band around the hole; None: hole // 16, like 4 of 64 in the
            paper (sec. 4).
        overlap_weight: Weight of the squared error in the band; in the hole it is 1.
        decoder_width: Channels of the decoder's last step.
        **base: The keywords of `AdversarialTask` and `PretextTask`.

    Raises:
        ValueError: A number or a name is out of range, or the hole does not fit the image.
    """

    def __init__(
        self,
        backbone: Any,
        spec: ImageSpec | None = None,
        *,
        mask: str = "region",
        hole: int | None = None,
        overlap: int | None = None,
        overlap_weight: float = 10.0,
        discriminator_sees: str | None = None,
        decoder_width: int = 32,
        **base: Any,
    ) -> None:
        if mask not in MASKS:
            raise ValueError(f"task.mask is {mask!r}; allowed are {', '.join(MASKS)}")
        if overlap_weight < 0:
            raise ValueError(f"task.overlap_weight is {overlap_weight}; it must be at least 0")
        if discriminator_sees not in SEEN:
            raise ValueError(
                f"task.discriminator_sees is {discriminator_sees!r}; allowed are image, filling and null"
            )
        super().__init__(backbone, **base)
        self.mask, self.overlap_weight = mask, overlap_weight
        self.sees_filling = (discriminator_sees or ("filling" if mask == "center" else "image")) == "filling"
        self._sizes, self._decoder_width = (hole, overlap), decoder_width
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        self.hole, self.overlap = self.find_hole(spec.image_size)
        super().build(spec)
        grid = deepest_map_size(self.backbone, spec.channels, spec.image_size)
        info: Any = self.backbone.feature_info
        self.bottleneck = ChannelwiseLinear(info.channels()[-1], grid)
        self.decoder = Decoder(self.backbone, spec.channels, width=self._decoder_width)

    def find_hole(self, image_size: int) -> tuple[int, int]:
        """Return the side of the hole and the width of the band around it, in pixels.

        Raises:
            ValueError: They do not fit the image.
        """
        hole, overlap = self._sizes
        if self.mask == "none":
            if hole is not None or overlap is not None:
                raise ValueError(
                    f"task.mask is 'none', which removes nothing; task.hole is {hole} and task.overlap "
                    f"{overlap}, and both must be null"
                )
            return image_size, 0
        hole = image_size // 2 if hole is None else hole
        smallest = 2 if self.mask == "blocks" else 1
        if not smallest <= hole < image_size:
            raise ValueError(
                f"task.hole is {hole} px; allowed are {smallest} to {image_size - 1}, less than "
                f"the image (data.image_size={image_size})"
            )
        overlap = hole // 16 if overlap is None else overlap
        if not 0 <= overlap <= (image_size - hole) // 2:
            raise ValueError(
                f"task.overlap is {overlap} px; allowed are 0 to {(image_size - hole) // 2}, the "
                f"margin of the image around task.hole={hole}"
            )
        return hole, overlap

    def fake_size(self, spec: ImageSpec) -> int:
        return self.hole if self.mask == "center" and self.sees_filling else spec.image_size

    def attempt(self, images: Tensor, stream: torch.Generator) -> Attempt:
        mask = self.draw_mask(len(images), stream)  # (B, 1, S, S), True in the hole
        real = self.normalise(images)
        seen = self.with_input_noise(self.normalise(self.corrupt(images, mask)), stream)
        made = self.restore(seen)  # (B, C, S, S), normalised
        weights = border_weights(mask, self.overlap, self.overlap_weight)
        error = masked_mse(made, real, weights).mean()
        scores = {"loss": (1 - self.adversarial_weight) * error} | self.measure(made, images, mask)
        return Attempt(scores, self.show(real, real, mask), self.show(made, real, mask))

    def draw_mask(self, batch: int, stream: torch.Generator) -> Tensor:
        """Draw the holes: `(B, 1, S, S)` bool; with "none", all pixels count as a hole that stays visible."""
        size = self.spec.image_size
        if self.mask == "none":
            return torch.ones(batch, 1, size, size, dtype=torch.bool, device=stream.device)
        if self.mask == "center":
            return centre_mask(batch, size, self.hole, stream.device)
        return DRAWN[self.mask](batch, size, self.hole, stream)

    def corrupt(self, images: Tensor, mask: Tensor) -> Tensor:
        """Paint the holes of images in [0, 1] in the mean colour; with "none", return them as they are."""
        return images if self.mask == "none" else fill(images, mask, self.mean)

    def restore(self, corrupted: Tensor) -> Tensor:
        """Predict the full picture from images with holes; both `(B, C, S, S)` normalised."""
        stages = self.backbone(corrupted)
        stages = [*stages[:-1], self.bottleneck(stages[-1])]
        return self.decoder(stages, corrupted.shape[2:]).float()

    def show(self, made: Tensor, real: Tensor, mask: Tensor) -> Tensor:
        """Cut or paste the filling for the discriminator: `(B, C, hole, hole)` or `(B, C, S, S)`."""
        if not self.sees_filling:
            return torch.where(mask, made, real)
        if self.mask != "center":
            return torch.where(mask, made, 0.0)  # 0 is the mean colour
        begin = (self.spec.image_size - self.hole) // 2
        inside = slice(begin, begin + self.hole)
        return made[..., inside, inside].contiguous(memory_format=self.image_format)

    @torch.no_grad()
    def measure(self, made: Tensor, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the error in the hole, and the PSNR of the mean colour as baseline."""
        error = masked_mse(self.to_pixels(made), images, mask)
        baseline = masked_mse(self.mean.expand_as(images), images, mask)
        return {
            "hole_mse": error.mean(),
            "hole_psnr": psnr(error).mean(),
            "mean_fill_psnr": psnr(baseline).mean(),
        }

    def panel(self, images: Tensor) -> Panel:
        mask = self.draw_mask(len(images), generator("panel", device=images.device))
        corrupted = self.corrupt(images, mask)
        made = self.to_pixels(self.restore(self.normalise(corrupted)))
        quality = psnr(masked_mse(made, images, mask)).tolist()
        pictures = [corrupted, torch.where(mask, made, images), images]
        text = [["", f"{db:.1f} dB in the hole", ""] for db in quality]
        return Panel(torch.stack(pictures, 1), ["corrupted", "restored", "original"], text, watched=1)
