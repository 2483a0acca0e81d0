"""RankMe: the effective rank of the features of pretraining images. Needs no labels at all."""

from __future__ import annotations

from ssl_lightning.artifacts.results import Record
from ssl_lightning.features.encode import class_labels, encode
from ssl_lightning.ops.rank import effective_rank
from ssl_lightning.probes.base import BackboneProbe, Setting


class RankMeProbe(BackboneProbe):
    """Effective rank of every stage, for comparing runs of one backbone on the same data (Garrido et al. 2023).

    A rank, from 1 to the number of features, and no accuracy: a low one says that the features have
    collapsed. Stages of different width cannot be compared by it.

    Args:
        images: Unlabelled pretraining images, always the same; the paper takes 25,600.
        pool: Stage maps are averaged to at most pool x pool cells.

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

    def run(self, setting: Setting) -> list[Record]:
        features = encode(
            setting.backbone,
            setting.feed,
            {"pretrain": class_labels(setting.data.unlabelled(self.images))},
            [self.pool],
            precision=setting.precision,
            device=setting.device,
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
