"""Every results.json under a folder, read with distrust: what is broken or foreign is named and left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ssl_lightning.artifacts.results import Record, RunFacts, read_results
from ssl_lightning.artifacts.run_folder import RESULTS
from ssl_lightning.core.untrusted import printable, printable_all


@dataclass(frozen=True)
class ReportedRun:
    """What one run left.

    Args:
        name: Its folder, relative to the outputs.
        path: Its folder.
        facts: About the run.
        pretext: Figures of the pretext task.
        probes: Records of the probes.
        ended: When, in UTC.
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
        """Whether it trained nothing: its figures are those of the untrained backbone."""
        return not any(record.trained for record in self.probes)

    @property
    def unhealthy(self) -> bool:
        """Whether its training cannot have learned what its figures seem to say."""
        return self.facts.health is not None and self.facts.health.bad

    def probed(self, record: Record) -> str:
        """The data that a record was measured on: those of the run, or of a later evaluation."""
        return (record.evaluation or self.facts).data


@dataclass(frozen=True)
class Collection:
    """What was found under the outputs: runs by folder, and what could not be read, with the reason."""

    runs: list[ReportedRun] = field(default_factory=list)
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
        name = printable(path.parent.relative_to(outputs).as_posix())
        try:
            found.runs.append(read_run(path, name))
        except (OSError, ValueError, OverflowError) as error:
            found.skipped[name] = printable(str(error))
    return found


def find(folder: Path) -> Iterator[Path]:
    """The results.json files under a folder, in the order of their names."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        if RESULTS in files:
            yield Path(place) / RESULTS


def read_run(path: Path, name: str) -> ReportedRun:
    """Read one results.json, and make its texts harmless for a terminal.

    Raises:
        ValueError: It is not one, or of a newer version; the message says what is wrong.
    """
    results = read_results(path, clean=printable_all)
    moment = ended(results.run.ended, path)
    return ReportedRun(name, path.parent, results.run, results.pretext, results.probes, moment)


def ended(text: str | None, path: Path) -> datetime:
    """When a run ended, in UTC: as it says itself, else as its file was last written."""
    if text is None:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
