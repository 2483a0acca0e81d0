"""Linear probe: multinomial logistic regression on the frozen features of every stage."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ssl_lightning.ops.knn import topk_accuracy
from ssl_lightning.ops.logistic import fit_logistic
from ssl_lightning.probes.base import Features, Probe, Record


class LinearProbe(Probe):
    """Logistic regression per stage, solved to convergence; reports top-1, and top-5 for more than 5 classes.

    Features are average-pooled to `pool` x `pool` and standardised with the statistics of the images that
    the classifier is fitted on. The penalty is the one that does best on the held-out images when fitted
    without them. Then the classifier is fitted once more on all labels and meets the test images once.

    Args:
        pool: Side of the pooling grid.
        l2: Candidate strengths of the penalty `l2 / 2 * |W|^2` beside the mean cross-entropy.
        max_iter: L-BFGS iterations at most; the record says whether it converged.
        refit: Whether the final classifier is fitted on train and held-out images together.

    Raises:
        ValueError: A value is out of its range.
    """

    name = "linear"

    def __init__(
        self, pool: int = 2, l2: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1), max_iter: int = 100, refit: bool = True
    ) -> None:
        if pool < 1 or max_iter < 1:
            raise ValueError(f"probe.linear has pool {pool} and max_iter {max_iter}; both must be at least 1")
        if not l2 or min(l2) <= 0:
            raise ValueError(f"probe.linear.l2 is {list(l2)}; it needs at least one strength, all above 0")
        self.pool, self.l2, self.max_iter, self.refit = pool, sorted(l2, reverse=True), max_iter, refit

    def run(self, features: Features, num_classes: int) -> list[Record]:
        return [record for stage in features.stages for record in self._run_stage(features, stage, num_classes)]

    def _run_stage(self, features: Features, stage: str, num_classes: int) -> list[Record]:
        train, heldout, test = (getattr(features, s).flat(self.pool, stage) for s in ("train", "heldout", "test"))
        x, heldout_x, test_x = standardise(train, heldout, test)
        path = fit_logistic(x, features.train.labels, num_classes, self.l2, max_iter=self.max_iter)
        scores = heldout_x @ path.weight.mT + path.bias[:, None]  # (R, N, K)
        accuracy = topk_accuracy(scores, features.heldout.labels)  # (R,)
        best = int(accuracy.argmax())  # the first, so the strongest penalty, among equals
        weight, bias, converged = path.weight[best], path.bias[best], path.converged[best]
        if self.refit:
            x, labels = features.labelled(self.pool, stage)
            x, test_x = standardise(x, test)
            start = (weight, bias)
            fit = fit_logistic(x, labels, num_classes, [self.l2[best]], max_iter=self.max_iter, init=start)
            weight, bias, converged = fit.weight[0], fit.bias[0], fit.converged[0]
        scores = test_x @ weight.T + bias  # (N, K)
        protocol = {
            "pool": self.pool,
            "dimensions": test.shape[1],
            "l2": self.l2[best],
            "l2_candidates": self.l2,
            "selected_on": "heldout",
            "heldout": float(accuracy[best]),
            "labels_train": len(train),
            "labels_heldout": len(heldout),
            "refit": self.refit,
            "standardised": True,
            "converged": bool(converged),
        }
        ranks = {"top1": 1} | ({"top5": 5} if num_classes > 5 else {})
        return [
            self.record(stage, metric, float(topk_accuracy(scores, features.test.labels, k)), len(test), **protocol)
            for metric, k in ranks.items()
        ]


def standardise(fitted: Tensor, *others: Tensor) -> list[Tensor]:
    """Give every feature mean 0 and deviation 1 by the statistics of `fitted`; constant ones become 0.

    >>> import torch
    >>> x, y = standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[4.0, 5.0]]))
    >>> x.tolist(), y.tolist()
    ([[-1.0, 0.0], [1.0, 0.0]], [[2.0, 0.0]])
    """
    mean, std = fitted.mean(0), fitted.std(0, correction=0)
    constant = std <= 1e-6 * mean.abs().clamp(min=1e-6)
    scale = (1 / std).masked_fill(constant, 0.0)
    return [(x - mean) * scale for x in (fitted, *others)]
