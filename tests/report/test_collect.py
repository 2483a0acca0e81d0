"""Collection of results: broken and foreign files are skipped and named with the reason."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ssl_lightning.report.collect import collect


def test_runs_are_found_at_any_depth_in_the_order_of_their_folders(
    tmp_path: Path, leave: Any, make: Any
) -> None:
    leave("b", [make(0.5)])
    leave("a/deep/down", [make(0.5)])
    assert [run.name for run in collect(tmp_path / "outputs").runs] == ["a/deep/down", "b"]


def test_a_file_of_before_the_new_fields_is_read(tmp_path: Path, leave: Any, make: Any) -> None:
    gone = dict.fromkeys(("benchmark", "command", "series_sha256", "ended", "labels"), "absent")
    folder = leave("old", [make(0.5)], **gone)
    leave("null", [make(0.5)], **dict.fromkeys(gone))
    os.utime(folder / "results.json", (1000, 1000))
    found = collect(tmp_path / "outputs")
    assert not found.skipped
    assert {run.name: run.ended for run in found.runs}["old"] == datetime.fromtimestamp(1000, UTC)


def test_times_of_any_zone_compare(tmp_path: Path, leave: Any, make: Any) -> None:
    leave("a", [make(0.5)], ended="2026-01-01T02:00:00+02:00")
    leave("b", [make(0.5)], ended="2026-01-01T00:00:00")
    one, other = collect(tmp_path / "outputs").runs
    assert one.ended == other.ended == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"schema": 1, "run"', "broken: Expecting"),
        (b"\xff\xfe", "broken: "),
        ("[" * 100_000, "broken: |recursion"),
        ("[]", "foreign: it has no schema"),
        ('{"accuracy": 0.9}', "foreign: it has no schema"),
        ('{"schema": true}', "foreign: it has no schema"),
        ('{"schema": 3}', "made by a newer ssl-lightning: its schema is 3, and this version reads 2"),
        ('{"schema": 1, "pretext": {}, "probes": []}', "foreign: it has no run"),
        ('{"schema": 1, "run": [], "pretext": {}, "probes": []}', "foreign: run is"),
    ],
)
def test_what_is_not_a_results_file(tmp_path: Path, content: str | bytes, reason: str) -> None:
    folder = tmp_path / "outputs" / "x"
    folder.mkdir(parents=True)
    (folder / "results.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    found = collect(tmp_path / "outputs")
    assert found.runs == []
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found.skipped["x"])


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("run", "seed"), "0", "run.seed is '0'"),
        (("run", "seed"), True, "run.seed is 'True'"),
        (("run", "status"), "done", "run.status is 'done'"),
        (("run", "ended"), "yesterday", "run.ended is 'yesterday'"),
        (("run", "benchmark"), {"name": "small"}, "no run.benchmark.row"),
        (("run", "benchmark"), {"name": "small", "row": "a", "budget": 3}, "run.benchmark.budget is '3'"),
        (("probes", 0, "protocol", "k_shot"), "8", r"probes\[0\].protocol.k_shot is '8'"),
        (("run", "command"), ["python"], "run.command is"),
        (("pretext", "val/acc"), "high", "pretext.val/acc is 'high'"),
        (("probes", 0, "value"), 1.5, r"probes\[0\].value is '1.5'; allowed is a fraction"),
        (("probes", 0, "value"), None, r"probes\[0\].value is 'None'"),
        (("probes", 0, "protocol"), [], r"probes\[0\].protocol is"),
        (("probes", 0, "protocol", "heldout"), "best", "heldout is 'best'"),
        (("probes", 0, "evaluation"), {"git": "a"}, r"no probes\[0\].evaluation.data"),
        (("probes", 0), 3, r"probes\[0\] is '3'; allowed is an object"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(
    tmp_path: Path, leave: Any, make: Any, place: tuple[Any, ...], value: Any, reason: str
) -> None:
    path = leave("x", [make(0.5)]) / "results.json"
    content = json.loads(path.read_text())
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    path.write_text(json.dumps(content))
    found = collect(tmp_path / "outputs")
    assert found.runs == []
    with pytest.raises(ValueError, match=f"foreign: .*{reason}"):
        raise ValueError(found.skipped["x"])


def test_what_a_run_writes_is_read(tmp_path: Path, leave: Any, make: Any) -> None:
    """The required fields of the schema are enough."""
    schema = json.loads((Path(__file__).parents[2] / "ssl_lightning/report/results.schema.json").read_text())
    required = schema["properties"]["run"]["required"]
    path = leave("x", [make(0.5)]) / "results.json"
    content = json.loads(path.read_text())
    content["run"] = {key: value for key, value in content["run"].items() if key in required}
    path.write_text(json.dumps(content))
    assert len(collect(tmp_path / "outputs").runs) == 1


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        collect(tmp_path / "gone")
