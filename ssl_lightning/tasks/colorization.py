"""Colorization: predict colour from lightness (Zhang et al. 2016; Larsson et al. 2016)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.progress import watched
from ssl_lightning.data.io.contents import NOTED, grey_images
from ssl_lightning.networks.decoder import Decoder
from ssl_lightning.networks.recipes import input_channels
from ssl_lightning.ops.ab_bins import (
    annealed_mean,
    candidate_table,
    gamut_bins,
    rebalancing_weights,
    smooth_prior,
    soft_encode,
)
from ssl_lightning.ops.ab_prior import AbStatistics, cached_statistics, pixels, shrink
from ssl_lightning.ops.lab import lab_to_rgb, rgb_to_lab
from ssl_lightning.tasks._batches import first_images
from ssl_lightning.tasks._pixels import to_float
from ssl_lightning.tasks.base import Panel, PretextTask

TARGETS = ("bins", "l2")
FINEST = 4  # default image size over the size of the prediction (paper: 4)
CHECKED = 64  # pretraining images that are checked for colours
LIGHTNESS = 50.0  # mean and half the range of L
FARTHEST = 150.0  # ab distance at which the curve of accuracies ends (paper, sec. 3.1)

log = logging.getLogger(__name__)


class Colorization(PretextTask):
    """Predict the colours of an image from its lightness, L of CIE Lab; the backbone never sees colours.

    The task measures the colours of the data set before the first step and keeps them in the checkpoint.

    Args:
        backbone: The backbone; if it takes several channels, all get L.
        spec: Shape and statistics of the images, which must have colours.
        target: "bins" classifies each pixel's ab into bins of the gamut, with higher weights for rare colours
            (Zhang et al.); "l2" regresses ab.
        grid: Spacing of the bins in Lab units; 10 gives the authors' 313.
        neighbours: Number of bins that share a colour as soft labels.
        sigma: Deviation in Lab units of the Gaussian of the soft labels; also smooths the prior.
        rebalance: lambda of the weights 1 / ((1 - lambda) p + lambda / Q), above 0; 1 switches them off.
        temperature: Temperature of the annealed mean that turns predicted bins into a colour.
        reduction: Image size over the size of the prediction. None takes the stride of the backbone, at most
            4.
        width: Channels of the decoder's last step.
        skips: Whether the decoder also sees shallower stages.
        prior_images: Number of pretraining images for the colour statistics; all if there are fewer.
        cache_dir: Folder that caches the statistics for later runs; None disables the cache.
        **base: The keywords of `PretextTask`.

    Raises:
        ValueError: The images are grey, or a value is out of range.
    """

    recordable = True
    default_optimizer = (torch.optim.AdamW, {"lr": 0.002, "weight_decay": 0.05})

    bins: Tensor
    candidates: Tensor
    prior: Tensor
    weights: Tensor
    ab_mean: Tensor
    ab_std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        target: str = "bins",
        grid: int = 10,
        neighbours: int = 5,
        sigma: float = 5.0,
        rebalance: float = 0.5,
        temperature: float = 0.38,
        reduction: int | None = None,
        width: int = 64,
        skips: bool = False,
        prior_images: int = 2000,
        cache_dir: str | os.PathLike[str] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if target not in TARGETS:
            raise ValueError(f"task.target is {target!r}; allowed are {' and '.join(TARGETS)}")
        if not 0 < rebalance <= 1:
            raise ValueError(
                f"task.rebalance is {rebalance}; allowed are above 0, to 1, which switches it off"
            )
        if sigma <= 0 or temperature <= 0:
            raise ValueError(f"task.sigma is {sigma} and task.temperature {temperature}; both must be > 0")
        if prior_images < 1:
            raise ValueError(f"task.prior_images is {prior_images}; it must be at least 1")
        bins = gamut_bins(grid)
        if not 1 <= neighbours <= len(bins):
            raise ValueError(f"task.neighbours is {neighbours}; allowed are 1 to {len(bins)}, all bins")
        self.target, self.neighbours, self.sigma = target, neighbours, sigma
        self.rebalance, self.temperature = rebalance, temperature
        self.prior_images, self.cache_dir = prior_images, cache_dir
        info: Any = self.backbone.feature_info
        stride = info.reduction()[-1]
        self.reduction = min(stride, FINEST) if reduction is None else reduction
        self.repeats = input_channels(self.backbone) or 1  # channels of the backbone that all get L
        self._grid = grid
        outputs = len(bins) if target == "bins" else 2
        self._make_decoder = partial(
            Decoder, out_channels=outputs, reduction=self.reduction, width=width, skips=skips
        )
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        if spec.channels != 3:
            raise ValueError(
                f"colorization needs images with colours, and data.channels is {spec.channels}; choose other "
                "data, or set data.channels=3 if the files have colours"
            )
        bins = gamut_bins(self._grid)
        self.decoder = self._make_decoder(self.backbone)
        self.register_buffer("bins", bins, persistent=False)  # (Q, 2)
        self.register_buffer(
            "candidates", candidate_table(bins, self._grid, self.neighbours), persistent=False
        )
        # statistics of the data, set by `setup`
        self.register_buffer("prior", torch.full((len(bins),), 1 / len(bins)))
        self.register_buffer("weights", torch.ones(len(bins)))
        self.register_buffer("ab_mean", torch.zeros(2))
        self.register_buffer("ab_std", torch.ones(()))

    @classmethod
    def backbone_channels(cls, spec: ImageSpec) -> int:
        return 1

    def check_images(self, sample: Callable[[int], Tensor]) -> None:
        images = sample(CHECKED)
        grey, count = int(grey_images(images).sum()), len(images)
        if grey == count:
            raise ValueError(
                f"colorization needs images with colours, and all {count} sampled pretraining images are "
                "grey; choose another task or other data"
            )
        if grey > NOTED * count:
            rank_zero_warn(
                f"{grey} of {count} sampled pretraining images are grey; they teach colorization to "
                "predict grey"
            )

    def input_config(self) -> dict[str, Any]:
        scale = [LIGHTNESS] * self.repeats
        return {"image_size": self.spec.image_size, "colour": "L", "mean": scale, "std": scale}

    def setup(self, stage: str) -> None:
        """Measure the colours of the pretraining images; a restored checkpoint overwrites them."""
        super().setup(stage)
        if stage != "fit":
            return
        trainer: Any = self.trainer
        data, count = trainer.datamodule, self.prior_images
        if hasattr(data, "pretrain_batches"):
            sample, count = data.train_sample, min(count, data.pretrain_batches * data.batch_size)
        else:
            sample = partial(first_images, self.training_loader())
        self.check_images(lambda n: sample(min(n, count)))
        with watched(f"measure the colours of {count:,} images"):
            found = cached_statistics(
                sample, count, self.bins.cpu(), self.candidates.cpu(), self.reduction, self.cache_dir
            )
        found = trainer.strategy.broadcast(found)  # the processes may read other images
        self.use_statistics(found)
        if trainer.is_global_zero:
            log.info("colorization: %s", self.describe(found, count))

    def use_statistics(self, found: AbStatistics) -> None:
        """Set the prior, its weights and the scale of the regression from measured colours."""
        prior = smooth_prior(found.counts, self.bins.cpu(), self.sigma)
        self.prior.copy_(prior)
        self.weights.copy_(rebalancing_weights(prior, self.rebalance))
        self.ab_mean.copy_(found.mean)
        self.ab_std.fill_(max(found.std, 1.0))  # grey images have deviation 0

    def describe(self, found: AbStatistics, count: int) -> str:
        """Describe the measured colours in one line."""
        seen, all_bins = int((found.counts > 0).sum()), len(found.counts)
        a, b = found.mean.tolist()
        return f"{seen} of {all_bins} bins in {count} images; mean ab {a:.1f}, {b:.1f}; std {found.std:.1f}"

    def receive(self, images: Tensor) -> Tensor:
        return images  # `rgb_to_lab` takes bytes

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        lab = rgb_to_lab(images)
        predicted = self.predict(lab[:, :1])  # (N, Q) logits or (N, 2) standardised ab
        target = pixels(shrink(lab[:, 1:], self.reduction))  # (N, 2)
        if self.target == "bins":
            scores = self.score_bins(predicted, target)
        else:
            scores = self.score_ab(predicted, target)
        return scores if self.training else scores | self.quality(predicted, to_float(images), lab)

    def predict(self, lightness: Tensor) -> Tensor:
        """Predict the colours of L `(B, 1, H, W)` in 0..100: float32 rows, one per pixel at 1/reduction."""
        x = self.normalise_lightness(lightness)
        return pixels(self.decoder(self.backbone(x), tuple(lightness.shape[2:]))).float()

    def score_bins(self, logits: Tensor, ab: Tensor) -> dict[str, Tensor]:
        """Rebalanced cross-entropy with soft labels (eq. 2) of logits `(N, Q)` and colours `(N, 2)`.

        The best constant prediction is the rebalanced prior, because the weights make p w sum to 1.
        """
        near, share = soft_encode(
            ab, self.bins, self.candidates, neighbours=self.neighbours, sigma=self.sigma
        )
        weight = self.weights[near[:, 0]]  # (N,), of the nearest bin (eq. 3)
        constant = (self.prior * self.weights).log()
        return {
            "loss": -(weight * (share * logits.log_softmax(1).gather(1, near)).sum(1)).mean(),
            "constant_loss": -(weight * (share * constant[near]).sum(1)).mean(),
        }

    def score_ab(self, standardised: Tensor, ab: Tensor) -> dict[str, Tensor]:
        """Mean squared error in units of the data's variance; predicting the mean colour gives about 1."""
        truth = (ab - self.ab_mean) / self.ab_std
        return {"loss": F.mse_loss(standardised, truth), "constant_loss": truth.square().mean()}

    def colour(self, predicted: Tensor, shape: torch.Size) -> Tensor:
        """Convert the prediction for images of `shape` (B, C, H, W) to ab `(B, 2, H, W)`, in Lab units."""
        if self.target == "bins":
            ab = annealed_mean(predicted, self.bins, self.temperature)
        else:
            ab = predicted * self.ab_std + self.ab_mean  # (N, 2)
        height, width = (-(-size // self.reduction) for size in shape[2:])
        maps = ab.view(shape[0], height, width, 2).permute(0, 3, 1, 2)
        return F.interpolate(maps, tuple(shape[2:]), mode="bilinear")

    def quality(self, predicted: Tensor, images: Tensor, lab: Tensor) -> dict[str, Tensor]:
        """Compare the coloured images at full resolution with the originals, beside the mean colour.

        Returns:
            `ab_mse`: mean squared error of a and b in squared Lab units. `psnr`: of the RGB images in dB,
            mean over images. `auc`: area under the curve of the share of pixels within an ab distance, from 0
            to 150 (sec. 3.1). `mean_ab_mse`, `mean_ab_psnr`, `mean_ab_auc`: the same for the mean ab of the
            data.
        """
        predicted_ab = self.colour(predicted, images.shape)
        mean = self.ab_mean.view(1, 2, 1, 1).expand_as(predicted_ab)
        scores = {}
        for prefix, ab in (("", predicted_ab), ("mean_ab_", mean)):
            error = ab - lab[:, 1:]  # (B, 2, H, W)
            rgb = lab_to_rgb(torch.cat([lab[:, :1], ab], 1))
            rgb_mse = (rgb - images).square().mean((1, 2, 3)).clamp(min=1e-10)
            scores[f"{prefix or 'ab_'}mse"] = error.square().mean()
            scores[f"{prefix}psnr"] = -10 * rgb_mse.log10().mean()
            scores[f"{prefix}auc"] = (1 - error.norm(dim=1) / FARTHEST).clamp(min=0).mean()
        return scores

    def normalise_lightness(self, lightness: Tensor) -> Tensor:
        """Scale L `(B, 1, H, W)` from 0..100 to -1..1, the same in every channel of the backbone."""
        x = lightness / LIGHTNESS - 1
        if self.repeats > 1:
            x = x.expand(-1, self.repeats, -1, -1)
        return x.contiguous(memory_format=self.image_format)

    def check_channels(self) -> None:
        """All backbones fit, since L is repeated."""

    def probe_input(self, images: Tensor) -> Tensor:
        return self.normalise_lightness(rgb_to_lab(images)[:, :1])

    def panel(self, images: Tensor) -> Panel:
        """Show the input of the backbone, the coloured image, and the original."""
        lab = rgb_to_lab(images)
        grey = torch.zeros_like(lab[:, 1:])
        predicted_ab = self.colour(self.predict(lab[:, :1]), images.shape)
        pictures = [*(lab_to_rgb(torch.cat([lab[:, :1], ab], 1)) for ab in (grey, predicted_ab)), images]
        errors = [(ab - lab[:, 1:]).square().mean((1, 2, 3)).tolist() for ab in (grey, predicted_ab)]
        text = [[f"ab mse {g:.0f}", f"ab mse {s:.0f}", ""] for g, s in zip(*errors, strict=True)]
        return Panel(torch.stack(pictures, 1), ["grey", "coloured", "original"], text, watched=1)
