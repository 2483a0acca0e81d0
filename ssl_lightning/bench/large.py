"""Time and peak memory of the kNN vote and of the linear and SVM solvers on many random features."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssl_lightning.ops.knn import knn_scores
from ssl_lightning.ops.logistic import LogisticFit, fit_logistic
from ssl_lightning.ops.svm import SVMSolver
from ssl_lightning.probes._svm import SVMs, fit, unit


def random_features(samples: int, dims: int, classes: int, device: str) -> tuple[Tensor, Tensor]:
    """Return overlapping classes (N, D) float32 with mean 0 and deviation 1, and their labels (N,) int64."""
    stream = torch.Generator(device).manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=stream, device=device)
    centres = torch.randn(classes, dims, generator=stream, device=device)
    x = torch.empty(samples, dims, device=device)
    for rows in torch.arange(samples, device=device).split(1 << 16):  # no second copy of all
        x[rows] = torch.randn(len(rows), dims, generator=stream, device=device)
        x[rows] += 0.1 * centres[labels[rows]]
    return x.div_(1.01**0.5), labels


def peak_bytes(device: str) -> int:
    """Return the largest memory so far: of the GPU, or of this process."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def timed(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Run work; return its seconds and the peak memory after it in GB."""
    began = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began, peak_bytes(device) / 1e9


def fit_svms(x: Tensor, labels: Tensor, classes: int) -> SVMs:
    """Fit the first machines one against the rest, as the SVM probe does with a single C of 1."""
    labels = labels.cpu()

    def targets(few: Tensor) -> Tensor:
        return (labels == few[:, None]).to(torch.int8)

    return fit(SVMSolver(unit(x)), targets, torch.ones(classes, dtype=torch.float64), max_iter=100)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for the features, the kNN vote, the fit, and the SVMs, which always run on the CPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("samples", 100_000), ("dims", 2048), ("classes", 1000), ("queries", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--iterations", type=int, default=200, help="at most, of L-BFGS")
    parser.add_argument("--l2", type=float, nargs="+", default=[1e-3], help="strengths of the penalty")
    parser.add_argument("--svm-classes", type=int, default=20, help="machines that are fitted, with C=1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    x, labels = random_features(given.samples, given.dims, given.classes, given.device)
    size, peak = x.numel() * 4 / 1e9, peak_bytes(given.device) / 1e9
    print(f"features {given.samples:,} x {given.dims}: {size:.2f} GB, peak {peak:.2f} GB")
    spent, peak = timed(
        lambda: knn_scores(x[: given.queries], x, labels, given.classes, [20, 200]), given.device
    )
    print(f"kNN vote of {given.queries:,} queries: {spent:.1f} s, peak {peak:.2f} GB")
    fits: list[LogisticFit] = []
    tol = 1e-3 / given.classes  # the gradient of a start at 0 falls with their number
    spent, peak = timed(
        lambda: fits.append(
            fit_logistic(x, labels, given.classes, given.l2, max_iter=given.iterations, tol=tol)
        ),
        given.device,
    )
    steps = fits[0].iterations.tolist()
    end = "converged" if bool(fits[0].converged.all()) else "cut off before it converged"
    print(f"fit of {given.classes:,} classes in {steps} iterations, {end}: {spent:.1f} s, peak {peak:.2f} GB")
    machines: list[SVMs] = []
    spent, peak = timed(lambda: machines.append(fit_svms(x, labels, given.svm_classes)), "cpu")
    end = "converged" if machines[0].converged else "cut off before they converged"
    print(f"SVMs of {given.svm_classes} classes, {end}: {spent:.1f} s, peak {peak:.2f} GB on the CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
