"""Fixtures of the report tests: small results.json files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = """
# @package _global_
hydra:
  mode: MULTIRUN
benchmark:
  name: small
  title: A small table
  row: ${choices.task}
  rows: [random, supervised, rotation, jigsaw, inpainting]
  columns:
    - {name: linear, probe: linear, metric: top1, stage: best}
    - {name: 20-NN, probe: knn, k: 20}
    - {name: block 1, probe: linear, metric: top1, stage: stage1}
    - {name: transfer, probe: linear, metric: top1, data: stl10}
  pretext: {jigsaw: val/loss}
  published:
    - {row: rotation, column: linear, value: 61.25, source: "Gidaris et al. 2018, table 1"}
    - {row: rotation, column: block 9, value: 89.06, source: "the same"}
    - {row: DeepCluster, column: linear, value: 70.0, source: "Caron et al. 2018"}
"""

TOP = ("probe", "branch", "metric", "trained", "evaluation")
Leave = Callable[..., Path]


def record(value: float, heldout: float | None = 0.5, stage: str = "stage1", **more: Any) -> dict[str, Any]:
    """Make a record of the linear probe; `k`, `k_shot`, `input`, ... go into its protocol."""
    top = {
        key: more.pop(key) for key in ("probe", "branch", "metric", "trained", "evaluation") if key in more
    }
    protocol = {"heldout": heldout, "input": "image", "batch_norm": "trained", **more}
    names = {"probe": "linear", "branch": "backbone", "metric": "top1", "trained": True, "split": "test"}
    return {**names, "stage": stage, "value": value, "n": 10000, "protocol": protocol, **top}


@pytest.fixture
def make() -> Callable[..., dict[str, Any]]:
    return record


@pytest.fixture
def leave(tmp_path: Path) -> Leave:
    """Return a function that writes a results.json: `leave(name, probes, task=..., seed=...)`."""

    def write(name: str, probes: list[dict[str, Any]], **facts: Any) -> Path:
        task, seed = facts.get("task", "rotation"), facts.get("seed", 0)
        run = {
            "task": task, "data": "cifar10", "backbone": "convnet", "seed": seed, "devices": 1,
            "precision": "32-true", "epochs": 1, "wall_s": 100.0, "images_per_s": 50.0, "probe_s": {},
            "peak_memory_gb": {}, "git": "abc", "versions": {"torch": "2.15.0"}, "labels": "none",
            "config_sha256": hashlib.sha256(name.encode()).hexdigest(), "status": "finished",
            "benchmark": {"name": "small", "budget": "cpu", "row": task},
            "command": f"python train.py task={task} seed={seed} name={name}",
            "series_sha256": hashlib.sha256(task.encode()).hexdigest(), "ended": "2026-01-01T00:00:00+00:00",
        } | facts  # fmt: skip
        run = {key: value for key, value in run.items() if value != "absent"}
        pretext = run.pop("pretext", {"val/acc": 0.7, "val/loss": 1.25})
        folder = tmp_path / "outputs" / name
        folder.mkdir(parents=True)
        content = {"schema": 1, "run": run, "pretext": pretext, "probes": probes}
        (folder / "results.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture
def small_table(tmp_path: Path) -> Path:
    path = tmp_path / "benchmark" / "small.yaml"
    path.parent.mkdir()
    path.write_text(BENCHMARK)
    return path
