"""Linear support vector machines on cached features, one-vs-rest, for two probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.features.encode import Features
from ssl_lightning.ops import svm
from ssl_lightning.ops.average_precision import average_precision
from ssl_lightning.ops.knn import right_in_topk
from ssl_lightning.ops.svm import Samples
from ssl_lightning.probes.base import Probe

POSITIVES_WEIGH = 2.0
SELECT_TOL = 1e-6  # of the solver while choosing C: predictions settle long before the weights


@dataclass(frozen=True)
class SVMs:
    """One machine per class.

    Args:
        weight: `(K, D)` float64; zeros for a class that all or no images show.
        bias: `(K,)` float64.
        costs: `(K,)` the chosen C of each.
        converged: Whether the solver converged for all of them.
    """

    weight: Tensor
    bias: Tensor
    costs: Tensor
    converged: bool

    @property
    def joined(self) -> Tensor:
        """Weights and, last, biases: `(K, D + 1)`."""
        return torch.cat([self.weight, self.bias[:, None]], 1)

    def score_blocks(self, x: Samples) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of each block and its signed distances `(n, K)`, times the norm of the weights."""
        for here, products in x.score_blocks(self.joined):
            yield here, products.T.contiguous()

    def scores(self, x: Samples) -> Tensor:
        """Return these of all samples, `(N, K)`."""
        return torch.cat([scores for _, scores in self.score_blocks(x)])

    def of(self, classes: Tensor) -> SVMs:
        """Return the machines of some classes."""
        return SVMs(self.weight[classes], self.bias[classes], self.costs[classes], self.converged)


class LinearSVMProbe(Probe):
    """Base class of the SVM probes: choice of the features and candidates of C.

    The machine follows the code of Goyal et al. 2019: squared hinge loss, an L2 penalty that covers the bias,
    double weight for errors on positives, and features scaled to length 1.

    Args:
        key: Config key of the probe, for messages.
        pool: Stage maps are average-pooled to at most pool x pool cells.
        max_dims: Limit on the number of features; the grid is halved until they fit.
        costs: Candidates of C.
        folds: Folds of the cross-validation.
        max_iter: Maximum number of solver steps.

    Raises:
        ValueError: A number is out of range.
    """

    targets = ("classes", "multilabel")

    def __init__(
        self, key: str, *, pool: int, max_dims: int, costs: Sequence[float], folds: int, max_iter: int
    ) -> None:
        for name, value, least in (
            ("pool", pool, 1),
            ("max_dims", max_dims, 1),
            ("folds", folds, 2),
            ("max_iter", max_iter, 1),
        ):
            if value < least:
                raise ValueError(f"{key}.{name} is {value}; it must be at least {least}")
        if not costs or min(costs) <= 0:
            raise ValueError(f"{key}.costs is {list(costs)}; at least one is needed, all above 0")
        self.pool, self.max_dims, self.folds, self.max_iter = pool, max_dims, folds, max_iter
        self.costs = sorted(float(cost) for cost in costs)

    @property
    def pools(self) -> tuple[int, ...]:
        return tuple(self.pool >> halvings for halvings in range(self.pool.bit_length()))

    def chosen_features(
        self, features: Features, stage: str
    ) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
        """Return the features `(N, D)` of `train`, `heldout` and `test`, and their protocol."""
        pool = next((pool for pool in self.pools if features.dims(stage, pool) <= self.max_dims), 1)
        train, heldout, test = (features.get(split, stage, pool) for split in ("train", "heldout", "test"))
        protocol = {
            "classifier": "linear SVM, squared hinge, one against the rest, positives weigh 2",
            "pool": list(features.grids[stage, pool]),
            "dims": train.shape[1],
            "normalised": "to length 1",
        }
        return (train, heldout, test), protocol

    def convergence(self, converged: bool) -> dict[str, Any]:
        """Return the protocol entries on convergence."""
        warning = {} if converged else {"warning": f"a machine was not solved in {self.max_iter} steps"}
        return {"converged": converged, **warning}


def unit(*parts: Tensor) -> Samples:
    """Return the samples `(N, D)` of all parts, each scaled to length 1, with a bias."""
    return Samples(*parts, unit=True, bias=True)


@contextmanager
def single_threaded_pool() -> Iterator[ThreadPoolExecutor]:
    """Open a pool of as many threads as torch has, each of which computes on one core.

    Small machines are solved in parallel. Splitting their many small products over the cores takes longer
    than one core, and many times as long beside another process.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def as_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Convert labels `(N,)` to targets `(N, K)` int8; multi-label targets `(N, K)` stay as they are.

    A target is 1 if the image shows the class, 0 if not, -1 if the class ignores it.
    """
    if labels.ndim == 2:
        return labels
    shown = torch.zeros(len(labels), num_classes, dtype=torch.int8)  # there may be a thousand classes
    return shown.scatter_(1, labels[:, None], 1)


def fit(
    on: svm.SVMSolver,
    targets: Callable[[Tensor], Tensor],
    costs: Tensor,
    *,
    max_iter: int,
    tol: float = 1e-9,
    init: SVMs | None = None,
) -> SVMs:
    """Fit a machine for each target to the images that it does not ignore.

    Args:
        on: Solver on N images, with a bias.
        targets: Returns the targets of machines: indices `(m,)` to `(m, N)` of 1, 0 and -1.
        costs: `(M,)` C of each machine.
        max_iter: Maximum number of solver steps.
        tol: See `SVMSolver`.
        init: Initial machines. They save steps and do not change the solution.
    """
    start = None if init is None else init.joined
    weights, converged = [], True
    for few in torch.arange(len(costs)).split(on.at_once):
        columns = targets(few)
        present, absent = (columns == 1).any(1), (columns == 0).any(1)
        trainable = present & absent  # a machine needs both kinds
        columns, some = columns[trainable], few[trainable]
        weighed = (
            costs[some, None] * torch.where(columns == 1, POSITIVES_WEIGH, 1.0).double() * (columns >= 0)
        )
        signs = 2.0 * (columns == 1).double() - 1.0
        begin = None if start is None else start[some]
        found = on.fit(signs, weighed, init=begin, max_iter=max_iter, tol=tol)
        weight = found.weight.new_zeros(len(few), found.weight.shape[1])
        weight[:, -1] = torch.where(present, 1.0, -1.0)  # a bias alone predicts a constant
        weight[trainable] = found.weight
        weights.append(weight)
        converged &= bool(found.converged.all())
    stacked = torch.cat(weights)
    return SVMs(stacked[:, :-1], stacked[:, -1], costs, converged)


def fit_cross_validated(
    x: Samples, targets: Tensor, candidates: Sequence[float], folds: int, *, one_label: bool, max_iter: int
) -> SVMs:
    """Choose C by cross-validation and fit with it; the smaller C wins a tie.

    With one label per image, all classes share the C with the best top-1. Otherwise each class has the C with
    its best average precision (mean over folds, as Goyal et al. 2019).

    Args:
        x: N samples, with a bias.
        targets: `(N, K)` of 1, 0 and -1.
        candidates: Values of C.
        folds: Number of folds, at least 2.
        one_label: Whether each image shows exactly one class.
        max_iter: Maximum number of solver steps.
    """
    candidates, on, classes = sorted(candidates), svm.SVMSolver(x), targets.shape[1]
    merit, converged = torch.zeros(len(candidates), folds, classes, dtype=torch.float64), True
    if len(candidates) > 1:  # one candidate needs no choice
        part = assign_folds(targets, folds, one_label=one_label)
        machines = None

        def learned(few: Tensor) -> Tensor:
            """Return the targets of machines, which are numbered by fold and then by class."""
            is_out = part.T[few % classes] == few[:, None] // classes
            return torch.where(is_out, -1, targets.T[few % classes])

        for row, cost in enumerate(candidates):
            each = torch.full((folds * classes,), cost, dtype=torch.float64)
            machines = fit(on, learned, each, max_iter=max_iter, tol=SELECT_TOL, init=machines)
            converged &= machines.converged
            for fold in range(folds):
                of_fold = machines.of(torch.arange(classes) + fold * classes)
                merit[row, fold] = _merit(of_fold, x, targets, part == fold, one_label)
    means = merit.nanmean(1).nan_to_num(-1.0)  # (candidates, K)
    best = (means == means.amax(0)).int().argmax(0)  # the first of equal ones
    costs = torch.tensor(candidates, dtype=torch.float64)[best]
    chosen = fit(on, lambda few: targets.T[few], costs, max_iter=max_iter)
    return SVMs(chosen.weight, chosen.bias, chosen.costs, converged and chosen.converged)


def _merit(machines: SVMs, x: Samples, targets: Tensor, is_out: Tensor, one_label: bool) -> Tensor:
    """Score the left-out images, `(K,)`: their top-1 for all classes, or average precision of each.

    Scores are computed in blocks of images or of classes.
    """
    count, classes = targets.shape
    if one_label:
        right = [
            right_in_topk(scores, targets[here].argmax(1), 1)[is_out[here, 0]]
            for here, scores in machines.score_blocks(x)
        ]
        return torch.cat(right).double().mean().expand(classes)
    merits = []
    for few in torch.arange(classes).split(max(1, svm.AT_ONCE // count)):
        left_out = torch.where(is_out[:, few], targets[:, few], -1)
        merits.append(average_precision(machines.of(few).scores(x), left_out, envelope=False))
    return torch.cat(merits)


def assign_folds(targets: Tensor, folds: int, *, one_label: bool) -> Tensor:
    """Assign images to folds 0..folds-1, `(N, K)`, with positives and negatives spread evenly.

    With one label per image, all classes share the folds.
    """
    if one_label:
        return _assign_folds(targets.argmax(1), folds)[:, None].expand_as(targets)
    return torch.stack([_assign_folds(column, folds) for column in targets.T], 1)


def _assign_folds(labels: Tensor, folds: int) -> Tensor:
    order = labels.sort(stable=True).indices
    sizes = labels.unique(return_counts=True)[1]  # in the order of the sorted labels
    within = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    part = torch.empty_like(labels)
    part[order] = within % folds
    return part
