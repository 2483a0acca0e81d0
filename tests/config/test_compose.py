"""Configs composed in Python equal the ones that the commands compose."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

import ssl_lightning
from ssl_lightning.config.composition import compose
from ssl_lightning.core.errors import RunError
from tests._composed import composed
from tests.refusals._run import TINY

ROOT = Path(__file__).parents[2]
GIVEN = ["task=jigsaw", "data=fake", "name=first", "output_dir=/scratch", "probe=[knn]"]


def test_it_equals_the_config_that_the_command_prints() -> None:
    given = [*GIVEN, "callbacks=[]", "logger=[]"]  # the others name the run folder, which only a run has
    command = [sys.executable, str(ROOT / "train.py"), "--cfg", "job", "--resolve", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = OmegaConf.create(done.stdout)
    assert printed.run_dir is None
    printed.update(run_dir="/scratch/jigsaw/fake/convnet/first", overrides=given)
    assert compose("train", given) == printed


def test_it_equals_the_config_of_a_run(tmp_path: Path) -> None:
    given = [*GIVEN, f"output_dir={tmp_path}"]
    expected = composed(given, tmp_path / "jigsaw/fake/convnet/first")
    expected.overrides = given
    assert compose("train", given) == expected


@pytest.mark.parametrize("name", ["train", "evaluate", "audit", "compare"])
def test_every_config_of_a_run_composes_and_nothing_of_hydra_stays(name: str, tmp_path: Path) -> None:
    HydraConfig.instance().cfg = None
    cfg = compose(name, [f"output_dir={tmp_path}"])
    assert not any("${" in str(value) for value in OmegaConf.to_container(cfg).values())  # type: ignore[union-attr]
    assert Path(cfg.run_dir).is_relative_to(tmp_path)
    assert not HydraConfig.initialized()
    assert not GlobalHydra.instance().is_initialized()
    assert not list(tmp_path.iterdir())


def test_wrong_overrides_are_named() -> None:
    with pytest.raises(HydraException, match="task/rotatio"):
        compose("train", ["task=rotatio"])
    given = ["experiment=voc07_classification", "probe=[linear]", "probe.finetune.fractions=[0.5]"]
    with pytest.raises(RunError, match=r"probe=\[linear,finetune\] chooses it"):
        compose("train", given)


def test_parts_are_built_from_it_and_train(tmp_path: Path) -> None:
    cfg = ssl_lightning.compose("train", [*TINY, f"output_dir={tmp_path}"])
    parts = ssl_lightning.build_parts(cfg, Path(cfg.run_dir), resume=False)
    assert not list(tmp_path.iterdir())
    parts.trainer.fit(parts.task, datamodule=parts.data)
    assert parts.trainer.current_epoch == 1
