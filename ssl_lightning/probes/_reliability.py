"""Reliability of the linear probe: calibration, and accuracy on corrupted test images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.artifacts.classifiers import FittedClassifier
from ssl_lightning.artifacts.records import Record
from ssl_lightning.features.encode import Features, Loader
from ssl_lightning.ops.calibration import expected_calibration_error, negative_log_likelihood
from ssl_lightning.ops.corruptions import corrupt
from ssl_lightning.probes._accuracy import OF_BALANCED, answers_of, figure_of


@dataclass(frozen=True)
class CorruptedLoader:
    """Corrupts the images of a loader.

    Args:
        loader: Yields images `(B, C, H, W)` uint8 and labels.
        name: A name in `ops.corruptions.CORRUPTIONS`.
    """

    loader: Loader
    name: str

    def __len__(self) -> int:
        return len(cast(Sized, self.loader))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, *_ in self.loader:
            yield corrupt(images, self.name), labels


def corrupted_split(split: str, name: str) -> str:
    """Name the features of a split whose images are corrupted."""
    return f"{split} with {name}"


def reliability(
    features: Features, fitted: FittedClassifier, *, calibration: bool, corruptions: Sequence[str]
) -> list[Record]:
    """Measure a linear classifier on its stage.

    Args:
        features: Of the test split, and of each corruption of it.
        fitted: The classifier, and its accuracy.
        calibration: Whether to measure `ece` and `nll`.
        corruptions: Names; each gives the metric `top1_<name>`.

    Returns:
        Records without figures on held-out images.
    """
    record, state = fitted.record, fitted.weights
    key = (record.stage, (record.protocol["pool"][0], record.protocol["pool"][1]))
    labels = features.labels["test"]
    protocol = {key: value for key, value in record.protocol.items() if key not in OF_BALANCED}
    protocol["heldout"] = None

    def scores(split: str) -> Tensor:
        x = (features.pooled[split][key] - state["head.shift"]) * state["head.scale"]
        return F.linear(x, state["head.linear.weight"], state["head.linear.bias"])

    found = []
    if calibration:
        clean = scores("test")
        for metric, measure in (("ece", expected_calibration_error), ("nll", negative_log_likelihood)):
            found.append(
                Record(record.stage, metric, float(measure(clean, labels)), len(labels), dict(protocol))
            )
    for name in corruptions:
        scored = scores(corrupted_split("test", name)), labels
        found.append(
            Record(
                record.stage,
                f"top1_{name}",
                figure_of("top1", *scored),
                len(labels),
                dict(protocol),
                answers=answers_of("top1", *scored),
            )
        )
    return found
