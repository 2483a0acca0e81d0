"""Facts about a run as dataclasses: its setting, its health, its verdict; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ssl_lightning.artifacts.field_types import Amount, Count, Digest, Fraction, Name, OneOrMore, Time

Status = Literal["finished", "failed", "interrupted"]
UNKNOWN_LABELS = "unknown: the first weights of the backbone come from elsewhere"
BAD_VERDICTS = ("dead", "diverged")
MAX_ZERO_GRAD_SHARE = 0.5  # a run with more steps of zero gradients learned nothing


@dataclass(frozen=True)
class BenchmarkRow:
    """Place of a run in a benchmark.

    Args:
        name: Name of the benchmark.
        row: Row of its table.
        budget: Name of the budget, such as "cpu".
    """

    name: Name
    row: Name
    budget: str | None = None


@dataclass(frozen=True)
class Health:
    """Gradients of a training, measured by the health callback.

    Args:
        steps: Number of batches.
        optimizer_steps: Number of optimizer steps.
        min_grad_norm: Smallest finite gradient norm, None if none was measured.
        max_grad_norm: Largest finite gradient norm, or None.
        zero_grad_share: Share of optimizer steps with all gradients zero.
        verdict: "healthy", or "dead" or "diverged" for a stopped training.
    """

    steps: Count
    optimizer_steps: Count
    min_grad_norm: Amount | None
    max_grad_norm: Amount | None
    zero_grad_share: Fraction
    verdict: Name

    @property
    def bad(self) -> bool:
        """Whether the training failed, so that its figures mean nothing."""
        return self.verdict in BAD_VERDICTS or self.zero_grad_share > MAX_ZERO_GRAD_SHARE


@dataclass(frozen=True)
class Verdict:
    """Answer to the question whether pretraining helped (`report.verdict`).

    Args:
        kind: The answer in a few words.
        text: Figures behind it, and what to try next.
    """

    kind: Literal[
        "learned", "no better than before", "worse than before", "collapsed", "pretext trivial",
        "pretext not learned", "too few images to tell", "not compared",
    ]  # fmt: skip
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Facts about a run; None if an older version did not write them.

    Args:
        task: Name of the task.
        data: Name of the data.
        backbone: Name of the backbone.
        seed: Seed of the run.
        devices: Number of processes.
        machine: GPU, or processor and number of threads, of each process; of the last start of a resumed run.
        precision: Lightning's precision, such as "bf16-mixed".
        epochs: Epochs of pretraining.
        wall_s: Seconds of the run, over all resumes.
        images_per_s: Speed of pretraining, 0 without one.
        pretrain_images: Number of pretraining images of an epoch.
        probe_s: Seconds per probe, and of the encode pass.
        peak_memory_gb: Peak memory by place: host, gpu.
        resumed: Number of resumes.
        git: Commit of the code, "" outside a checkout.
        versions: Versions of Python and of packages.
        config_sha256: Digest of the config, `config.identity`.
        series_sha256: The same without the seeds.
        benchmark: Row of a benchmark that the run fills.
        command: Shell line that repeats the run.
        ended: Time of the end, ISO 8601.
        labels: Labels used to train the backbone; "none" for a self-supervised one.
        health: Gradients of the training.
        verdict: Whether pretraining helped, of a finished run that trained.
        status: How the run ended.
    """

    task: Name
    data: Name
    backbone: Name
    seed: int
    devices: OneOrMore | None = None
    machine: str | None = None
    precision: str | None = None
    epochs: Count
    wall_s: Amount
    images_per_s: Amount
    pretrain_images: Count | None = None
    probe_s: dict[str, Amount] = field(default_factory=dict)
    peak_memory_gb: dict[str, Amount] = field(default_factory=dict)
    resumed: Count = 0
    git: str
    versions: dict[str, str]
    config_sha256: Digest
    series_sha256: Digest | None = None
    benchmark: BenchmarkRow | None = None
    command: str | None = None
    ended: Time | None = None
    labels: str | None = None
    health: Health | None = None
    verdict: Verdict | None = None
    status: Status
