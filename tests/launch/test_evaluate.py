"""Evaluations of a run with changed data: its own keys, its own mean, and no trace of a refused one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from ssl_lightning.artifacts.classifiers import load_classifier
from ssl_lightning.artifacts.records import best_stage
from ssl_lightning.artifacts.results import read_results
from ssl_lightning.artifacts.run_folder import (
    BACKBONE_CONFIG,
    CONFIG,
    ERROR,
    EVALUATION,
    EVALUATION_ERROR,
    RESULTS,
)
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.evaluate import as_given, evaluation_config, with_data_of_run
from ssl_lightning.launch.ranks import failure_message
from ssl_lightning.launch.train import save_config
from tests._composed import CONF, composed

ROOT = Path(__file__).parents[2]
RUN = ["task=rotation", "data=folder", "data.image_size=32", "trainer=cpu", "budget=tiny", "logger=[]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Leave the config and the export of a run on a folder without labels."""
    given = [*RUN, f"data.pretrain_dir={tmp_path}/photos"]
    cfg = composed(given, tmp_path / "run")
    OmegaConf.update(cfg, "overrides", given, force_add=True)
    save_config(cfg, tmp_path / "run")
    shown = {"colour": "RGB", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "run" / BACKBONE_CONFIG).write_text(json.dumps({"input": shown}))
    return tmp_path / "run"


def evaluated(folder: Path, *arguments: str) -> DictConfig:
    """Return the config of an evaluation, as the command composes it."""
    arguments = (f"run={folder}", *arguments)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        overrides = with_data_of_run(arguments)
        cfg = compose("evaluate", overrides, return_hydra_config=True)
    cfg.choices = {"task": "evaluate", "data": "cifar10", "backbone": "convnet"}
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return evaluation_config(folder, cfg, as_given(overrides))


def test_labels_are_added_to_the_data_of_the_run(folder: Path) -> None:
    cfg = evaluated(folder, "data.train_dir=a", "data.test_dir=b")
    assert cfg.choices.data == "folder"
    assert (cfg.data.train_dir, cfg.data.test_dir, cfg.data.image_size) == ("a", "b", 32)
    assert cfg.data.pretrain_dir.endswith("photos")
    assert cfg.overrides[1:] == ["data.train_dir=a", "data.test_dir=b"]  # the command that repeats it
    assert (list(cfg.data["mean"]), list(cfg.data["std"])) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_a_mean_of_the_command_line_or_of_another_data_set_stays(folder: Path) -> None:
    given = evaluated(folder, "data.mean=[0.5,0.5,0.5]", "data.std=[1,1,1]")
    assert list(given.data["mean"]) == [0.5, 0.5, 0.5]
    other = evaluated(folder, "data=fake", "data.heldout=9")
    assert (other.data["mean"], other.data.heldout, other.choices.data) == (None, 9, "cifar10")
    (folder / BACKBONE_CONFIG).write_text('{"input": {"colour": "L", "mean": [50], "std": [50]}}')
    assert evaluated(folder, "data.heldout=3").data["mean"] is None
    (folder / BACKBONE_CONFIG).write_text("{")
    assert evaluated(folder, "data.heldout=3").data.heldout == 3


def test_an_evaluation_needs_neither_the_compiler_nor_the_gpu_of_its_run(folder: Path) -> None:
    stored = OmegaConf.load(folder / CONFIG)
    stored.compile = stored.cuda_graphs = True
    OmegaConf.save(stored, folder / CONFIG)
    cfg = evaluated(folder, "probe=[]")
    assert (cfg.compile, cfg.cuda_graphs) == (False, False)


def test_a_key_of_the_trainer_leaves_the_others_of_the_run(folder: Path) -> None:
    stored = OmegaConf.load(folder / CONFIG)
    stored.trainer.precision = "32-true"
    OmegaConf.save(stored, folder / CONFIG)
    cfg = evaluated(folder, "trainer.devices=2")
    assert (cfg.trainer.devices, cfg.trainer.precision, cfg.trainer.accelerator) == (2, "32-true", "cpu")
    other = evaluated(folder, "trainer=auto", "trainer.devices=2")
    assert (other.trainer.devices, other.trainer.precision, other.trainer.accelerator) == (2, "auto", "auto")


def test_a_key_that_the_data_lack_is_refused(folder: Path) -> None:
    with pytest.raises(RunError, match=r"data\.trian_dir is not a key of the run's data=folder.*train_dir"):
        evaluated(folder, "data.trian_dir=a")


@pytest.mark.parametrize(
    ("name", "status", "kept"),
    [(ERROR, "failed", True), (ERROR, "finished", False), (EVALUATION_ERROR, "failed", False)],
)
def test_only_a_failed_run_keeps_its_error(name: str, status: str, kept: bool, tmp_path: Path) -> None:
    stored = ROOT / "tests/fixtures/run_8a5cf39" / RESULTS
    content = json.loads(stored.read_text())
    content["run"]["status"] = status
    (tmp_path / RESULTS).write_text(json.dumps(content))
    (tmp_path / name).write_text("too large\n\nTraceback ...")
    message = failure_message(tmp_path / name, 0, 1)
    assert message.startswith("error: too large")
    assert ("details" in message, (tmp_path / name).exists()) == (kept, kept)


def pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(count)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{number}.png")


def call(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ssl_lightning", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_small_run_without_labels_is_reported_and_gets_labels_later(tmp_path: Path) -> None:
    pictures(tmp_path / "photos", 5)
    for split in ("train", "test"):
        pictures(tmp_path / split / "a", 20)
        pictures(tmp_path / split / "b", 3)
    done = call(tmp_path, "train", *RUN, "data.pretrain_dir=photos", "data.root=cache", "name=x")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("data.batch_size is 16; 4 is used") == 1
    folder = tmp_path / "outputs/rotation/folder/convnet/x"
    shown = call(tmp_path, "report").stdout
    assert "Runs without figures of probes" in shown
    before = sorted(folder.iterdir())
    refused = call(tmp_path, "evaluate", f"run={folder}", "data.train_dir=train")
    assert "class b of train has 3 images; without data.test_dir the figures are" in refused.stderr
    assert sorted(folder.iterdir()) == before
    # the command that the report suggests
    assert "evaluate run=<run folder> data.train_dir=<folder>" in shown
    done = call(tmp_path, "evaluate", f"run={folder}", "data.train_dir=train", "data.test_dir=test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "Unequal classes: always answering the largest one is right on 87.0% of 23 test images" in done.stdout
    )
    evaluation = (folder / EVALUATION).read_bytes()
    assert call(tmp_path, "evaluate", f"run={folder}", "data.train_dir=gone").returncode == 1
    assert (folder / EVALUATION).read_bytes() == evaluation
    results: dict[str, Any] = json.loads((folder / RESULTS).read_text())
    assert {record["metric"] for record in results["probes"]} == {"top1", "balanced"}
    assert {record["n"] for record in results["probes"]} == {23}
    assert "linear balanced" in call(tmp_path, "report").stdout


@pytest.mark.slow
def test_labelled_images_without_a_test_folder_are_cross_validated(tmp_path: Path) -> None:
    pictures(tmp_path / "photos", 12)
    for name in ("a", "b"):
        pictures(tmp_path / "labelled" / name, 15)
    labelled = ["data.pretrain_dir=photos", "data.train_dir=labelled", "data.root=cache", "name=x"]
    done = call(tmp_path, "train", *RUN, *labelled, "probe=[linear,knn,finetune]", "probe_untrained=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test      figures cross-validated in 5 folds of all labelled images" in done.stdout
    assert "Cross-validated top-1 in %" in done.stdout
    folder = tmp_path / "outputs/rotation/folder/convnet/x"
    results = read_results(folder / RESULTS)
    assert {(record.n, record.protocol["cross_validated"]) for record in results.probes} == {(30, 5)}
    assert len({record.answers.test for record in results.probes if record.answers}) == 1
    best = best_stage([r for r in results.probes if r.trained and r.probe == "linear"])
    assert best is not None
    assert load_classifier(folder).facts["test"] == best.value
    assert "each fifth of the labelled images is tested" in call(tmp_path, "report").stdout
