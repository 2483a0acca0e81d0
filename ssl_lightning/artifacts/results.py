"""results.json: the one file that a run leaves for the report. Written whole or not at all."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import subprocess
from pathlib import Path
from typing import Any, cast

from ssl_lightning.core.atomic_files import write_file

SCHEMA = 1
STATUSES = ("finished", "failed", "interrupted")
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "ssl-lightning")

Record = dict[str, Any]


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically: a reader sees the old file or the new one, never a part."""
    write_file(path, json.dumps(content, indent=1))


def git_revision() -> str:
    """Commit of the code, with "-dirty" after local changes; "" outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a figure can depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def add_records(results: dict[str, Any], records: list[Record], evaluation: dict[str, str]) -> int:
    """Add the records of a later evaluation to the content of a results.json, in place.

    Args:
        results: The content; nothing of it is lost.
        records: The new ones. One that is there already, with the same protocol and value, is not repeated.
        evaluation: Says where the others come from: data, checkpoint, git.

    Returns:
        How many were there already.
    """
    present = [{key: r[key] for key in r if key != "evaluation"} for r in results["probes"]]
    stamps = [r.get("evaluation", {"data": results["run"]["data"]}) for r in results["probes"]]
    same = 0
    for record in records:
        if any(
            record == known and stamp["data"] == evaluation["data"]
            for known, stamp in zip(present, stamps, strict=True)
        ):
            same += 1
        else:
            results["probes"].append(record | {"evaluation": evaluation})
    return same


def best_stage(records: list[Record]) -> Record | None:
    """The record whose stage did best on held-out images; without such a figure the deepest stage."""
    if not records:
        return None

    def key(record: Record) -> tuple[float, str]:
        heldout = record["protocol"].get("heldout")
        return (-math.inf if heldout is None else heldout, record["stage"])

    return max(records, key=key)


def objective_value(results: dict[str, Any], objective: str) -> float:
    """Read one figure of a run, for a sweeper to optimise.

    Args:
        results: The content of a results.json.
        objective: `probe/<probe>/<metric>` (trained backbone, held-out figure of its best stage: a
            sweep must not select on test; of a figure that needs no labels, such as `probe/rankme/rankme`,
            that of the deepest stage), or `pretext/<name>` such as `pretext/val/loss`.

    Raises:
        ValueError: The run has no such figure; the message names those that it has.
    """
    kind, _, rest = objective.partition("/")
    if kind == "pretext" and rest in results["pretext"]:
        return float(results["pretext"][rest])
    probe, _, metric = rest.partition("/")
    rows = [r for r in results["probes"] if r["branch"] == "backbone" and "evaluation" not in r]
    trained = any(r["trained"] for r in rows)  # a control that trains nothing has only untrained rows
    rows = [r for r in rows if r["trained"] == trained and _selectable(r) is not None]
    best = best_stage([r for r in rows if kind == "probe" and (r["probe"], r["metric"]) == (probe, metric)])
    if best is None:
        names = {f"probe/{r['probe']}/{r['metric']}" for r in rows}
        names |= {f"pretext/{name}" for name in results["pretext"]}
        raise ValueError(
            f"objective is {objective!r}; this run has {', '.join(sorted(names)) or 'no figures'}"
        )
    return cast(float, _selectable(best))


def _selectable(record: Record) -> float | None:
    """The figure by which a run may be chosen, if any: on held-out, or on unlabelled pretraining images."""
    if record.get("split") == "pretrain":
        return float(record["value"])
    heldout = record["protocol"].get("heldout")
    return None if heldout is None else float(heldout)
