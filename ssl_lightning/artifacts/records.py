"""Figures of the probes as dataclasses, and their bounds; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

from ssl_lightning.artifacts.answers import Answers
from ssl_lightning.artifacts.field_types import FRACTION, Fraction, Name, OneOrMore, StageName
from ssl_lightning.artifacts.typed_json import APART, NEEDED, Limits, from_json

BALANCED = "balanced"  # metric: mean accuracy over the classes, beside top1 if they are unequal in number
# numbers or null in a protocol
PROTOCOL_NUMBERS = ("heldout", "k", "k_shot", "fraction", "sd", "standard_error", "majority")
RANK = Limits("a rank, 1 or more", minimum=1)
SLOPE = Limits("a slope, 0 or more", minimum=0)
# Metrics of features without labels, shown as plain numbers; all others are fractions
SPECTRAL = {"rankme": RANK, "alpha_req": SLOPE, "lidar": RANK}
# Metrics where less is better
LESS_IS_BETTER = {"ece": FRACTION, "nll": Limits("a loss, 0 or more", minimum=0)}
Protocol = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Origin of a record that `evaluate.py` added.

    Args:
        data: Name of the probed data set.
        checkpoint: "last", "best" or a path.
        git: Commit of the code.
        command: Shell line of the evaluation.
    """

    data: Name
    checkpoint: str | None = None
    git: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class Measured:
    """One figure of a probe, without its protocol.

    Args:
        probe: Name of the probe; `run_probes` sets this and the next two fields.
        branch: Name of the branch.
        trained: Whether the backbone was pretrained.
        stage: Stage of the backbone, such as "stage3".
        split: "test", or "pretrain" for a figure on unlabelled pretraining images.
        metric: Name of the metric, such as "top1".
        value: In [0, 1]; a rank is at least 1, a slope and a negative log-likelihood at least 0.
        n: Number of images measured.
        evaluation: Set if `evaluate.py` added the figure to a finished run.
    """

    probe: Name = field(default="", kw_only=True, metadata=NEEDED)
    branch: Name = field(default="", kw_only=True, metadata=NEEDED)
    trained: bool = field(default=False, kw_only=True, metadata=NEEDED)
    stage: StageName
    split: Literal["test", "pretrain"] = field(default="test", kw_only=True)
    metric: Name
    value: float
    n: OneOrMore
    evaluation: Evaluation | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Record(Measured):
    """One figure of a probe.

    Args:
        protocol: All settings that a comparison needs; `heldout` is the figure on held-out images.
        answers: Which test images were answered right, of an accuracy; stored in answers.json.
    """

    protocol: Protocol
    answers: Answers | None = field(default=None, kw_only=True, compare=False, repr=False, metadata=APART)

    @property
    def heldout(self) -> float | None:
        """Same figure on held-out images, None without labels."""
        return cast(float | None, self.protocol.get("heldout"))

    @property
    def heldout_images(self) -> int:
        """Number of images of the held-out figure; a cross-validation holds out each training image once."""
        labels = self.protocol["labels"]
        return int(labels["heldout"] + (labels["train"] if "folds" in self.protocol else 0))

    @property
    def image_error(self) -> float | None:
        """Standard error of an accuracy over its n images, sqrt(p (1 - p) / n); None for other metrics.

        A balanced accuracy has its own in the protocol.
        """
        if self.metric == BALANCED:
            return cast(float | None, self.protocol.get("standard_error"))
        if not self.metric.startswith("top"):
            return None
        return math.sqrt(self.value * (1 - self.value) / self.n)

    @property
    def standard_error(self) -> float | None:
        """Standard error over the images; of a mean over draws of k labels a class, over the draws too."""
        error, draws, sd = self.image_error, len(self.protocol.get("values") or ()), self.protocol.get("sd")
        if error is None or not draws or sd is None or "k_shot" not in self.protocol:
            return error
        return math.hypot(error, sd / math.sqrt(draws))

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.4f}"
        return (
            f"{self.probe} {self.metric} of {self.branch} {self.stage}: {self.value:.4f}{error} (n={self.n})"
        )


@dataclass(frozen=True)
class ClassDraws:
    """Score of each class in each draw of a share of the labels, in the protocol of a dense figure.

    Args:
        heldout: By name of the class, for each draw; None for a class without pixels or objects.
        test: Likewise.
    """

    heldout: list[dict[str, Fraction | None]]
    test: list[dict[str, Fraction | None]]


def best_stage(records: list[Record]) -> Record | None:
    """Select the record of the stage with the best held-out figure; without one, of the deepest stage."""

    def key(record: Record) -> tuple[float, int]:
        heldout = -math.inf if record.heldout is None else record.heldout
        return heldout, int(record.stage.removeprefix("stage"))

    return max(records, key=key, default=None)


def check_figures(record: Record, place: str) -> None:
    """Check the figures of a record; the bounds depend on its metric.

    Raises:
        ValueError: A figure is out of bounds; the message names it.
    """
    for key in PROTOCOL_NUMBERS:
        from_json(float | None, record.protocol.get(key), f"{place}.protocol.{key}")
    from_json(list[Fraction] | None, record.protocol.get("values"), f"{place}.protocol.values")
    if "class_draws" in record.protocol:
        here = f"{place}.protocol.class_draws"
        draws: ClassDraws = from_json(ClassDraws, record.protocol["class_draws"], here)
        names = [set(each) for each in (*draws.heldout, *draws.test)]
        if not draws.heldout or not draws.test or not names[0] or any(each != names[0] for each in names):
            raise ValueError(f"{here} must have one or more draws, all of the same classes")
    limits = (SPECTRAL | LESS_IS_BETTER).get(record.metric, FRACTION)
    from_json(Annotated[float, limits], record.value, f"{place}.value")
    if record.metric not in SPECTRAL:
        from_json(Annotated[float, limits] | None, record.heldout, f"{place}.protocol.heldout")
