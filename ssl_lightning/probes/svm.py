"""SVM probe: a linear support vector machine per class on all labels, for every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.messages import fitted
from ssl_lightning.core.progress import tracked
from ssl_lightning.features.encode import Features
from ssl_lightning.ops.svm import SVMSolver
from ssl_lightning.probes._accuracy import records_of
from ssl_lightning.probes._svm import LinearSVMProbe, as_targets, fit, fit_cross_validated, unit


class SVMProbe(LinearSVMProbe):
    """Top-1, or mean average precision for multi-label data, of linear SVMs (Goyal et al. 2019).

    Cross-validation on the training images chooses C. The tested machines are fitted again with it, on
    training and held-out images. A class ignores the images with label -1, in training and test; the authors'
    code trains on them as negatives.

    Besides features and targets, memory holds a few GiB for any number of images, classes, folds and
    candidates.

    Args:
        pool: Stage maps are average-pooled to at most pool x pool cells.
        max_dims: Limit on the number of features; the grid is halved until they fit.
        costs: Candidates of C.
        folds: Folds of the cross-validation, at most one per training image.
        max_iter: Maximum number of solver steps.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        *,
        pool: int = 2,
        max_dims: int = 1024,
        costs: Sequence[float] = (0.0625, 0.25, 1, 4, 16, 64),
        folds: int = 3,
        max_iter: int = 100,
    ) -> None:
        super().__init__(
            "probe.svm", pool=pool, max_dims=max_dims, costs=costs, folds=folds, max_iter=max_iter
        )

    def check(self, counts: Mapping[str, int]) -> None:
        super().check(counts)
        if counts["train"] < 2:
            raise ValueError(
                "the SVM probe needs at least 2 labelled training images for its cross-validation; there are "
                f"{counts['train']}"
            )

    def fitted_limits(self, counts: Mapping[str, int]) -> list[str]:
        images = counts["train"]
        return [] if images >= self.folds else [fitted("probe.svm.folds", self.folds, images, images)]

    def run(self, features: Features, *, num_classes: int) -> list[Record]:
        labels = {split: values.cpu() for split, values in features.labels.items()}
        one_label = labels["train"].ndim == 1
        folds = min(self.folds, len(labels["train"]))
        targets = torch.cat([as_targets(labels[split], num_classes) for split in ("train", "heldout")])
        records: list[Record] = []
        for stage in tracked(features.stages, "fit", "stages"):
            (train, heldout, test), protocol = self.chosen_features(features, stage)
            chosen = fit_cross_validated(
                unit(train),
                targets[: len(train)],
                self.costs,
                folds,
                one_label=one_label,
                max_iter=self.max_iter,
            )
            final = fit(
                SVMSolver(unit(train, heldout)),
                lambda few: targets.T[few],
                chosen.costs,
                max_iter=self.max_iter,
            )
            protocol |= {
                "C": chosen.costs[0].item() if one_label else chosen.costs.tolist(),
                "candidates": self.costs,
                "selected_on": f"{folds}-fold cross-validation on train",
                "refit": True,
                "labels": {"train": len(train), "heldout": len(heldout)},
                **self.convergence(chosen.converged and final.converged),
            }
            records += records_of(
                stage,
                protocol,
                (final.scores(unit(test)), labels["test"]),
                (chosen.scores(unit(heldout)), labels["heldout"]),
            )
        return records
