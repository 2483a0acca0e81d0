"""Results of a run as dataclasses, and their file results.json; imports no torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

from ssl_lightning.artifacts.answers import Answers, with_answers, write_answers
from ssl_lightning.artifacts.run_folder import RESULTS
from ssl_lightning.artifacts.typed_json import APART, NEEDED, Limits, from_json, refusal, to_json
from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.core.untrusted import check_schema, read_json

# The fields of this module define results.json. After a change of them, run
# `python -m ssl_lightning.report.results_schema` to rewrite the JSON schema; raise SCHEMA too, unless the
# change only adds an optional field.
SCHEMA: Final = 2
MAX_BYTES = 1 << 25  # of a results.json; a run writes about 50 kB
BALANCED = "balanced"  # metric: mean accuracy over the classes, beside top1 if they are unequal in number
# numbers or null in a protocol
PROTOCOL_NUMBERS = ("heldout", "k", "k_shot", "fraction", "sd", "standard_error", "majority")
RANK = Limits("a rank, 1 or more", minimum=1)
SLOPE = Limits("a slope, 0 or more", minimum=0)
# Metrics of features without labels, shown as plain numbers; all others are fractions
SPECTRAL = {"rankme": RANK, "alpha_req": SLOPE, "lidar": RANK}
FRACTION = Limits("a fraction, 0 to 1", minimum=0, maximum=1)
# Metrics where less is better
LESS_IS_BETTER = {"ece": FRACTION, "nll": Limits("a loss, 0 or more", minimum=0)}
Status = Literal["finished", "failed", "interrupted"]
UNKNOWN_LABELS = "unknown: the first weights of the backbone come from elsewhere"
BAD_VERDICTS = ("dead", "diverged")
MAX_ZERO_GRAD_SHARE = 0.5  # a run with more steps of zero gradients learned nothing

Name = Annotated[str, Limits("a text of at most 200 characters", longest=200)]  # the limit of file names
Count = Annotated[int, Limits("a whole number, 0 or more", minimum=0)]
OneOrMore = Annotated[int, Limits("a whole number, 1 or more", minimum=1)]
Amount = Annotated[float, Limits("a number, 0 or more", minimum=0)]
Share = Annotated[float, FRACTION]
Digest = Annotated[str, Limits("a SHA-256 of 64 hex digits", pattern="[0-9a-f]{64}")]
Stage = Annotated[str, Limits("stage and a number, such as stage3", pattern="stage[1-9][0-9]{0,5}")]
Time = Annotated[str, Limits("a time of ISO 8601", time=True)]
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
    stage: Stage
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
        """Number of images of the held-out figure: those of all folds, if a cross-validation selected."""
        labels = self.protocol["labels"]
        return int(labels["heldout"] + (labels["train"] if "folds" in self.protocol else 0))

    @property
    def standard_error(self) -> float | None:
        """Standard error of an accuracy, sqrt(p (1 - p) / n) over its n images; None for other metrics.

        A balanced accuracy has its own in the protocol.
        """
        if self.metric == BALANCED:
            return cast(float | None, self.protocol.get("standard_error"))
        if not self.metric.startswith("top"):
            return None
        return math.sqrt(self.value * (1 - self.value) / self.n)

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

    heldout: list[dict[str, Share | None]]
    test: list[dict[str, Share | None]]


@dataclass(frozen=True)
class StoredRecord(Measured):
    """A record as stored in results.json.

    Args:
        protocol: Index of the protocol that the record shares with others.
        own: Rest of its protocol.
    """

    protocol: Count
    own: Protocol


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
    zero_grad_share: Share
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


@dataclass(frozen=True)
class ResultsFile:
    """Content of a results.json; records that share a protocol refer to one copy."""

    schema: Literal[2]
    run: RunFacts
    pretext: dict[str, float]
    protocols: list[Protocol]
    probes: list[StoredRecord]


@dataclass(frozen=True)
class ResultsFile1:
    """Content of a results.json of schema 1: each record holds its complete protocol."""

    schema: Literal[1]
    run: RunFacts
    pretext: dict[str, float]
    probes: list[Record]


@dataclass(frozen=True)
class Results:
    """All results of a run.

    Args:
        run: Facts about the run.
        pretext: Validation figures of the pretext task.
        probes: Figures of the probes.
    """

    run: RunFacts
    pretext: dict[str, float]
    probes: list[Record]

    def to_json(self) -> dict[str, Any]:
        """Return the content of results.json."""
        protocols, stored = _share_protocols(self.probes)
        content = to_json(ResultsFile(SCHEMA, self.run, self.pretext, protocols, stored))
        return cast(dict[str, Any], content)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Results:
        """Check the content of a results.json of this or an older schema.

        Raises:
            ValueError: The schema is newer, or a field is missing, unknown, of the wrong type or out of
                bounds; the message names the field.
        """
        check_schema(content, SCHEMA)
        if content["schema"] == 1:
            old: ResultsFile1 = from_json(ResultsFile1, content)
            run, pretext, records = old.run, old.pretext, old.probes
        else:
            file: ResultsFile = from_json(ResultsFile, content)
            run, pretext, records = file.run, file.pretext, _complete_records(file)
        for number, record in enumerate(records):
            _check_figures(record, f"probes[{number}]")
        return cls(run, pretext, records)


def read_results(path: Path, clean: Callable[[Any], Any] = lambda content: content) -> Results:
    """Read and check a results.json, and the answers beside it.

    Args:
        path: The file.
        clean: Applied to its content before the checks, such as `core.untrusted.printable_all`.

    Raises:
        ValueError: The file is broken, foreign or from a newer version; the message does not name the file.
        OSError: The file cannot be read.
    """
    results = Results.from_json(clean(read_json(path, MAX_BYTES)))
    return replace(results, probes=with_answers(path.parent, results.probes))


def earlier_results(folder: Path) -> Results | None:
    """Read the results.json of a run folder, if there is one.

    Raises:
        ValueError: It is broken, foreign, or from a newer version.
    """
    path = folder / RESULTS
    try:
        return read_results(path) if os.path.lexists(path) else None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; to continue without it, move it away") from None


def write_results(path: Path, results: Results) -> None:
    """Write the answers of a run, then its results.json with one line for each fact, protocol and record."""
    parts = []
    for key, value in results.to_json().items():
        text = json.dumps(value)
        if isinstance(value, dict) and value:
            lines = [f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in value.items()]
            text = "{\n" + ",\n".join(lines) + "\n }"
        elif isinstance(value, list) and value:
            text = "[\n" + ",\n".join(f"  {json.dumps(each)}" for each in value) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    write_answers(path.parent, results.probes)
    write_file(path, "{\n" + ",\n".join(parts) + "\n}\n")


def add_records(results: Results, records: list[Record], evaluation: Evaluation) -> int:
    """Add the records of a later evaluation, in place.

    Args:
        results: Results of the run.
        records: New records. One that exists already, with the same data, protocol and value, is skipped.
        evaluation: Their origin.

    Returns:
        Number of records that existed already.
    """
    known = [
        (replace(r, evaluation=None), (r.evaluation or results.run).data)
        for r in results.probes  # records of the run itself have no evaluation
    ]
    new = [r for r in records if (r, evaluation.data) not in known]
    results.probes.extend(replace(r, evaluation=evaluation) for r in new)
    return len(records) - len(new)


def best_stage(records: list[Record]) -> Record | None:
    """Select the record of the stage with the best held-out figure; without one, of the deepest stage."""

    def key(record: Record) -> tuple[float, int]:
        heldout = -math.inf if record.heldout is None else record.heldout
        return heldout, int(record.stage.removeprefix("stage"))

    return max(records, key=key, default=None)


def objective_value(results: Results, objective: str) -> float:
    """Read one figure of a run, for a sweeper to optimise.

    Args:
        results: Results of the run.
        objective: `pretext/<name>` such as `pretext/val/loss`, or `probe/<probe>/<metric>`. The latter is the
            held-out figure of the trained backbone's best stage, since a sweep must not select on test. For
            metrics without labels, such as `probe/rankme/rankme`, it is the figure of the deepest stage.

    Raises:
        ValueError: The run has no such figure; the message lists its figures.
    """
    kind, _, rest = objective.partition("/")
    if kind == "pretext" and rest in results.pretext:
        return float(results.pretext[rest])
    probe, _, metric = rest.partition("/")
    rows = [r for r in results.probes if r.branch == "backbone" and r.evaluation is None]
    trained = any(r.trained for r in rows)  # a control without training has only untrained records
    rows = [r for r in rows if r.trained == trained and _selectable(r) is not None]
    best = best_stage([r for r in rows if kind == "probe" and (r.probe, r.metric) == (probe, metric)])
    if best is None:
        names = {f"probe/{r.probe}/{r.metric}" for r in rows}
        names |= {f"pretext/{name}" for name in results.pretext}
        raise ValueError(
            f"objective is {objective!r}; this run has {', '.join(sorted(names)) or 'no figures'}"
        )
    return cast(float, _selectable(best))


def _selectable(record: Record) -> float | None:
    """Return the figure that may select a run, if any: on held-out or on unlabelled pretraining images."""
    return float(record.value) if record.split == "pretrain" else record.heldout


def _share_protocols(records: list[Record]) -> tuple[list[Protocol], list[StoredRecord]]:
    """Split protocols into the part shared by all records of a probe and evaluation, and the rest of each."""
    groups: dict[tuple[str, Evaluation | None], list[Record]] = {}
    for record in records:
        groups.setdefault((record.probe, record.evaluation), []).append(record)
    shared = {key: _common([r.protocol for r in group]) for key, group in groups.items()}
    places = {key: number for number, key in enumerate(shared)}
    stored = []
    for record in records:
        key = (record.probe, record.evaluation)
        own = {name: value for name, value in record.protocol.items() if name not in shared[key]}
        stored.append(StoredRecord(**_figure(record), protocol=places[key], own=own))
    return list(shared.values()), stored


def _common(protocols: list[Protocol]) -> Protocol:
    """Return the entries that all protocols share; `heldout` is a figure and stays with its record."""
    first, *others = ({key: json.dumps(value) for key, value in each.items()} for each in protocols)
    return {
        key: value
        for key, value in protocols[0].items()
        if key != "heldout" and all(other.get(key) == first[key] for other in others)
    }


def _complete_records(file: ResultsFile) -> list[Record]:
    """Give each record its complete protocol.

    Raises:
        ValueError: The index of a protocol is out of range, or the protocols together exceed `MAX_BYTES`.
    """
    records, unfolded = [], 0
    sizes = [len(json.dumps(each)) for each in file.protocols]
    for number, stored in enumerate(file.probes):
        if stored.protocol >= len(file.protocols):
            allowed = f"a place in the list of {len(file.protocols)} protocols"
            raise refusal(f"probes[{number}].protocol", stored.protocol, allowed)
        unfolded += sizes[stored.protocol]
        if unfolded > MAX_BYTES:
            raise ValueError(f"foreign: its records share protocols of more than {MAX_BYTES:,} bytes in all")
        protocol = file.protocols[stored.protocol] | stored.own
        records.append(Record(**_figure(stored), protocol=protocol))
    return records


def _figure(record: Measured) -> dict[str, Any]:
    return {each.name: getattr(record, each.name) for each in fields(Measured)}


def _check_figures(record: Record, place: str) -> None:
    """Check the figures of a record; the bounds depend on its metric.

    Raises:
        ValueError: A figure is out of bounds; the message names it.
    """
    for key in PROTOCOL_NUMBERS:
        from_json(float | None, record.protocol.get(key), f"{place}.protocol.{key}")
    from_json(list[Share] | None, record.protocol.get("values"), f"{place}.protocol.values")
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
