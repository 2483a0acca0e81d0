"""Advice on unknown keys: the key that was probably meant, at any depth."""

from pathlib import Path

import pytest
from hydra.errors import HydraException
from yaml import YAMLError

from ssl_lightning.config.composition import compose
from ssl_lightning.config.misspelled import explained


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("epochs=5", "epochs is not a key of the config; did you mean trainer.max_epochs"),
        ("lr=0.1", "lr is not a key of the config; did you mean optimizer.lr?"),
        ("batch_size=32", "batch_size is not a key of the config; did you mean data.batch_size?"),
        ("pretrain_dir=x", "pretrain_dir is not a key of the config; did you mean data.pretrain_dir?"),
        ("sedd=1", "sedd is not a key of the config; did you mean seed?"),
        ("trainer.max_epoch=3", "trainer.max_epoch is not a key of trainer; did you mean max_epochs"),
        ("rotation", "rotation is not KEY=VALUE; did you mean task=rotation?"),
        ("cpu", "cpu is not KEY=VALUE; did you mean budget=cpu or trainer=cpu?"),
        (
            "probe.segmentation.steps=9",
            "probe.segmentation is not chosen; give probe=[linear,knn,segmentation]",
        ),
        ("callbacks.lidar.images=9", "callbacks.lidar is not a key of callbacks; allowed are checkpoint, "),
        ("task.mask=none", "task.mask is not a key of task; allowed are copies, "),
        ("zzz", "zzz is not KEY=VALUE; `python train.py --help` lists the keys"),
        ("zzz=1", "zzz is not a key of the config; `python train.py --help` lists the keys"),
    ],
)
def test_an_unknown_key_is_explained(given: str, told: str) -> None:
    with pytest.raises(HydraException) as raised:
        compose("train", ["data=folder", "data.pretrain_dir=y", given])
    assert explained(raised.value).startswith(told)


def test_all_options_are_listed_only_if_none_is_close() -> None:
    told = {}
    for given in ("rotatoin", "zzz"):
        with pytest.raises(HydraException) as raised:
            compose("train", [f"task={given}"])
        told[given] = explained(raised.value)
    assert told["rotatoin"].endswith("'task/rotatoin'; did you mean rotation?")
    assert "did you mean" not in told["zzz"]
    assert "Available options in 'task':\n  barlow_twins\n" in told["zzz"]


def test_invalid_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task/own.yaml").write_text("_target_: own.Own\nangles: [0, 90\n")
    with pytest.raises(YAMLError) as raised:
        compose("train", [f"hydra.searchpath=[file://{tmp_path}]", "task=own"])
    assert explained(raised.value).startswith(
        f"{tmp_path}/task/own.yaml is not valid YAML: line 3, expected ','"
    )
