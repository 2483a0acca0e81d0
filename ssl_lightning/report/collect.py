"""Every results.json under a folder, read with distrust: what is broken or foreign is named and left out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ssl_lightning.results import FILE_NAME, SCHEMA, STATUSES, Record

NUMBER = (int, float)
RUN = {
    "task": str, "data": str, "backbone": str, "seed": int, "epochs": int, "wall_s": NUMBER,
    "images_per_s": NUMBER, "git": str, "versions": dict, "config_sha256": str, "status": str,
}  # fmt: skip
LATER = {
    "labels": str,
    "benchmark": dict,
    "command": str,
    "series_sha256": str,
    "ended": str,
}  # or null, or not
BENCHMARK = {"name": str, "row": str}
NUMBERS = ("heldout", "k", "k_shot", "fraction")  # of a protocol, or null, or not there
RECORD = {
    "probe": str, "branch": str, "stage": str, "trained": bool, "metric": str, "value": NUMBER, "n": int,
    "protocol": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What one run left.

    Args:
        name: Its folder, relative to the outputs.
        path: Its folder.
        facts: `run` of its results.json.
        pretext: Figures of the pretext task.
        probes: Records of the probes.
        ended: When, in UTC.
    """

    name: str
    path: Path
    facts: dict[str, Any]
    pretext: dict[str, float]
    probes: list[Record]
    ended: datetime

    @property
    def finished(self) -> bool:
        return bool(self.facts["status"] == "finished")

    @property
    def seed(self) -> int:
        return int(self.facts["seed"])

    @property
    def control(self) -> bool:
        """Whether it trained nothing: its figures are those of the untrained trunk."""
        return not any(record["trained"] for record in self.probes)

    def probed(self, record: Record) -> str:
        """The data that a record was measured on: those of the run, or of a later evaluation."""
        return str(record.get("evaluation", self.facts)["data"])


@dataclass(frozen=True)
class Collection:
    """What was found under the outputs: runs by folder, and what could not be read, with the reason."""

    runs: list[Run] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def collect(outputs: Path) -> Collection:
    """Read every results.json under a folder.

    Raises:
        ValueError: There is no such folder.
    """
    if not outputs.is_dir():
        raise ValueError(f"outputs is {str(outputs)!r}, and there is no such folder")
    found = Collection()
    for path in find(outputs):
        name = path.parent.relative_to(outputs).as_posix()
        try:
            found.runs.append(read_run(path, name))
        except (OSError, ValueError, RecursionError) as error:
            found.skipped[name] = str(error)
    return found


def find(folder: Path) -> Iterator[Path]:
    """The results.json files under a folder, in the order of their names."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        if FILE_NAME in files:
            yield Path(place) / FILE_NAME


def read_run(path: Path, name: str) -> Run:
    """Read one results.json.

    Raises:
        ValueError: It is not one, or of a newer version; the message says what is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"broken: {error}") from None
    if not isinstance(content, dict) or type(content.get("schema")) is not int:
        raise ValueError("foreign: it has no schema number")
    if content["schema"] > SCHEMA:
        raise ValueError(
            f"newer: its schema is {content['schema']}, and this version reads {SCHEMA}; update ssl-lightning"
        )
    check(content, {"run": dict, "pretext": dict, "probes": list}, "")
    run = content["run"]
    check(run, RUN, "run.")
    check({key: run[key] for key in LATER if run.get(key) is not None}, LATER, "run.", partly=True)
    if run["status"] not in STATUSES:
        raise ValueError(f"foreign: run.status is {run['status']!r}")
    if run.get("benchmark"):
        check(run["benchmark"], BENCHMARK, "run.benchmark.")
        if run["benchmark"].get("budget") is not None:
            check(run["benchmark"], {"budget": str}, "run.benchmark.")
    check(content["pretext"], dict.fromkeys(content["pretext"], NUMBER), "pretext.")
    for number, record in enumerate(content["probes"]):
        place = f"probes[{number}]."
        check(record, RECORD, place)
        numbers = {key: NUMBER for key in NUMBERS if record["protocol"].get(key) is not None}
        check(record["protocol"], numbers, f"{place}protocol.")
        if "evaluation" in record:
            check(record, {"evaluation": dict}, place)
            check(record["evaluation"], {"data": str}, f"{place}evaluation.")
    return Run(name, path.parent, run, content["pretext"], content["probes"], ended(run.get("ended"), path))


def check(content: Any, fields: Mapping[str, Any], place: str, partly: bool = False) -> None:
    """See that the fields are there and of their types.

    Raises:
        ValueError: One is not; the message names it.
    """
    if not isinstance(content, dict):
        raise ValueError(f"foreign: {place.rstrip('.')} is not an object")
    for key, kind in fields.items():
        if key not in content:
            if partly:
                continue
            raise ValueError(f"foreign: it has no {place}{key}")
        value = content[key]
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"foreign: {place}{key} is {str(value)[:40]!r}")


def ended(text: str | None, path: Path) -> datetime:
    """When a run ended, in UTC: as it says itself, else as its file was last written.

    Raises:
        ValueError: It says something else than a time.
    """
    if text is None:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"foreign: run.ended is {text[:40]!r}") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
