"""Results of a run, and their file results.json: read, checked, written; imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

from ssl_lightning.artifacts.answers import with_answers, write_answers
from ssl_lightning.artifacts.field_types import Count
from ssl_lightning.artifacts.records import Evaluation, Measured, Protocol, Record, best_stage, check_figures
from ssl_lightning.artifacts.run_facts import RunFacts
from ssl_lightning.artifacts.run_folder import RESULTS
from ssl_lightning.artifacts.typed_json import from_json, refusal, to_json
from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.core.untrusted import check_schema, read_json

# The fields here, of `artifacts/records.py` and of `artifacts/run_facts.py` define results.json. After a
# change of them, run `python -m ssl_lightning.report.results_schema` to rewrite the JSON schema; raise SCHEMA
# too, unless the change only adds an optional field.
SCHEMA: Final = 2
MAX_BYTES = 1 << 25  # of a results.json; a run writes about 50 kB


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
            check_figures(record, f"probes[{number}]")
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
        records: New records. One that exists already, with the same data, protocol and value, is skipped, and
            gives the known one its answers if that has none.
        evaluation: Their origin.

    Returns:
        Number of records that existed already.
    """
    known = [
        (replace(r, evaluation=None), (r.evaluation or results.run).data)
        for r in results.probes  # records of the run itself have no evaluation
    ]
    new = []
    for record in records:
        if (record, evaluation.data) not in known:
            new.append(replace(record, evaluation=evaluation))
            continue
        place = known.index((record, evaluation.data))
        answers = results.probes[place].answers or record.answers
        results.probes[place] = replace(results.probes[place], answers=answers)
    results.probes.extend(new)
    return len(records) - len(new)


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
