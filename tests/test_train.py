"""`train.py` as a user runs it: a process of its own, on generated data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "ssl_lightning/report/results.schema.json").read_text())
SMALL = ["data=fake", "trainer=debug", "probe.knn.ks=[5]", "probe_untrained=true"]


def train(tmp_path: Path, *overrides: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "train.py"), f"output_dir={tmp_path}", "name=run", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SSL_LIGHTNING_DATA": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def results_of(folder: Path) -> dict:
    results = json.loads((folder / "results.json").read_text())
    jsonschema.validate(results, SCHEMA)
    return results


def test_a_whole_run(tmp_path: Path) -> None:
    done = train(tmp_path, *SMALL, "task=rotation", "logger=[csv,tensorboard]")
    folder = tmp_path / "rotation/fake/convnet/run"
    results = results_of(folder)
    assert results["run"]["status"] == "finished"
    assert (results["run"]["task"], results["run"]["data"]) == ("rotation", "fake")
    assert results["pretext"].keys() == {"val/loss", "val/acc"}
    rows = {(r["probe"], r["stage"], r["trained"], r["metric"]) for r in results["probes"]}
    for stage in ("stage1", "stage2", "stage3"):
        for trained in (False, True):
            assert ("linear", stage, trained, "top1") in rows
            assert ("knn", stage, trained, "top1") in rows
    for name in ("config.yaml", "panel.png", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        assert (folder / name).stat().st_size > 0, name
    assert "untrained" in done.stdout
    assert f"run folder: {folder}" in done.stdout


def test_the_random_control_is_where_every_task_starts(tmp_path: Path) -> None:
    train(tmp_path, *SMALL, "task=rotation", "seed=3", "logger=[]")
    train(tmp_path, *SMALL, "task=random", "seed=3", "logger=[]")
    before = [r for r in results_of(tmp_path / "rotation/fake/convnet/run")["probes"] if not r["trained"]]
    assert results_of(tmp_path / "random/fake/convnet/run")["probes"] == before


def test_two_processes_train_and_probe_as_one_run(tmp_path: Path) -> None:
    train(tmp_path, *SMALL, "task=rotation", "logger=[]", "name=one")
    train(tmp_path, *SMALL, "task=rotation", "logger=[]", "name=two", "trainer.devices=2")
    one, two = (results_of(tmp_path / f"rotation/fake/convnet/{name}") for name in ("one", "two"))
    assert (one["run"]["devices"], two["run"]["devices"]) == (1, 2)
    assert len(two["probes"]) == len(one["probes"])
    # the same images in the same order: nothing is lost or doubled on the way through two processes
    untrained = [[r for r in result["probes"] if not r["trained"]] for result in (one, two)]
    for left, right in zip(*untrained, strict=True):
        assert right["n"] == left["n"]
        assert right["value"] == pytest.approx(left["value"], abs=1 / left["n"] + 1e-9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=rotaton"], "Available options in 'task'"),
        (["task.copies=3"], "error: copies is 3; allowed are 4"),
        (
            ["backbone=resnet18", "data.image_size=16"],
            "error: data.image_size is 16 px, but the trunk has stride 32",
        ),
        (["data=folder", "data.pretrain_dir=/no/such/folder"], "/no/such/folder"),
        (["trainer=gpu"], "error: trainer.accelerator is 'gpu', but torch sees no GPU"),
        (["probe.knn.ks=[100000]"], "100000"),
        (["backbone=timm", "backbone.model_name=resnet19"], "did you mean"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path: Path, overrides: list[str], message: str) -> None:
    if "trainer=gpu" in overrides and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = train(tmp_path, *SMALL, *overrides, ok=False)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("results.json"))


def test_a_sweep_makes_one_folder_per_job(tmp_path: Path) -> None:
    sweep = ["task=random,rotation", "trainer.devices=1", "probe=[knn]", "logger=[]"]
    train(tmp_path, *SMALL, *sweep, "-m")
    found = sorted(path.parent.name for path in tmp_path.rglob("results.json"))
    assert found == ["run_0", "run_1"]
