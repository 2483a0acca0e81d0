"""RankMe probe: effective rank of the features of pretraining images, without labels."""

from __future__ import annotations

from ssl_lightning.artifacts.results import Record
from ssl_lightning.features.encode import ClassLabels, encode
from ssl_lightning.ops.rank import effective_rank
from ssl_lightning.probes.base import BackboneProbe, ProbeContext


class RankMeProbe(BackboneProbe):
    """Effective rank of every stage, to compare runs of one backbone on the same data (Garrido et al. 2023).

    The result is a rank from 1 to the number of features, not an accuracy. A low rank means that the features
    have collapsed. Ranks of stages with different widths are not comparable.

    Args:
        images: Number of unlabelled pretraining images, a fixed draw; the paper takes 25,600.
        pool: Stage maps are average-pooled to at most pool x pool cells.

    Raises:
        ValueError: A number is out of range.
    """

    targets = ("none",)
    selects = False

    def __init__(self, *, images: int = 25_600, pool: int = 1) -> None:
        if images < 2:
            raise ValueError(f"probe.rankme.images is {images}; a rank needs at least 2")
        if pool < 1:
            raise ValueError(f"probe.rankme.pool is {pool}; it must be at least 1")
        self.images, self.pool = images, pool

    def run(self, context: ProbeContext) -> list[Record]:
        features = encode(
            context.backbone,
            context.probe_input,
            {"pretrain": ClassLabels(context.data.unlabelled(self.images))},
            [self.pool],
            precision=context.precision,
            device=context.device,
        )
        records = []
        for stage in features.stages:
            x = features.get("pretrain", stage, self.pool)
            protocol = {
                "pool": list(features.grids[stage, self.pool]),
                "dims": x.shape[1],
                "largest_possible": min(x.shape),
                "heldout": None,
            }
            records.append(
                Record(stage, "rankme", float(effective_rank(x)), len(x), protocol, split="pretrain")
            )
        return records
