"""Tests that a run folder of an older version evaluates, resumes and loads (tests/fixtures/README.md)."""

import importlib
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

import ssl_lightning
from ssl_lightning.artifacts.results import Results, read_results
from ssl_lightning.config.identity import RENAMED, RENAMED_KEYS, config_sha256, series_sha256
from ssl_lightning.config.trust import load_config
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.heads import PooledClassifier
from ssl_lightning.tasks.inpainting import Inpainting

ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
STORED = FIXTURES / "run_8a5cf39"
SPEC = ImageSpec(3, 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED, tmp_path / "run"))


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def results_of(folder: Path) -> Results:
    return read_results(folder / "results.json")


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_target_exists(old: str) -> None:
    module, _, name = RENAMED[old].rpartition(".")
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("target", RENAMED_KEYS)
def test_renamed_keys_keep_their_values_and_the_digest(target: str, old_run: Path) -> None:
    stored = OmegaConf.load(STORED / "config.yaml")
    stored.probe.mine = {"_target_": target, **dict.fromkeys(RENAMED_KEYS[target], 0.01)}
    stored.probe.theirs = {"_target_": "package.Probe", "trunk_lr": 0.01}  # another class may have such a key
    OmegaConf.save(stored, old_run / "config.yaml")
    config = load_config(old_run / "config.yaml")
    assert config.probe.mine == {"_target_": target, **dict.fromkeys(RENAMED_KEYS[target].values(), 0.01)}
    assert config.probe.theirs == stored.probe.theirs
    module, _, name = target.rpartition(".")
    known = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert set(RENAMED_KEYS[target].values()) <= set(known)
    before, after = (OmegaConf.to_container(each) for each in (stored, config))
    assert config_sha256(after) == config_sha256(before)  # type: ignore[arg-type]


def test_its_digests_are_unchanged() -> None:
    facts = results_of(STORED).run
    for config in (OmegaConf.load(STORED / "config.yaml"), load_config(STORED / "config.yaml")):
        content = OmegaConf.to_container(config)
        assert config_sha256(content) == facts.config_sha256  # type: ignore[arg-type]
        assert series_sha256(content) == facts.series_sha256  # type: ignore[arg-type]


def test_a_config_without_keys_has_their_former_defaults(old_run: Path) -> None:
    config = OmegaConf.load(STORED / "config.yaml")
    config.task = {"_target_": f"{Inpainting.__module__}.Inpainting", "adversarial_weight": 0.001}
    OmegaConf.save(config, old_run / "config.yaml")
    backbone = ConvNet(widths=(8, 8), strides=(2, 2))
    task = instantiate(load_config(old_run / "config.yaml").task, backbone, SPEC)
    assert not any("parametrizations" in name for name in task.state_dict())  # of spectral norm
    assert (task.adversarial_loss, type(task.judge)) == ("non_saturating", PooledClassifier)
    config.task.discriminator_norm = "spectral"
    OmegaConf.save(config, old_run / "config.yaml")
    assert load_config(old_run / "config.yaml").task.discriminator_norm == "spectral"


def test_its_backbone_loads(old_run: Path) -> None:
    maps = ssl_lightning.load_backbone(old_run)(torch.zeros(1, 3, 32, 32))
    assert [m.shape for m in maps] == [(1, 4, 16, 16), (1, 8, 8, 8)]


@pytest.mark.slow
def test_it_is_evaluated(old_run: Path) -> None:
    before = results_of(old_run)
    command("evaluate.py", f"run={old_run}")
    added = results_of(old_run).probes[len(before.probes) :]
    stored = {(r.probe, r.stage, r.metric): r.value for r in before.probes if r.trained}
    for record in added:  # another processor rounds differently: at most three of 32 test images
        key = (record.probe, record.stage, record.metric)
        assert record.value == pytest.approx(stored[key], abs=3 / 32)


@pytest.mark.slow
def test_it_is_resumed(old_run: Path) -> None:
    command("train.py", f"resume={old_run}", "trainer.max_epochs=3")
    results = results_of(old_run)
    assert (results.run.epochs, results.run.resumed, results.run.status) == (
        3,
        1,
        "finished",
    )
    expected = load_file(FIXTURES / "resumed_8a5cf39.safetensors")
    for name, value in load_file(old_run / "backbone.safetensors").items():
        # rounding of another processor over one epoch
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-3, msg=name)
