"""RankMe probe: effective ranks and spectrum of the features of pretraining images, without labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.messages import tell
from ssl_lightning.features.encode import ClassLabels, Features, encode
from ssl_lightning.ops.rank import effective_rank, lidar, spectral_slope
from ssl_lightning.probes.base import BackboneProbe, ProbeContext


class RankMeProbe(BackboneProbe):
    """Three measures of every stage, to compare runs of one backbone on the same data.

    - `rankme`, the effective rank of the features (Garrido et al. 2023). A low rank means that the features
      have collapsed.
    - `alpha_req`, the decay of the eigenvalues of their covariance (Agrawal et al. 2022). The paper finds
      good features near 1; far above 1 few directions carry the features.
    - `lidar`, the effective rank of what tells images apart beyond the scatter of their augmented views
      (Thilak et al. 2023). The views are the training augmentation of the data. Without any there is no
      LiDAR, and a line says so.

    None is an accuracy, and stages of different widths are not comparable.

    Args:
        images: Number of unlabelled pretraining images, a fixed draw; the RankMe paper takes 25,600.
        pool: Stage maps are average-pooled to at most pool x pool cells.
        lidar_images: Number of images for LiDAR, a fixed draw. It should exceed the number of features.
        lidar_views: Number of views of each; 0 for no LiDAR.

    Raises:
        ValueError: A number is out of range.
    """

    targets = ("none",)
    selects = False

    def __init__(
        self, *, images: int = 25_600, pool: int = 1, lidar_images: int = 1000, lidar_views: int = 10
    ) -> None:
        for name, value in {"images": images, "lidar_images": lidar_images}.items():
            if value < 2:
                raise ValueError(f"probe.rankme.{name} is {value}; a rank needs at least 2")
        if pool < 1:
            raise ValueError(f"probe.rankme.pool is {pool}; it must be at least 1")
        if lidar_views < 0 or lidar_views == 1:
            raise ValueError(
                f"probe.rankme.lidar_views is {lidar_views}; allowed are 0 (no LiDAR) and 2 or more"
            )
        self.images, self.pool = images, pool
        self.lidar_images, self.lidar_views = lidar_images, lidar_views

    def run(self, context: ProbeContext) -> list[Record]:
        loaders = {"pretrain": ClassLabels(context.data.unlabelled(self.images))}
        views = [f"view {number}" for number in range(1, self.lidar_views + 1)]
        for view in views:
            loaders[view] = ClassLabels(context.data.augmented(self.lidar_images, view))
        features = encode(
            context.backbone,
            context.probe_input,
            loaders,
            [self.pool],
            precision=context.precision,
            device=context.device,
        )
        records = []
        for stage in features.stages:
            records += self._plain(features, stage)
            if views:
                records += self._lidar(features, stage, views)
        if views and not any(record.metric == "lidar" for record in records):
            tell("no LiDAR: the data do not augment training images, so all views of an image are equal")
        return records

    def _plain(self, features: Features, stage: str) -> list[Record]:
        """Return the measures of plain images; no slope if too few directions vary."""
        x = features.get("pretrain", stage, self.pool)
        rank, slope = effective_rank(x), spectral_slope(x)
        records = [self._record(features, stage, "rankme", rank, len(x), largest_possible=min(x.shape))]
        if not slope.isnan():
            records.append(self._record(features, stage, "alpha_req", slope, len(x)))
        return records

    def _lidar(self, features: Features, stage: str, views: list[str]) -> list[Record]:
        """Return the measure of augmented views; nothing if they are all equal."""
        x = torch.stack([features.get(view, stage, self.pool) for view in views], 1)  # (n, q, D)
        n, q, dims = x.shape
        if n < 2 or torch.equal(x, x[:, :1].expand_as(x)):
            return []
        extra = {"largest_possible": min(n - 1, dims), "views": q, "view": "training augmentation"}
        return [self._record(features, stage, "lidar", lidar(x), n, **extra)]

    def _record(
        self, features: Features, stage: str, metric: str, value: Tensor, n: int, **extra: Any
    ) -> Record:
        protocol = {
            "pool": list(features.grids[stage, self.pool]),
            "dims": features.dims(stage, self.pool),
            **extra,
            "heldout": None,
        }
        return Record(stage, metric, float(value), n, protocol, split="pretrain")
