"""kNN probe: weighted vote of the nearest labelled images, for every stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.messages import fitted
from ssl_lightning.core.progress import watched
from ssl_lightning.features.encode import Features
from ssl_lightning.ops.knn import knn_scores
from ssl_lightning.probes._accuracy import records_of
from ssl_lightning.probes._choice import at_most
from ssl_lightning.probes._folds import out_of_fold, selecting_folds, selection
from ssl_lightning.probes.base import Probe


class KNNProbe(Probe):
    """Top-1 of a cosine-weighted nearest-neighbour vote (Wu et al. 2018), without fitting or selection.

    The bank for the test images holds training and held-out images. The held-out score, which may select a
    stage, uses a bank of training images only. If fewer than 500 images are held out, it is the score of five
    folds of both splits: each image asks the images of the other folds, at most all of them.

    Args:
        ks: Numbers of neighbours, a record each. Numbers above the size of the training split are skipped; if
            all are above it, one record has all training images as neighbours.
        temperature: The vote of a neighbour has weight exp(cosine / temperature).
        pool: Stage maps are average-pooled to at most pool x pool cells.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(self, *, ks: Sequence[int] = (20, 200), temperature: float = 0.07, pool: int = 1) -> None:
        if not ks or min(ks) < 1:
            raise ValueError(f"probe.knn.ks is {list(ks)}; at least one number is needed, all of at least 1")
        if temperature <= 0:
            raise ValueError(f"probe.knn.temperature is {temperature}; it must be above 0")
        if pool < 1:
            raise ValueError(f"probe.knn.pool is {pool}; it must be at least 1")
        self.ks, self.temperature, self.pool = sorted(set(ks)), temperature, pool

    @property
    def pools(self) -> tuple[int, ...]:
        return (self.pool,)

    def check(self, counts: Mapping[str, int]) -> None:
        super().check(counts)
        if counts["train"] < 1:
            raise ValueError("the kNN probe needs labelled training images as neighbours; there are none")

    def fitted_limits(self, counts: Mapping[str, int]) -> list[str]:
        ks, images = at_most(self.ks, counts["train"]), counts["train"]
        return [] if ks == self.ks else [fitted("probe.knn.ks", self.ks, ks, images)]

    def run(self, features: Features, *, num_classes: int) -> list[Record]:
        labels, records = features.labels, []
        ks = at_most(self.ks, len(labels["train"]))
        part = selecting_folds(labels)
        bank_labels = torch.cat([labels["train"], labels["heldout"]])
        queries = len(labels["test"]) + len(labels["heldout"] if part is None else bank_labels)
        with watched("vote", len(features.stages) * queries, "queries") as progress:
            vote = partial(
                knn_scores, num_classes=num_classes, temperature=self.temperature, advance=progress.advance
            )
            for stage in features.stages:
                train, heldout, test = (
                    features.get(split, stage, self.pool) for split in ("train", "heldout", "test")
                )
                bank = torch.cat([train, heldout])
                test_scores = vote(test, bank, bank_labels, ks=ks)
                if part is None:
                    unseen = vote(heldout, train, labels["train"], ks=ks), labels["heldout"]
                else:
                    unseen = votes_of_folds(vote, bank, bank_labels, part, ks), bank_labels
                for k, of_test, of_heldout in zip(ks, test_scores, unseen[0], strict=True):
                    protocol = {
                        "k": k,
                        "temperature": self.temperature,
                        "similarity": "cosine",
                        "pool": list(features.grids[stage, self.pool]),
                        "dims": train.shape[1],
                        "bank": "train + heldout",
                        "labels": {"train": len(train), "heldout": len(heldout)},
                        **(selection(part) if part is not None else {}),
                    }
                    records += records_of(stage, protocol, (of_test, labels["test"]), (of_heldout, unseen[1]))
        return records


def votes_of_folds(
    vote: Callable[..., Tensor], bank: Tensor, labels: Tensor, part: Tensor, ks: Sequence[int]
) -> Tensor:
    """Return votes `(len(ks), N, K)` of the images of the other folds on each image."""

    def score(_fold: int, rows: Tensor) -> Tensor:
        others = bank[~rows]
        return vote(bank[rows], others, labels[~rows], ks=[min(k, len(others)) for k in ks])

    return out_of_fold(part, score)
