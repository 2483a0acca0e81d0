"""Masked autoencoder: predict the hidden patches of an image (MAE: He et al. 2022)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.mae_decoder import MAEDecoder
from ssl_lightning.networks.vit import SmallViT
from ssl_lightning.ops.image_quality import masked_mse, psnr
from ssl_lightning.ops.tokens import draw_masking, from_patches, to_patches
from ssl_lightning.tasks.base import Panel, PretextTask

EPS = 1e-6  # added to the variance of a patch
HIDDEN_GREY = 0.5  # of hidden patches in pictures


class MAE(PretextTask):
    """Predict the pixels of hidden patches from the visible ones.

    The backbone, a vision transformer, encodes only the visible tokens. A small decoder sees them at their
    places, with a learned token at each hidden place. The loss is the squared error over the hidden patches.

    Args:
        backbone: A transformer of `create_small_vit` (`backbone=vit_tiny_small_images`).
        spec: Shape and statistics of the images, of a size that patches divide.
        mask_ratio: Share of the tokens that is hidden, above 0 and below 1 (paper: 0.75).
        normalise_targets: Standardise each patch by its own mean and deviation before it is predicted
            (paper, sec. 4.1). A constant answer then has a loss of about 1. False: the data set's are used.
        decoder_width: Size of a token of the decoder, a multiple of 4 and of `decoder_heads`.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of these blocks.
        **base: The keywords of `PretextTask`.

    Raises:
        ValueError: The backbone is no such transformer, patches do not divide the images, or a number is out
            of range.
    """

    recordable = True
    default_optimizer = (torch.optim.AdamW, {"lr": 0.002, "weight_decay": 0.05})

    backbone: SmallViT

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        mask_ratio: float = 0.75,
        normalise_targets: bool = True,
        decoder_width: int = 96,
        decoder_depth: int = 2,
        decoder_heads: int = 3,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if not isinstance(self.backbone, SmallViT):
            raise ValueError(
                "task=mae leaves tokens out of the backbone, which only SmallViT can do, and the backbone is "
                f"{self.origin.kind}; use backbone=vit_tiny_small_images"
            )
        if not 0 < mask_ratio < 1:
            raise ValueError(f"task.mask_ratio is {mask_ratio}; allowed are above 0 to below 1")
        if (
            min(decoder_width, decoder_depth, decoder_heads) < 1
            or decoder_width % 4
            or decoder_width % decoder_heads
        ):
            raise ValueError(
                f"task.decoder_width is {decoder_width}, decoder_depth {decoder_depth} and decoder_heads "
                f"{decoder_heads}; all must be at least 1, and the width a multiple of 4 and of the heads"
            )
        self.mask_ratio, self.normalise_targets = mask_ratio, normalise_targets
        self._make_decoder = partial(
            MAEDecoder, width=decoder_width, depth=decoder_depth, heads=decoder_heads
        )
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        self.patch = self.backbone.feature_info.reduction()[-1]
        if spec.image_size % self.patch:
            raise ValueError(
                f"data.image_size is {spec.image_size} px, which patches of {self.patch} px do not divide; "
                f"set data.image_size={-(-spec.image_size // self.patch) * self.patch}"
            )
        self.tokens = (spec.image_size // self.patch) ** 2
        self.visible = int(self.tokens * (1 - self.mask_ratio))
        if self.visible < 1:
            raise ValueError(
                f"task.mask_ratio is {self.mask_ratio}, which hides all {self.tokens} tokens of an image; "
                "lower it, or raise data.image_size"
            )
        numbers = spec.channels * self.patch**2
        self.decoder = self._make_decoder(self.backbone.feature_info.channels()[-1], numbers)

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        masking = draw_masking(len(images), self.tokens, self.visible, stream)
        x = self.normalise(images)
        predicted = self.predict(x, masking.keep, masking.restore)  # (B, T, N)
        target, _, _ = self.targets(x)
        hidden, count = masking.hidden, len(images) * (self.tokens - self.visible)

        def over_hidden(error: Tensor) -> Tensor:  # (B, T, N) -> scalar
            return (error.square().mean(2) * hidden).sum() / count

        return {"loss": over_hidden(predicted - target), "constant_loss": over_hidden(target)}

    def predict(self, x: Tensor, keep: Tensor, restore: Tensor) -> Tensor:
        """Encode the visible tokens of normalised images, and predict all patches, `(B, T, N)` float32."""
        return self.decoder(self.backbone(x, keep)[-1], restore).float()

    def targets(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut normalised images into the patches to predict.

        Returns:
            The patches `(B, T, N)`, and the shift and scale that they lack, each `(B, T, 1)`.
        """
        patches = to_patches(x, self.patch)
        if not self.normalise_targets:
            zero = patches.new_zeros(*patches.shape[:2], 1)
            return patches, zero, zero + 1
        variance, mean = torch.var_mean(patches, 2, keepdim=True)
        scale = (variance + EPS).sqrt()
        return (patches - mean) / scale, mean, scale

    def panel(self, images: Tensor) -> Panel:
        """Show the visible patches, the image with the predicted ones, and the original.

        With `normalise_targets` the predicted patches get the mean and the deviation of the true ones.
        """
        stream = generator("panel", device=images.device)  # the same patches in every epoch
        masking = draw_masking(len(images), self.tokens, self.visible, stream)
        x = self.normalise(images)
        _, shift, scale = self.targets(x)
        predicted = self.predict(x, masking.keep, masking.restore) * scale + shift
        made = from_patches(predicted, images.shape[1], self.patch) * self.std + self.mean
        cells = masking.hidden[..., None].expand(-1, -1, self.patch**2)
        hidden = from_patches(cells, 1, self.patch)  # (B, 1, H, W)
        quality = psnr(masked_mse(made, images, hidden)).tolist()
        filled = torch.where(hidden, made.clamp(0, 1), images)
        pictures = [torch.where(hidden, HIDDEN_GREY, images), filled, images]
        text = [["", f"{db:.1f} dB where hidden", ""] for db in quality]
        return Panel(torch.stack(pictures, 1), ["masked", "reconstruction", "original"], text, watched=1)
