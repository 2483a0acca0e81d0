"""Configs composed in Python equal the ones that the commands compose."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf

import ssl_lightning
from ssl_lightning.config.composition import compose, quote_paths
from ssl_lightning.config.identity import config_sha256
from ssl_lightning.config.types import check_special
from ssl_lightning.core.errors import RunError
from tests._composed import composed
from tests.refusals._run import tiny

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


def test_a_key_that_must_be_given_is_named() -> None:
    with pytest.raises(
        RunError, match=r"^error: data\.pretrain_dir must be given: data\.pretrain_dir=\.\.\.$"
    ):
        compose("train", ["data=folder"])


@pytest.mark.parametrize("name", ["train", "evaluate", "audit", "compare"])
def test_every_config_of_a_run_composes_and_nothing_of_hydra_stays(name: str, tmp_path: Path) -> None:
    HydraConfig.instance().cfg = None
    cfg = compose(name, [f"output_dir={tmp_path}"])
    assert not any("${" in str(value) for value in OmegaConf.to_container(cfg).values())  # type: ignore[union-attr]
    assert Path(cfg.run_dir).is_relative_to(tmp_path)
    assert not HydraConfig.initialized()
    assert not GlobalHydra.instance().is_initialized()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{0.:"conv1.",10.:bn1.,fc.:null}', {"0.": "conv1.", "10.": "bn1.", "fc.": None}),
        (
            '{module.encoder_q.:"",module.encoder_q.fc.:null}',
            {"module.encoder_q.": "", "module.encoder_q.fc.": None},
        ),
        ("{features.:0.,1.0.:layer1.,3:x}", {"features.": "0.", "1.0.": "layer1.", "3": "x"}),
    ],
)
def test_a_prefix_map_keeps_the_names_as_they_are_written(written: str, read: dict[str, str | None]) -> None:
    cfg = compose("evaluate", [f"prefix_map={written}"])
    assert cfg.prefix_map == read
    config: Any = OmegaConf.to_container(cfg)
    check_special(config)
    assert len(config_sha256(config)) == 64


@pytest.mark.parametrize(
    "name",
    ["epoch=9-step=100.ckpt", "moco (1).pth", "été.pth", "it's {a}.pth", "~/x.pth", "a file.pth", "[1].pth"],
)
def test_paths_of_any_characters_are_read(name: str) -> None:
    (override,) = quote_paths([f"weights={name}"])
    assert compose("evaluate", [override]).weights == name


def test_other_values_stay_as_they_are_written() -> None:
    given = [
        "weights='a (1).pth'",
        "data.dir=a,b",
        "init_from=${output_dir}/x.pth",
        "task=(",
        "run=null",
        "-m",
    ]
    assert quote_paths(given) == given


def test_a_map_with_quoted_names_is_refused_with_the_right_form() -> None:
    cfg = compose("evaluate", quote_paths(['prefix_map={"module.":""}']))
    with pytest.raises(ValueError, match=r'a mapping without quoted keys, such as \{module\.:"",fc\.:null\}'):
        check_special(OmegaConf.to_container(cfg))  # type: ignore[arg-type]


def test_wrong_overrides_are_named() -> None:
    with pytest.raises(HydraException, match="task/rotatio"):
        compose("train", ["task=rotatio"])
    given = ["experiment=voc07_classification", "probe=[linear]", "probe.finetune.fractions=[0.5]"]
    with pytest.raises(RunError, match=r"probe=\[linear,finetune\] chooses it"):
        compose("train", given)


def test_parts_are_built_from_it_and_train(tmp_path: Path) -> None:
    cfg = ssl_lightning.compose("train", [*tiny([]), f"output_dir={tmp_path}"])
    parts = ssl_lightning.build_parts(cfg, Path(cfg.run_dir), resume=False)
    assert not list(tmp_path.iterdir())
    parts.trainer.fit(parts.task, datamodule=parts.data)
    assert parts.trainer.current_epoch == 1
