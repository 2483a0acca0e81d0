"""A results.json read back, with distrust: it may be broken, foreign, or of a newer version."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ssl_lightning.artifacts.results import SCHEMA, STATUSES
from ssl_lightning.artifacts.run_folder import RESULTS
from ssl_lightning.core.untrusted import check_schema, read_json

MAX_BYTES = 1 << 25  # of a file; a run leaves some 100 kB
LARGEST = 2**63  # of a number, which is then one that a float can hold
NUMBER = (int, float)
RUN = {
    "task": str, "data": str, "backbone": str, "seed": int, "epochs": int, "wall_s": NUMBER,
    "images_per_s": NUMBER, "git": str, "versions": dict, "config_sha256": str, "status": str,
}  # fmt: skip
LATER = {  # or null, or not
    "labels": str,
    "benchmark": dict,
    "command": str,
    "series_sha256": str,
    "ended": str,
    "resumed": int,
    "probe_s": dict,
    "peak_memory_gb": dict,
}
BENCHMARK = {"name": str, "row": str}
NAMES = ("task", "data", "backbone", "probe", "branch", "stage", "metric", "name", "row")
LONGEST = 200  # signs of a name: it also stands in names of files
NUMBERS = ("heldout", "k", "k_shot", "fraction", "sd")  # of a protocol, or null, or not there
RECORD = {
    "probe": str, "branch": str, "stage": str, "trained": bool, "metric": str, "value": NUMBER, "n": int,
    "protocol": dict,
}  # fmt: skip
COUNTS = ("epochs", "wall_s", "images_per_s", "n")  # never below 0
SHARES = ("top1", "map", "miou", "coco_map", "ap50", "voc07_ap50")  # metrics that are fractions


def read_results(path: Path) -> dict[str, Any]:
    """Read a results.json.

    Raises:
        ValueError: It is not one, or of a newer version; the message says what is wrong, not with which file.
        OSError: It cannot be read.
    """
    content = read_json(path, MAX_BYTES)
    check_schema(content, SCHEMA)
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
    for key in ("probe_s", "peak_memory_gb"):
        check(run.get(key) or {}, dict.fromkeys(run.get(key) or {}, NUMBER), f"run.{key}.")
    check_moment(run.get("ended"))
    check(content["pretext"], dict.fromkeys(content["pretext"], NUMBER), "pretext.")
    for number, record in enumerate(content["probes"]):
        check_record(record, f"probes[{number}].")
    return content


def earlier_results(folder: Path) -> dict[str, Any] | None:
    """The results.json that a run folder holds, if any.

    Raises:
        ValueError: It is broken, foreign, or of a newer version.
    """
    path = folder / RESULTS
    try:
        return read_results(path) if os.path.lexists(path) else None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; to do without it, move it away") from None


def check_record(record: Any, place: str) -> None:
    """See that a record of a probe is one.

    Raises:
        ValueError: It is not; the message names the field.
    """
    check(record, RECORD, place)
    numbers = {key: NUMBER for key in NUMBERS if record["protocol"].get(key) is not None}
    check(record["protocol"], numbers, f"{place}protocol.")
    if record["metric"] in SHARES:
        check_share(record["value"], f"{place}value")
        check_share(record["protocol"].get("heldout") or 0, f"{place}protocol.heldout")
    if "evaluation" in record:
        check(record, {"evaluation": dict}, place)
        check(record["evaluation"], {"data": str}, f"{place}evaluation.")


def check_share(value: float, place: str) -> None:
    """See that a figure is a fraction.

    Raises:
        ValueError: It is not.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"foreign: {place} is '{value}'; it is a fraction, 0 to 1")


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
        if not wrong and isinstance(value, NUMBER):
            wrong = not math.isfinite(value) if isinstance(value, float) else abs(value) > LARGEST
            wrong |= key in COUNTS and value < 0
        wrong |= key in NAMES and isinstance(value, str) and len(value) > LONGEST
        if wrong:
            raise ValueError(f"foreign: {place}{key} is {abbreviated(value)}")


def abbreviated(value: Any) -> str:
    """The beginning of a value, whatever it is, for a message."""
    huge = isinstance(value, int) and abs(value) > LARGEST  # Python refuses to print thousands of digits
    return "a number of many digits" if huge else repr(str(value)[:40])


def check_moment(text: str | None) -> None:
    """See that a text is a time.

    Raises:
        ValueError: It is something else.
    """
    try:
        datetime.fromisoformat(text or "2000-01-01")
    except ValueError:
        raise ValueError(f"foreign: run.ended is {str(text)[:40]!r}") from None
