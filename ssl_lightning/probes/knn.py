"""k-nearest-neighbour probe (Wu et al. 2018, sec. 3.4): no training at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ssl_lightning.ops.knn import knn_scores, topk_accuracy
from ssl_lightning.probes.base import Features, Probe, Record


class KNNProbe(Probe):
    """Weighted cosine k-nearest neighbours on the average-pooled features of every stage; reports top-1.

    Every k and the temperature are in the record; none is chosen. The held-out figure, by which the best
    stage is named, has the training images as its bank; the test figure has train and held-out images.

    Args:
        ks: Numbers of neighbours.
        temperature: Votes weigh exp(cosine / temperature).
        pool: Side of the pooling grid.

    Raises:
        ValueError: A value is out of its range.
    """

    name = "knn"

    def __init__(self, ks: Sequence[int] = (20, 200), temperature: float = 0.07, pool: int = 1) -> None:
        if not ks or min(ks) < 1 or pool < 1:
            raise ValueError(f"probe.knn has ks {list(ks)} and pool {pool}; all must be at least 1")
        if temperature <= 0:
            raise ValueError(f"probe.knn.temperature is {temperature}; it must be above 0")
        self.ks, self.temperature, self.pool = list(ks), temperature, pool

    def check(self, counts: Mapping[str, int], num_classes: int) -> None:
        if max(self.ks) > counts["train"]:
            raise ValueError(
                f"probe.knn.ks asks for {max(self.ks)} neighbours, and there are {counts['train']} labelled "
                "training images; lower it (probe.knn.ks=[20])"
            )

    def run(self, features: Features, num_classes: int) -> list[Record]:
        records = []
        for stage in features.stages:
            bank, labels = features.labelled(self.pool, stage)
            train, heldout, test = features.train, features.heldout, features.test
            heldout_scores = knn_scores(
                heldout.flat(self.pool, stage),
                train.flat(self.pool, stage),
                train.labels,
                num_classes,
                self.ks,
                temperature=self.temperature,
            )
            scores = knn_scores(
                test.flat(self.pool, stage), bank, labels, num_classes, self.ks, temperature=self.temperature
            )
            chosen = topk_accuracy(heldout_scores, heldout.labels).tolist()
            values = topk_accuracy(scores, test.labels).tolist()
            for k, value, heldout_value in zip(self.ks, values, chosen, strict=True):
                protocol = {
                    "k": k,
                    "temperature": self.temperature,
                    "pool": self.pool,
                    "dimensions": bank.shape[1],
                    "selected_on": "heldout",
                    "heldout": heldout_value,
                    "labels_train": len(train.labels),
                    "labels_heldout": len(heldout.labels),
                }
                records.append(self.record(stage, "top1", value, len(test.labels), **protocol))
        return records
