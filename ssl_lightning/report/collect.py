"""Collection of the results.json files under a folder; broken and foreign files are reported and skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ssl_lightning.artifacts.records import Record
from ssl_lightning.artifacts.results import read_results
from ssl_lightning.artifacts.run_facts import RunFacts
from ssl_lightning.artifacts.run_folder import RESULTS
from ssl_lightning.core.untrusted import printable, printable_all


@dataclass(frozen=True)
class ReportedRun:
    """Results of one run.

    Args:
        name: Run folder, relative to the outputs.
        path: Run folder.
        facts: Facts about the run.
        pretext: Figures of the pretext task.
        probes: Records of the probes.
        ended: Time of its end, in UTC.
    """

    name: str
    path: Path
    facts: RunFacts
    pretext: dict[str, float]
    probes: list[Record]
    ended: datetime

    @property
    def finished(self) -> bool:
        return self.facts.status == "finished"

    @property
    def seed(self) -> int:
        return self.facts.seed

    @property
    def control(self) -> bool:
        """Whether the run trained nothing, so that its figures belong to the untrained backbone."""
        return not any(record.trained for record in self.probes)

    @property
    def unhealthy(self) -> bool:
        """Whether the training failed, so that its figures mean nothing."""
        return self.facts.health is not None and self.facts.health.bad

    def probed(self, record: Record) -> str:
        """Return the data set of a record: of the run, or of a later evaluation."""
        return (record.evaluation or self.facts).data


@dataclass(frozen=True)
class Collection:
    """Runs found under the outputs, and skipped files with the reason."""

    runs: list[ReportedRun] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def collect(outputs: Path) -> Collection:
    """Read every results.json under a folder.

    Raises:
        ValueError: `outputs` is not a folder.
    """
    if not outputs.is_dir():
        raise ValueError(
            f"outputs is {str(outputs)!r}, which is not a folder; train first, or give the folder of the runs"
        )
    found = Collection()
    for path in find(outputs):
        name = printable(path.parent.relative_to(outputs).as_posix())
        try:
            found.runs.append(read_run(path, name))
        except (OSError, ValueError, OverflowError) as error:
            found.skipped[name] = printable(str(error))
    return found


def find(folder: Path) -> Iterator[Path]:
    """Yield the results.json files under a folder, in the order of their names."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        if RESULTS in files:
            yield Path(place) / RESULTS


def read_run(path: Path, name: str) -> ReportedRun:
    """Read one results.json, with texts made printable for a terminal.

    Raises:
        ValueError: It is broken, foreign, or from a newer version.
    """
    results = read_results(path, clean=printable_all)
    moment = ended(results.run.ended, path)
    return ReportedRun(name, path.parent, results.run, results.pretext, results.probes, moment)


def ended(text: str | None, path: Path) -> datetime:
    """Return the end of a run in UTC; without one in its facts, the modification time of its file."""
    if text is None:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
