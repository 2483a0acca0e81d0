"""results.json: atomic, comparable, and read back for sweepers."""

import json
from pathlib import Path

import pytest

from ssl_lightning.artifacts.results import best_stage, objective_value, write_json
from ssl_lightning.config.identity import config_sha256


def record(probe: str, stage: str, value: float, heldout: float | None, trained: bool = True) -> dict:
    protocol = {} if heldout is None else {"heldout": heldout}
    return {
        "probe": probe,
        "branch": "backbone",
        "stage": stage,
        "trained": trained,
        "metric": "top1",
        "value": value,
        "protocol": protocol,
    }


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": [2] * 10_000, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_sees_the_science_and_nothing_else() -> None:
    base = {"seed": 0, "optimizer": {"lr": 0.1}, "run_dir": "/a", "name": "x"}
    assert config_sha256(base) == config_sha256(base | {"run_dir": "/b", "name": "y"})
    assert config_sha256(base) != config_sha256(base | {"optimizer": {"lr": 0.2}})
    assert config_sha256(base) != config_sha256(base | {"seed": 1})


def test_the_best_stage_is_not_chosen_on_test() -> None:
    records = [record("linear", "stage1", 0.9, 0.3), record("linear", "stage2", 0.5, 0.6)]
    assert best_stage(records) == records[1]
    assert best_stage([]) is None


def test_objective_is_the_heldout_figure_of_the_trained_trunk() -> None:
    rows = [record("linear", "stage1", 0.5, 0.7, trained=False), record("linear", "stage1", 0.4, 0.6)]
    results = {"pretext": {"val/loss": 1.5}, "probes": rows}
    assert objective_value(results, "probe/linear/top1") == 0.6
    assert objective_value(results, "pretext/val/loss") == 1.5
    # a control that trains nothing has only untrained rows
    assert objective_value(results | {"probes": rows[:1]}, "probe/linear/top1") == 0.7


def test_a_rank_of_unlabelled_images_may_be_an_objective() -> None:
    rows = [record("rankme", f"stage{depth}", value, None) for depth, value in ((1, 90.0), (2, 12.5))]
    rows = [r | {"metric": "rankme", "split": "pretrain"} for r in rows]
    assert objective_value({"pretext": {}, "probes": rows}, "probe/rankme/rankme") == 12.5  # of the deepest


@pytest.mark.parametrize("objective", ["probe/knn/top1", "pretext/val/acc", "nonsense"])
def test_an_unknown_objective_names_those_there_are(objective: str) -> None:
    results = {"pretext": {"val/loss": 1.5}, "probes": [record("linear", "stage1", 0.4, 0.6)]}
    with pytest.raises(ValueError, match="pretext/val/loss, probe/linear/top1"):
        objective_value(results, objective)
