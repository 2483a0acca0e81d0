"""Super-resolution (SRGAN: Ledig et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.decoder import Decoder
from ssl_lightning.networks.pixel_shuffle import PixelShuffleHead
from ssl_lightning.networks.vgg import SMALLEST, VGGFeatures
from ssl_lightning.ops.resample import resize_bicubic
from ssl_lightning.tasks._adversarial import AdversarialTask, Attempt
from ssl_lightning.tasks.base import Panel

SCALES = (2, 4, 8)
INPUTS = ("enlarged", "small")
CONTENTS = ("discriminator", "vgg", None)


class SuperResolution(AdversarialTask):
    """Restore an image from a smaller version.

    The network's output is added to the bicubic enlargement. The backbone then only has to model the missing
    detail. The output starts at 0, so training starts at the bicubic baseline.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        scale: Factor of the shrinking, 2, 4 or 8, or several of them. Each training image then draws one
            (VDSR: Kim, Lee, Lee 2016), so that the backbone also sees sharper images. Validation and
            pictures have the largest.
        input: "enlarged" feeds the bicubic enlargement to the backbone, for backbones that shrink their
            input. "small" feeds the small image, as SRResNet does, and enlarges the stage map by pixel
            shuffle, for backbones that keep the size.
        content: Content loss: "discriminator" compares its stage maps of both pictures (feature matching,
            Salimans et al. 2016), and adds nothing without a discriminator. "vgg" compares maps of VGG19 as
            in the paper, which brings in the labels of ImageNet. None switches it off.
        content_weight: Weight of the content loss beside the squared pixel error (paper: 0.006 for VGG19,
            which is what maps divided by 12.75 have).
        vgg_weights: File of torchvision's VGG19; None downloads it.
        skips: Whether the decoder of "enlarged" also sees the shallow stages. The picture improves, but the
            detail can bypass the deep stages.
        decoder_width: Channels of that decoder's last step.
        **base: The keywords of `AdversarialTask` and `PretextTask`.

    Raises:
        ValueError: A number or a name is out of range, the scale does not divide the image, or the backbone
            does not fit the input.
    """

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        scale: int | Sequence[int] = 4,
        input: str = "enlarged",
        content: str | None = None,
        content_weight: float = 0.006,
        vgg_weights: str | None = None,
        skips: bool = False,
        decoder_width: int = 32,
        **base: Any,
    ) -> None:
        scales = list(scale) if isinstance(scale, Sequence) else [scale]
        if not scales or any(one not in SCALES for one in scales) or len(set(scales)) < len(scales):
            raise ValueError(f"task.scale is {scale}; allowed are 2, 4 and 8, or a list of some of them")
        if input not in INPUTS:
            raise ValueError(f"task.input is {input!r}; allowed are {', '.join(INPUTS)}")
        if content not in CONTENTS or content_weight < 0:
            raise ValueError(
                f"task.content is {content!r} and task.content_weight {content_weight}; allowed are "
                "discriminator, vgg and null, and 0 or more"
            )
        if input == "small" and len(scales) > 1:
            raise ValueError(
                f"task.scale is {scale}; task.input=small takes one, as task.scale={max(scales)}"
            )
        super().__init__(backbone, **base)
        *self.smaller_scales, self.scale = sorted(int(one) for one in scales)
        self.enlarged = input == "enlarged"
        self.content, self.content_weight = content, content_weight
        self._vgg_weights = vgg_weights
        self._make_decoder = partial(Decoder, width=decoder_width, skips=skips)
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        if spec.image_size % self.scale:
            larger = -(-spec.image_size // self.scale) * self.scale
            raise ValueError(
                f"task.scale is {self.scale}, which does not divide data.image_size={spec.image_size}; set "
                f"data.image_size to {larger - self.scale or larger} or {larger}"
            )
        if self.content == "vgg" and spec.image_size < SMALLEST:
            raise ValueError(
                f"task.content is vgg, which needs {SMALLEST} px; data.image_size is {spec.image_size}"
            )
        super().build(spec)
        self.head: Decoder | PixelShuffleHead
        if self.enlarged:
            self.head = self._make_decoder(self.backbone, spec.channels)
        else:
            self.head = PixelShuffleHead(self.backbone, spec.channels, self.scale)
        nn.init.zeros_(self.head.last.weight)
        nn.init.zeros_(self.head.last.bias)  # type: ignore[arg-type]
        # a tuple hides it from the module: it is not trained, and not in the checkpoints
        self.vgg: tuple[VGGFeatures, ...] = (VGGFeatures(self._vgg_weights),) if self.content == "vgg" else ()
        if self.vgg:
            self.labels_seen = "those of ImageNet, by VGG19 in the loss"

    def attempt(self, images: Tensor, stream: torch.Generator) -> Attempt:
        small, bicubic = self.degrade(images, self.scale)
        if self.training and self.smaller_scales:
            bicubic = self.draw_scales(images, bicubic, stream)
        real = self.normalise(images)
        seen = self.with_input_noise(self.input_of(small, bicubic), stream)
        made = self.restore(seen, bicubic)  # (B, C, S, S), normalised
        error = F.mse_loss(made, real)
        scores = {"loss": error, "pixel": error}
        extra = {"content": self.content_weight * self.vgg_loss(made, images)} if self.vgg else {}
        if not self.training:
            scores |= self.measure(self.to_pixels(made), bicubic, images)
        return Attempt(scores, real, made, extra)

    def degrade(self, images: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Shrink images `(B, C, S, S)` by the scale, and enlarge them again as baseline; both in [0, 1]."""
        small = resize_bicubic(images, self.spec.image_size // scale).clamp(0, 1)
        return small, resize_bicubic(small, self.spec.image_size).clamp(0, 1)

    def draw_scales(self, images: Tensor, bicubic: Tensor, stream: torch.Generator) -> Tensor:
        """Draw one of the scales for each image.

        Args:
            images: `(B, C, S, S)` in [0, 1].
            bicubic: Their enlargements from the largest scale, of the same shape.
            stream: Source of the draws.

        Returns:
            The enlargements `(B, C, S, S)` from the drawn scales.
        """
        others = [self.degrade(images, scale)[1] for scale in self.smaller_scales]
        enlarged = torch.stack([*others, bicubic])  # (scales, B, C, S, S)
        drawn = torch.randint(len(enlarged), (len(images),), generator=stream, device=images.device)
        return enlarged[drawn, torch.arange(len(images), device=images.device)]

    def input_of(self, small: Tensor, bicubic: Tensor) -> Tensor:
        """Return the input of the backbone, normalised, without noise."""
        return self.normalise(bicubic if self.enlarged else small)

    def restore(self, seen: Tensor, bicubic: Tensor) -> Tensor:
        """Predict the full picture, `(B, C, S, S)` float32 normalised.

        Args:
            seen: Input of the backbone.
            bicubic: The bicubic enlargement in [0, 1], to which the output is added.
        """
        base = self.normalise(bicubic)
        stages = self.backbone(seen.contiguous(memory_format=self.image_format))
        detail = self.head(stages, base.shape[2:]) if self.enlarged else self.head(stages)
        return base + detail.float()

    def vgg_loss(self, made: Tensor, images: Tensor) -> Tensor:
        """Squared error of VGG19's map of the picture, unclipped so that every pixel has a gradient."""
        vgg = self.vgg[0].to(images.device)
        with torch.no_grad():
            wanted = vgg(images)
        return F.mse_loss(vgg(made * self.std + self.mean).float(), wanted.float())

    def matching_loss(self, fake: list[Tensor], real: list[Tensor]) -> dict[str, Tensor]:
        if self.content != "discriminator":
            return {}
        errors = [F.mse_loss(x.float(), y.float()) for x, y in zip(fake, real, strict=True)]
        return {"content": self.content_weight * torch.stack(errors).mean()}

    def measure(self, made: Tensor, bicubic: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return PSNR in dB and SSIM, means over the images, of the output and of the bicubic enlargement."""
        found = {}
        with torch.autocast(images.device.type, enabled=False):
            for name, x in (("", made), ("bicubic_", bicubic)):
                found[f"{name}psnr"] = _psnr(x, images, "elementwise_mean")
                ssim = structural_similarity_index_measure(x, images, data_range=1.0)
                found[f"{name}ssim"] = cast(Tensor, ssim)
        return found

    def panel(self, images: Tensor) -> Panel:
        small, bicubic = self.degrade(images, self.scale)
        made = self.to_pixels(self.restore(self.input_of(small, bicubic), bicubic))
        blocky = small.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)
        text = [
            ["", f"{before:.1f} dB", f"{after:.1f} dB", ""]
            for before, after in zip(
                *(_psnr(x, images, "none").tolist() for x in (bicubic, made)), strict=True
            )
        ]
        return Panel(
            torch.stack([blocky, bicubic, made, images], 1),
            ["input", "bicubic", "output", "original"],
            text,
            watched=2,
        )


def _psnr(images: Tensor, originals: Tensor, reduction: Any) -> Tensor:
    return peak_signal_noise_ratio(images, originals, data_range=1.0, reduction=reduction, dim=(1, 2, 3))
