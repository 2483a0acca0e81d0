"""Linear probe: multinomial logistic regression on the frozen features of every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ssl_lightning.artifacts.classifiers import FittedClassifier
from ssl_lightning.artifacts.records import Record, best_stage
from ssl_lightning.core.progress import tracked
from ssl_lightning.features.encode import Features
from ssl_lightning.ops.corruptions import CORRUPTIONS
from ssl_lightning.ops.knn import topk_accuracy
from ssl_lightning.ops.logistic import LogisticFit, fit_logistic, second_moments
from ssl_lightning.probes._accuracy import judging, records_of
from ssl_lightning.probes._folds import out_of_fold, selecting_folds, selection, training_parts
from ssl_lightning.probes._reliability import reliability
from ssl_lightning.probes.base import Probe

MAX_COPY = 2**28  # elements (1 GiB in float32)
HEAD = "ssl_lightning.networks.heads.StandardisedLinear"  # of the stored classifier


class LinearProbe(Probe):
    """Top-1 (and top-5 above five classes) of a linear classifier, solved to its optimum.

    Features are standardised with the statistics of the training split. The held-out top-1 selects the
    penalty; the stronger one wins a tie. Then the classifier is fitted again on both splits. If fewer than
    500 images are held out, five folds of both splits select instead, and the held-out figure is the top-1
    over all these images, each scored by the classifier of the other folds.

    Args:
        pool: Stage maps are average-pooled to at most pool x pool cells.
        max_dims: Limit on the number of features; the grid is halved until they fit. Google's protocol has
            such a limit too (Kolesnikov et al. 2019). One cell is always allowed.
        l2: Candidates of the penalty; the loss is mean cross-entropy + l2 / 2 * |weight|^2.
        max_iter: Maximum number of L-BFGS iterations per fit.
        tol: Convergence threshold on the largest entry of the gradient.
        select_tol: The threshold while selecting the penalty, if `refit` is true: held-out top-1 settles
            long before the weights.
        refit: Fit again on training and held-out images with the selected penalty. Without it, the held-out
            images select however few they are.
        calibration: Add `ece` and `nll` of the test images at the best stage.
        corruptions: Add the top-1 on corrupted test images at the best stage, `top1_<name>`; names in
            `ops.corruptions.CORRUPTIONS`.

    Raises:
        ValueError: A number is out of range, or a corruption is unknown.
    """

    def __init__(
        self,
        *,
        pool: int = 2,
        max_dims: int = 1024,
        l2: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4),
        max_iter: int = 200,
        tol: float = 3e-4,
        select_tol: float = 1e-3,
        refit: bool = True,
        calibration: bool = False,
        corruptions: Sequence[str] = (),
    ) -> None:
        if pool < 1:
            raise ValueError(f"probe.linear.pool is {pool}; it must be at least 1")
        if max_dims < 1:
            raise ValueError(f"probe.linear.max_dims is {max_dims}; it must be at least 1")
        if not l2 or min(l2) <= 0:
            raise ValueError(f"probe.linear.l2 is {list(l2)}; at least one strength is needed, all above 0")
        if max_iter < 1 or min(tol, select_tol) <= 0:
            raise ValueError(
                f"probe.linear has max_iter {max_iter}, tol {tol} and select_tol {select_tol}; "
                "all must be above 0"
            )
        if wrong := [name for name in corruptions if name not in CORRUPTIONS]:
            raise ValueError(
                f"probe.linear.corruptions has {', '.join(wrong)}; allowed are {', '.join(CORRUPTIONS)}"
            )
        self.pool, self.max_dims = pool, max_dims
        self.calibration, self.corruptions = calibration, tuple(corruptions)
        self.max_iter, self.tol, self.refit = max_iter, tol, refit
        self.select_tol = select_tol if refit else tol
        self.l2 = sorted((float(strength) for strength in l2), reverse=True)

    @property
    def pools(self) -> tuple[int, ...]:
        return tuple(self.pool >> halvings for halvings in range(self.pool.bit_length()))

    def check(self, counts: Mapping[str, int]) -> None:
        super().check(counts)
        if counts["train"] < 1:
            raise ValueError("the linear probe needs labelled training images to fit on; there are none")

    def run(self, features: Features, *, num_classes: int) -> list[Record]:
        records, fitted = [], {}
        for stage in tracked(features.stages, "fit", "stages"):
            of_stage, fitted[stage] = self._run_stage(features, stage, num_classes)
            records += of_stage
        best = best_stage([each.record for each in fitted.values() if each.record.metric != "map"])
        self.fitted = fitted[best.stage] if best else None
        if self.fitted is not None:
            records += reliability(
                features, self.fitted, calibration=self.calibration, corruptions=self.corruptions
            )
        return records

    def _run_stage(
        self, features: Features, stage: str, num_classes: int
    ) -> tuple[list[Record], FittedClassifier]:
        """Fit the classifier of one stage; return its results, and the classifier."""
        labels = torch.cat([features.labels["train"], features.labels["heldout"]])
        part = selecting_folds(features.labels) if self.refit else None
        pool = next((p for p in self.pools if features.dims(stage, p) <= self.max_dims), 1)
        train, heldout, test = (features.get(split, stage, pool) for split in ("train", "heldout", "test"))
        x = torch.cat([train, heldout])  # (N_train + N_heldout, D)
        first, last = (len(train), len(train)) if part is None else (0, len(x))  # select from, fit up to
        shift, scale = standardisation(x[:last])
        x.sub_(shift).mul_(scale)
        moments = second_moments(x[:last])
        parts = None if part is None else training_parts(part)
        fit = self._fit(
            x[:last], labels[:last], num_classes, self.l2, moments, tol=self.select_tol, parts=parts
        )
        unseen = scores(fit, x[first:]) if part is None else scores_of_folds(fit, x, part)  # (R, N, K)
        by_l2 = topk_accuracy(unseen, labels[first:]).tolist()
        best = by_l2.index(max(by_l2))  # the first of equal ones; penalties are in falling order
        chosen, heldout_scores = self.l2[best], unseen[best]
        iterations, converged = int(fit.iterations.max()), bool(fit.converged.all())
        if self.refit:
            init = (fit.weight[best], fit.bias[best])
            if part is not None:
                init = (init[0].mean(0), init[1].mean(0))
            fit = self._fit(x, labels, num_classes, [chosen], moments, init, tol=self.tol)
            converged &= bool(fit.converged.all())
            best = 0
        test_scores = scores(fit, (test - shift) * scale)[best]
        grid = features.grids[stage, pool]
        protocol = {
            "classifier": "multinomial logistic regression, L-BFGS",
            "pool": list(grid),
            "dims": train.shape[1],
            "standardised": "train" if part is None else "train + heldout",
            "l2": chosen,
            "candidates": dict(zip(map(str, self.l2), by_l2, strict=True)),
            **selection(part),
            "refit": self.refit,
            "labels": {"train": len(train), "heldout": len(heldout)},
            "iterations": iterations,
            "tol": self.tol,
            "select_tol": self.select_tol,
            "converged": converged,
        }
        if not converged:
            protocol["warning"] = f"not converged to {self.tol:g} in {self.max_iter} iterations"
        scored = (test_scores, features.labels["test"]), (heldout_scores, labels[first:])
        records = records_of(stage, protocol, *scored, more=("top5",) if num_classes > 5 else ())
        head = {
            "_target_": HEAD,
            "channels": train.shape[1] // (grid[0] * grid[1]),
            "grid": list(grid),
            "num_classes": num_classes,
        }
        weights = {
            "shift": shift,
            "scale": scale,
            "linear.weight": fit.weight[best],
            "linear.bias": fit.bias[best],
        }
        state = {f"head.{name}": value for name, value in weights.items()}
        return records, FittedClassifier(head, state, judging(records))

    def _fit(
        self,
        x: Tensor,
        labels: Tensor,
        num_classes: int,
        l2: Sequence[float],
        moments: Tensor,
        init: tuple[Tensor, Tensor] | None = None,
        *,
        tol: float,
        parts: Tensor | None = None,
    ) -> LogisticFit:
        return fit_logistic(
            x,
            labels,
            num_classes,
            l2,
            max_iter=self.max_iter,
            tol=tol,
            init=init,
            moments=moments,
            parts=parts,
        )


def scores(fit: LogisticFit, x: Tensor) -> Tensor:
    """Return logits `(R, N, K)` of every fitted classifier on `(N, D)` features."""
    return torch.einsum("rkd,nd->rnk", fit.weight, x) + fit.bias[:, None]


def scores_of_folds(fit: LogisticFit, x: Tensor, part: Tensor) -> Tensor:
    """Return logits `(R, N, K)` of each image by the classifiers that were not fitted to its fold."""

    def score(fold: int, rows: Tensor) -> Tensor:
        return scores(replace(fit, weight=fit.weight[:, fold], bias=fit.bias[:, fold]), x[rows])

    return out_of_fold(part, score)


def standardisation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and scale, each `(D,)`, that give the features mean 0 and deviation 1.

    A constant feature (a dead channel) gets scale 0, because its range on other images is unknown.
    """
    mean = x.mean(0)
    columns = max(1, MAX_COPY // len(x))  # at once, since a copy of all features may not fit
    parts = zip(x.split(columns, 1), mean.split(columns), strict=True)
    # a third of the time of torch.std
    deviation = torch.cat([(some - their).square_().mean(0).sqrt_() for some, their in parts])
    varies = deviation > 1e-6 * mean.abs()  # smaller values are rounding errors of a constant
    return mean, torch.where(varies, 1 / deviation, 0.0)
