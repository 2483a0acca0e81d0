"""Low-shot probe: linear SVMs on k labelled images per class, over several fixed draws."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.artifacts.records import BALANCED, Record
from ssl_lightning.core.messages import fitted
from ssl_lightning.core.progress import tracked
from ssl_lightning.core.seeding import generator
from ssl_lightning.features.encode import Features
from ssl_lightning.ops.svm import Samples
from ssl_lightning.probes._accuracy import figure_of, majority, metrics_of
from ssl_lightning.probes._choice import at_most
from ssl_lightning.probes._svm import (
    LinearSVMProbe,
    as_targets,
    fit_cross_validated,
    single_threaded_pool,
    unit,
)


class LowShotProbe(LinearSVMProbe):
    """Mean and deviation over draws of the scores of linear SVMs on few labels (Goyal et al. 2019).

    A draw is the same in every run and on every machine. For single-label data it takes k images of each
    class. For multi-label data each class takes k images that show it and (K-1) k that do not, and ignores
    the rest, as in the paper.

    Cross-validation within the draw chooses C, while Goyal et al. report the C that does best on the test
    images. Held-out images are never fitted.

    Args:
        ks: Numbers of images per class. Numbers above the size of the smallest class are skipped; if all are
            above it, one record has that size.
        draws: Draws of each number.
        pool: Stage maps are average-pooled to at most pool x pool cells.
        max_dims: Limit on the number of features; the grid is halved until they fit.
        costs: Candidates of C.
        cost: C for one image per class, where cross-validation is impossible.
        folds: Folds of the cross-validation; k if that is fewer.
        max_iter: Maximum number of solver steps.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        *,
        ks: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 96),
        draws: int = 5,
        pool: int = 2,
        max_dims: int = 1024,
        costs: Sequence[float] = (0.0625, 0.25, 1, 4, 16),
        cost: float = 16.0,
        folds: int = 3,
        max_iter: int = 100,
    ) -> None:
        super().__init__(
            "probe.lowshot", pool=pool, max_dims=max_dims, costs=costs, folds=folds, max_iter=max_iter
        )
        if not ks or min(ks) < 1:
            raise ValueError(f"probe.lowshot.ks is {list(ks)}; at least one is needed, all of at least 1")
        if draws < 2:
            raise ValueError(f"probe.lowshot.draws is {draws}; a deviation needs at least 2")
        if cost <= 0:
            raise ValueError(f"probe.lowshot.cost is {cost}; it must be above 0")
        self.ks, self.draws, self.cost = sorted(set(ks)), draws, float(cost)

    def check(self, counts: Mapping[str, int]) -> None:
        super().check(counts)
        if counts.get("rarest", counts["train"]) < 1:
            raise ValueError("the low-shot probe needs a labelled training image of every class")

    def fitted_limits(self, counts: Mapping[str, int]) -> list[str]:
        smallest = counts.get("rarest", self.ks[-1])
        ks = at_most(self.ks, smallest)
        same = ks == self.ks
        return [] if same else [fitted("probe.lowshot.ks", self.ks, ks, smallest, "the smallest class")]

    def run(self, features: Features, *, num_classes: int) -> list[Record]:
        labels = {split: values.cpu() for split, values in features.labels.items()}
        smallest = int((as_targets(labels["train"], num_classes) == 1).sum(0).min())
        ks = at_most(self.ks, smallest)
        metrics = metrics_of(labels["test"])
        records = []
        with single_threaded_pool() as pool:
            for stage in tracked(features.stages, "fit", "stages"):
                (train, heldout, test), protocol = self.chosen_features(features, stage)
                scored = {"heldout": unit(heldout), "test": unit(test)}
                shots = partial(self._shots, train, scored, labels, num_classes, metrics)
                for found in reversed(list(pool.map(shots, reversed(ks)))):  # the slowest first
                    for metric, value, more in found:
                        records.append(Record(stage, metric, value, len(test), protocol | more))
        return records

    def _shots(
        self,
        train: Tensor,
        scored: Mapping[str, Samples],
        labels: Mapping[str, Tensor],
        num_classes: int,
        metrics: tuple[str, ...],
        k: int,
    ) -> list[tuple[str, float, dict[str, Any]]]:
        """Return for each metric its mean test score over draws of k images per class, and the protocol."""
        one_label = labels["train"].ndim == 1
        targets = as_targets(labels["train"], num_classes)
        folds, costs = min(self.folds, k), self.costs if k > 1 else [self.cost]
        values: dict[tuple[str, str], list[float]] = {
            (metric, split): [] for metric in metrics for split in ("heldout", "test")
        }
        chosen, images, converged = [], 0, True
        for number in range(self.draws):
            drawn = draw_images(targets, k, number, one_label=one_label)
            rows = (drawn >= 0).any(1)
            machines = fit_cross_validated(
                unit(train[rows]), drawn[rows], costs, folds, one_label=one_label, max_iter=self.max_iter
            )
            for (metric, split), figures in values.items():
                figures.append(figure_of(metric, machines.scores(scored[split]), labels[split]))
            chosen.append(machines.costs[0].item() if one_label else machines.costs.tolist())
            images, converged = max(images, int(rows.sum())), converged and machines.converged
        protocol = {
            "k_shot": k,
            "draws": self.draws,
            "C": chosen,
            "candidates": costs,
            "selected_on": f"{folds}-fold cross-validation within each draw" if k > 1 else "nothing",
            "labels": {"train": images, "heldout": len(labels["heldout"])},
            **self.convergence(converged),
        }
        found = []
        for metric in metrics:
            test, heldout = values[metric, "test"], values[metric, "heldout"]
            over_draws = {"sd": statistics.stdev(test), "values": test, "heldout": statistics.mean(heldout)}
            share = {"majority": majority(labels["test"])} if metric == BALANCED else {}
            found.append((metric, statistics.mean(test), protocol | over_draws | share))
        return found


def draw_images(targets: Tensor, k: int, number: int, *, one_label: bool) -> Tensor:
    """Draw k images of each class, the same ones in every run; a larger k includes them.

    Args:
        targets: `(N, K)` of 1, 0 and -1; each class with at least k images.
        k: Images per class.
        number: Number of the draw.
        one_label: Whether each image shows one class. If not, each class also takes up to (K-1) k images
            without it.

    Returns:
        `(N, K)`, -1 for images that were not drawn.
    """
    order = torch.randperm(len(targets), generator=generator("fixed", "lowshot", number))
    shuffled = targets[order]
    taken = (shuffled == 1) & ((shuffled == 1).cumsum(0) <= k)  # (N, K), in the shuffled order
    if one_label:
        taken = taken.any(1, keepdim=True).expand_as(taken)
    else:
        absent = shuffled == 0
        taken |= absent & (absent.cumsum(0) <= (targets.shape[1] - 1) * k)
    drawn = torch.full_like(targets, -1)
    drawn[order] = torch.where(taken, shuffled, -1)
    return drawn
