"""Choices of probes, callbacks and data that benchmarks, budgets and experiments do not foresee."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.config.composition import drop_unchosen
from ssl_lightning.config.types import check_types
from ssl_lightning.core.errors import RunError
from tests._composed import CONF
from tests._composed import composed as composed_for
from tests.test_benchmarks import TABLES, save_picture, sweep
from tests.test_conf import NEEDED, options

FOLDER = ["data=folder", "data.pretrain_dir=/photos"]
CHOICES = [
    (["probe=[]", "callbacks=[]", "data=fake"], []),
    (["probe=[linear]", "callbacks=[progress]", *FOLDER], ["linear"]),
]


def composed(*overrides: str) -> DictConfig:
    """Compose conf/train.yaml with Hydra's own config."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("train", list(overrides), return_hydra_config=True)


def chosen(*overrides: str) -> DictConfig:
    cfg = composed(*overrides)
    return drop_unchosen(cfg, cfg.hydra)


def check(overrides: list[str], choice: list[str], probes: list[str]) -> None:
    """Check that a choice keeps the probes it names, and only keys that the constructors take."""
    cfg = composed_for([*overrides, *choice], Path("run"))
    check_types(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    assert list(cfg.probe) == probes
    assert list(cfg.callbacks) == (["progress"] if "callbacks=[progress]" in choice else [])


@pytest.mark.parametrize(("choice", "probes"), CHOICES)
@pytest.mark.parametrize("name", TABLES)
def test_a_benchmark_takes_any_probes_callbacks_and_data(
    name: str, choice: list[str], probes: list[str]
) -> None:
    check([f"+benchmark={name}", *sweep(name)[-1]], choice, probes)


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "probes"), CHOICES)
@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_benchmark_takes_them(name: str, choice: list[str], probes: list[str]) -> None:
    for row in sweep(name):
        check([f"+benchmark={name}", *row], choice, probes)


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "probes"), CHOICES)
@pytest.mark.parametrize("option", options("experiment"))
def test_every_experiment_takes_them(option: str, choice: list[str], probes: list[str]) -> None:
    check([f"experiment={option}"], choice, probes)


@pytest.mark.parametrize("option", ["gidaris2018_rotation", "scenes_detection"])  # for other backbones
def test_a_budget_with_its_own_backbone_takes_an_experiment(option: str) -> None:
    check_budget("gpu", option)


@pytest.mark.slow
@pytest.mark.parametrize("option", options("experiment"))
def test_every_budget_takes_every_experiment(option: str) -> None:
    for budget in options("budget"):
        check_budget(budget, option)


def check_budget(budget: str, option: str) -> None:
    given = [f"budget={budget}", f"experiment={option}", *NEEDED.get(option, [])]
    check_types(OmegaConf.to_container(composed_for(given, Path("run"))))  # type: ignore[arg-type]


def test_chosen_options_stay_unchanged() -> None:
    for given in (["+benchmark=rotnet_cifar10"], ["experiment=scenes_detection"], ["callbacks=[panel]"]):
        cfg = composed(*given, "name=one")  # the default name changes every second
        assert drop_unchosen(cfg, cfg.hydra) == cfg


def test_keys_of_a_file_apply_if_the_option_is_chosen() -> None:
    table = ["+benchmark=resnet50_imagenet", "data=fake"]
    assert chosen(*table, "probe=[knn,linear]").probe.linear.pool == 1
    assert list(chosen(*table, "probe=[knn]").probe) == ["knn"]


def test_a_list_on_the_command_line_replaces_the_probes_of_a_benchmark() -> None:
    table = ["+benchmark=rotnet_cifar10", "experiment=gidaris2018_rotation"]
    every = list(chosen(*table).probe)
    assert {"linear", "knn", "paper_conv", "ours_conv"} < set(every)
    assert list(chosen(*table, "probe=[finetune]").probe) == ["finetune"]
    mine = ["+probe@probe.mine=linear", "probe.mine.pool=1"]
    assert list(chosen(*table, "probe=[knn]", *mine).probe) == ["knn", "mine"]
    fewer = chosen(*table, "~probe.linear", "~probe.ours_conv").probe
    assert list(fewer) == [name for name in every if name not in ("linear", "ours_conv")]


def test_a_key_from_the_command_line_is_never_dropped() -> None:
    row = ["experiment=cifar10_rotation", *FOLDER]
    assert "crop_padding" not in chosen(*row).data  # the file sets it too
    assert chosen(*row, "data.crop_padding=2").data.crop_padding == 2  # the constructor refuses it


def test_a_key_of_no_option_is_not_dropped() -> None:
    cfg = composed("data=fake", "+data.crop_paddin=2")
    cfg.hydra.overrides.task = ["data=fake"]  # as if a file set it
    assert drop_unchosen(cfg, cfg.hydra).data.crop_paddin == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+probe.finetun.epochs=1"],
            r"probe\.finetun\.epochs is given, and finetun is not chosen in probe=\[linear,knn\]; "
            r"options are attentive, detection, embedding, finetune, ",
        ),
        (
            ["experiment=voc07_classification", "probe=[linear]", "probe.finetune.fractions=[0.5]"],
            r"finetune is not chosen in probe=\[linear\]; probe=\[linear,finetune\] chooses it",
        ),
        (
            ["+benchmark=rotnet_cifar10", "probe=[]", "probe.paper_conv.epochs=1"],
            r"paper_conv is not chosen in probe=\[\]; options are attentive, detection, ",
        ),
        (["callbacks=[]", "+callbacks.panel.images=2"], r"callbacks=\[panel\] chooses it"),
        (["probe=[]", "+probe.knn=3"], r"probe\.knn is given, and knn is not chosen in probe=\[\]"),
    ],
)
def test_a_key_of_an_option_that_is_not_chosen_is_refused_with_the_right_names(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        chosen(*overrides)


def test_a_suggested_list_works() -> None:
    given = ["experiment=voc07_classification", "probe=[linear,finetune]", "probe.finetune.fractions=[0.5]"]
    assert chosen(*given).probe.finetune.fractions == [0.5]


def run(place: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONF.parent / "train.py"), f"output_dir={place}", *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)


@pytest.mark.slow
def test_a_benchmark_without_probes_and_callbacks_leaves_the_config_that_ran(tmp_path: Path) -> None:
    table = ["+benchmark=rotnet_cifar10", "experiment=gidaris2018_rotation", "budget=tiny", "data=fake"]
    small = ["trainer.limit_train_batches=2", "trainer=cpu", "backbone=convnet", "data.max_labels=null"]
    done = run(tmp_path, *table, *small, "probe=[]", "callbacks=[]")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (path.parent for path in tmp_path.rglob("results.json"))
    for path in (folder / "config.yaml", folder / ".hydra/config.yaml"):
        stored = OmegaConf.load(path)
        assert (stored.probe, stored.callbacks) == ({}, {}), path
        assert "blocks" not in stored.backbone, path


@pytest.mark.parametrize(
    ("table", "choice", "message"),
    [
        (
            ["+benchmark=alexnet_voc", "experiment=voc07_detection", "benchmark.row=random"],
            ["data=fake"],
            "error: data is 'fake'; benchmark alexnet_voc has columns for voc_classification, voc_",
        ),
        pytest.param(
            ["+benchmark=cifar10_six", "experiment=cifar10_rotation"],
            ["data=folder", "data.pretrain_dir=photos", "data.num_workers=0", "data.max_labels=null"],
            "error: benchmark cifar10_six shows knn, linear, lowshot, and data folder has no labelled "
            "images; give data.train_dir=, or leave these probes out: probe=[rankme]",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_benchmark_that_would_stay_empty_is_refused(
    tmp_path: Path, table: list[str], choice: list[str], message: str
) -> None:
    for number in range(20):
        save_picture(tmp_path / f"photos/{number}.jpg", number)
    done = run(tmp_path, *table, *choice)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("results.json"))


def test_an_override_is_not_resolved_to_find_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored command may name a variable that this shell does not have."""
    monkeypatch.delenv("ABSENT_HERE", raising=False)
    assert chosen("name=${oc.env:ABSENT_HERE}", "task=rotation").task._target_.endswith("Rotation")
