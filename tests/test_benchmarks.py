"""Tests of conf/benchmark: rows compose, published figures are well-formed, dry runs fill the tables.

The dry runs take minutes. They use a few generated pictures in the layouts of ImageNet and VOC.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from PIL import Image
from torchvision.models import vgg19

from ssl_lightning.artifacts.records import Record
from ssl_lightning.artifacts.run_facts import BenchmarkRow
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.ops.views import Strengths
from tests._composed import CONF, composed
from tests.probes.test_dense_probes import save_small_sets
from tests.test_conf import NEEDED, options
from tests.test_train import results_of

ROOT = Path(__file__).parent.parent
TABLES = options("benchmark")
ON_A_VIT = ("mae", "random_vit")  # rows of cifar10_methods on a transformer
SELECTORS = ("name", "probe", "metric", "stage", "data")  # the other keys of a column name the protocol


@cache
def table(name: str) -> DictConfig:
    """The config that the command of a table composes before the sweep."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("train", [f"+benchmark={name}", *NEEDED.get(name, [])], return_hydra_config=True)


def sweep(name: str) -> list[list[str]]:
    """The overrides of each job of a table, as Hydra's sweeper makes them."""
    params = table(name).hydra.sweeper.params
    return [
        [f"{key}={value}" for key, value in zip(params, values, strict=True)]
        for values in product(*(str(values).split(",") for values in params.values()))
    ]


@cache
def job(name: str, budget: str, number: int) -> DictConfig:
    """The resolved config of one job of a table."""
    given = [f"+benchmark={name}", f"budget={budget}", *sweep(name)[number], *NEEDED.get(name, [])]
    return composed(given, Path("run"))


def jobs(name: str) -> list[DictConfig]:
    """The first job, and all jobs that differ from it in one override; all jobs would take half a minute."""
    first, *rest = sweep(name)
    chosen = [n for n, given in enumerate(rest, 1) if len(set(given) - set(first)) == 1]
    return [job(name, "full", number) for number in (0, *chosen)]


def without_values(backbone: DictConfig) -> Any:
    """Build a backbone whose weights have shapes and no values."""
    with torch.device("meta"):
        return instantiate(backbone, in_channels=3)


def published(name: str) -> dict[tuple[str, str], float]:
    return {(entry.row, entry.column): entry.value for entry in table(name).benchmark.published}


def included(name: str) -> dict[str, DictConfig]:
    """The jobs whose runs are rows of a table without being jobs of its sweep, by row."""
    others = table(name).benchmark.get("includes", [])
    return {cfg.benchmark.row: cfg for other in others for cfg in jobs(other)}


@pytest.mark.parametrize("name", TABLES)
def test_every_row_composes_into_a_folder_of_its_own(name: str) -> None:
    made = jobs(name)
    rows = list(dict.fromkeys(cfg.benchmark.row for cfg in made))
    assert rows == [row for row in made[0].benchmark.rows if row not in included(name)]
    assert len({cfg.folder for cfg in made}) == len(made)
    for cfg in made:
        assert cfg.benchmark.name == name
        assert cfg.benchmark.budget == "full"
        assert cfg.folder.startswith(f"benchmark/{name}/full/{cfg.benchmark.row}/")
        assert cfg.go_on
        probes = instantiate(cfg.probe)
        columns = [c for c in cfg.benchmark.columns if c.get("data", cfg.choices.data) == cfg.choices.data]
        assert columns
        assert {column.probe for column in columns} <= set(probes)


@pytest.mark.parametrize("name", TABLES)
def test_a_budget_changes_neither_backbone_nor_probes_of_a_published_table(name: str) -> None:
    if not published(name):
        return  # our own table has a backbone for each budget
    for number in (0, -1):
        full, tiny = (
            job(name, "full", number % len(sweep(name))),
            job(name, "tiny", number % len(sweep(name))),
        )
        assert tiny.folder == full.folder.replace("/full/", "/tiny/")
        assert full.backbone == tiny.backbone
        assert full.probe == tiny.probe
        assert full.data.image_size == tiny.data.image_size


@pytest.mark.parametrize("name", TABLES)
def test_published_figures_are_percentages_with_a_source_and_no_figure_twice(name: str) -> None:
    entries = table(name).benchmark.published
    for entry in entries:
        assert set(entry) == {"row", "column", "value", "source"}
        assert isinstance(entry.value, float)
        assert 0 < entry.value < 100
        assert len(entry.source) > 10
        assert all(isinstance(entry[key], str) for key in ("row", "column", "source"))
    assert len(published(name)) == len(entries)
    names = [column.name for column in table(name).benchmark.columns]
    assert len(set(names)) == len(names)


def test_published_figures_equal_the_papers() -> None:
    rotnet = published("rotnet_cifar10")
    assert [rotnet["rotation", f"block {n}"] for n in (1, 2, 3, 4)] == [85.07, 89.06, 86.21, 61.73]
    assert rotnet["random", "block 2 conv"] == 72.5
    assert rotnet["supervised", "fine-tuned"] == 92.8
    linear = published("alexnet_imagenet_linear")
    assert [linear["rotation", f"conv{n}"] for n in range(1, 6)] == [18.8, 31.7, 38.7, 38.2, 36.5]
    assert [linear["random", f"conv{n}"] for n in range(1, 6)] == [11.6, 17.1, 16.9, 16.3, 14.1]
    assert len(linear) == 7 * 5
    voc = published("alexnet_voc")
    assert len(voc) == 7 * 3 - 1
    assert ("context_prediction", "segmentation 2012") not in voc
    assert round(voc["inpainting", "segmentation 2012"] - voc["random", "segmentation 2012"], 1) == 10.2
    resnet = published("resnet50_imagenet")
    by_stage = [resnet["rotation", f"stage {n}"] for n in range(1, 6)]
    assert by_stage == [12.2, 32.0, 44.6, 54.2, 45.9]
    assert resnet["jigsaw", "linear"] == 48.6
    lightly = {row: value for (row, column), value in published("lightly_cifar10").items()}
    assert lightly == {
        "simclr": 84.8, "barlow_twins": 81.9, "byol": 86.8, "dino": 81.3, "moco": 84.7, "simsiam": 76.4,
        "swav": 84.2,
    }  # fmt: skip
    assert published("cifar10_six") == published("cifar10_methods") == {}


@pytest.mark.parametrize("name", ["alexnet_imagenet_linear", "resnet50_imagenet"])
def test_every_stage_of_the_backbone_has_a_column(name: str) -> None:
    cfg = job(name, "full", 0)
    stages = len(without_values(cfg.backbone).feature_info.channels())
    asked = [column.stage for column in cfg.benchmark.columns if column.stage != "best"]
    assert asked == [f"stage{n}" for n in range(1, stages + 1)]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        # by hand: kernel^2 x in x out + bias, and two numbers per channel of each batch norm
        (
            "alexnet_imagenet_linear",
            sum(
                k * k * before * after + 3 * after
                for k, before, after in (
                    (11, 3, 64),
                    (5, 64, 192),
                    (3, 192, 384),
                    (3, 384, 256),
                    (3, 256, 256),
                )
            ),
        ),
        ("resnet50_imagenet", 25_557_032 - 2048 * 1000 - 1000),  # torchvision's model without its last layer
        ("rotnet_cifar10", 60_480 + 534_528 + 2 * 405_504 + 2 * 2176),  # convolutions of the blocks, norms
    ],
)
def test_the_backbones_have_the_size_of_the_published_ones(name: str, size: int) -> None:
    backbones = [cfg.backbone for cfg in jobs(name)]
    assert backbones == backbones[:1] * len(backbones)
    assert sum(weight.numel() for weight in without_values(backbones[0]).parameters()) == size


def test_a_transfer_takes_the_finished_backbone_of_the_same_budget_row_and_seed() -> None:
    backbones = {f"{cfg.output_dir}/{cfg.folder}" for cfg in jobs("alexnet_imagenet_linear")}
    wanted = {cfg.init_from for cfg in jobs("alexnet_voc")}
    assert wanted == {f"{folder}/backbone.safetensors" for folder in backbones}
    assert "/tiny/random/seed0/" in job("alexnet_voc", "tiny", 0).init_from
    by_row = {cfg.benchmark.row: cfg.data.channels for cfg in jobs("alexnet_voc")}
    assert by_row.pop("colorization") == 1
    assert set(by_row.values()) == {3}


PAPERS = [
    option
    for option in options("experiment")
    if option.startswith(("gidaris", "noroozi", "doersch", "zhang", "pathak", "ledig"))
]


@pytest.mark.parametrize("option", PAPERS)
def test_the_setting_of_a_paper_fits_its_backbone(option: str) -> None:
    overrides = ["task.content=null"] if option.startswith("ledig") else []  # VGG19 would be downloaded
    cfg = composed([f"experiment={option}", *NEEDED.get(option, []), *overrides], Path("run"))
    spec = ImageSpec(3, cfg.data.image_size, (0.5,) * 3, (0.2,) * 3, ("a", "b"), pretrain_labels=True)
    task_class = get_class(cfg.task._target_)
    backbone = instantiate(cfg.backbone, in_channels=task_class.backbone_channels(spec))
    task = instantiate(cfg.task, _partial_=True)(backbone, spec)
    tiles = {"noroozi2016_jigsaw": (64, 85, 21), "doersch2015_context_prediction": (96, 96 + 48, 2 * 7)}
    if option in tiles:
        assert (task.grid.tile, task.grid.pitch, task.grid.play) == tiles[option]


# --- dry runs ---


def run_table(place: Path, name: str, *overrides: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    return run_tiny(place, f"+benchmark={name}", *overrides, ok=ok)


def run_tiny(place: Path, *overrides: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a tiny budget on one core, with few images and steps."""
    command = [sys.executable, str(ROOT / "train.py"), "budget=tiny", *overrides]
    command += ["trainer=cpu", "output_dir=out", "encoding.images=4", "data.pretrain_size=null"]
    command += ["data.max_labels=null", "data.batch_size=2", "data.eval_batch_size=8"]
    # one step builds and probes every row; tests/test_user_loop.py tests training
    command += ["trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "callbacks.panel.images=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SSL_LIGHTNING_DATA": str(place / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=place)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def check_filled(place: Path, name: str, rows: list[str] | None = None) -> None:
    """Check that every job of a table has finished with a figure for each column."""
    for number in range(len(sweep(name))):
        cfg = job(name, "tiny", number)
        if rows is not None and cfg.benchmark.row not in rows:
            continue
        results = results_of(place / "out" / cfg.folder)
        assert results.run.status == "finished"
        assert results.run.benchmark == BenchmarkRow(name, cfg.benchmark.row, "tiny")
        for column in cfg.benchmark.columns:
            if column.get("data", cfg.choices.data) == cfg.choices.data:
                found = [record for record in results.probes if selects(column, record)]
                assert found, (cfg.folder, column)
                assert all(0 <= record.value <= 1 for record in found)


def selects(column: DictConfig, record: Record) -> bool:
    """Whether a column selects a record."""
    protocol = {str(key): value for key, value in column.items() if key not in SELECTORS}
    return (
        (record.probe, record.branch) == (column.probe, "backbone")
        and column.get("metric", record.metric) == record.metric
        and column.get("stage", "best") in ("best", record.stage)
        and all(record.protocol.get(key) == value for key, value in protocol.items())
    )


def save_picture(path: Path, *seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures in the layouts of ImageNet (`imagenet`) and of VOC 2007 and 2012 (`voc`)."""
    root = tmp_path_factory.mktemp("tables")
    for split, count in (("train", 6), ("val", 2)):
        for number, (label, wnid) in product(range(count), enumerate(("n01440764", "n01443537"))):
            save_picture(root / f"imagenet/{split}/{wnid}/{wnid}_{number}.JPEG", count, number, label)
    lists = {"Main": {"train": range(6), "val": range(6, 9), "trainval": range(9), "test": range(9, 12)}}
    lists["Segmentation"] = {"train": range(9), "val": range(9, 12)}
    for group, splits in lists.items():
        for split, numbers in splits.items():
            path = root / f"voc/ImageSets/{group}/{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{number:06}\n" for number in numbers))
    for folder in ("Annotations", "SegmentationClass"):
        (root / "voc" / folder).mkdir()
    for number in range(12):
        save_picture(root / f"voc/JPEGImages/{number:06}.jpg", number)
        objects = "".join(
            f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>8</ymin>"
            f"<xmax>{left + 20}</xmax><ymax>40</ymax></bndbox></object>"
            for name, left in (("cat", 4), ("dog", 36))
        )
        path = root / f"voc/Annotations/{number:06}.xml"
        path.write_text(f"<annotation>{objects}</annotation>")
        mask = np.zeros((48, 64), np.uint8)
        mask[8:40, 4:24] = 8
        Image.fromarray(mask).save(root / f"voc/SegmentationClass/{number:06}.png")
    return root


@pytest.fixture(scope="module")
def pretrained(place: Path) -> Path:
    run_table(place, "alexnet_imagenet_linear", "data.dir=imagenet", "data.heldout=4")
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "doersch2015_context_prediction",
        "doersch2017_combined",
        "ledig2017_super_resolution",
        "pathak2016_inpainting",
    ],
)
def test_dry_run_of_a_setting_outside_the_tables(option: str, place: Path) -> None:
    given = [f"experiment={option}", "name=run", "data.dir=imagenet", "data.heldout=4"]
    if option.startswith("ledig"):
        state = {f"features.{name}": weight for name, weight in vgg19().features.state_dict().items()}
        torch.save(state, place / "vgg19.pth")
        given += ["task.vgg_weights=vgg19.pth", "task.warmup_steps=0", "backbone.blocks=4"]
    run_tiny(place, *given)
    (path,) = (place / "out").glob(f"{option.partition('_')[2]}/imagenet/*/run/results.json")
    results = results_of(path.parent)
    assert results.run.status == "finished"
    assert {record.trained for record in results.probes} == {True}
    labels = "those of ImageNet, by VGG19 in the loss" if option.startswith("ledig") else "none"
    assert results.run.labels == labels


@pytest.mark.slow
def test_dry_run_of_rotnet(tmp_path: Path) -> None:
    small = ["data.num_train=48", "data.num_test=16", "data.heldout=16", "probe.knn.ks=[20]"]
    for whose in ("paper", "ours"):
        small += [f"probe.{whose}_{name}.epochs=1" for name in ("mlp", "conv", "finetune")]
        small += [f"probe.{whose}_finetune.min_steps=1"]
    small += ["callbacks.online_knn.k=2"]
    run_table(tmp_path, "rotnet_cifar10", "data=fake", *small)
    check_filled(tmp_path, "rotnet_cifar10")


@pytest.mark.slow
def test_dry_run_of_the_methods_of_lightly(tmp_path: Path) -> None:
    small = ["data.num_train=232", "data.num_test=8", "data.heldout=32", "callbacks.online_knn.k=2"]
    run_table(tmp_path, "lightly_cifar10", "data=fake", *small)
    check_filled(tmp_path, "lightly_cifar10")


@pytest.mark.slow
def test_dry_run_of_the_methods_on_cifar10(tmp_path: Path) -> None:
    small = ["data.num_train=640", "data.num_test=16", "data.heldout=64", "probe.lowshot.draws=2"]
    for name in ("cifar10_six", "cifar10_methods"):
        run_table(tmp_path, name, "data=fake", *small)
        check_filled(tmp_path, name)
    mae, control = (
        results_of(tmp_path / f"out/benchmark/cifar10_methods/tiny/{row}/seed0") for row in ON_A_VIT
    )
    assert control.probes == [record for record in mae.probes if not record.trained]
    command = [sys.executable, str(ROOT / "report.py"), "benchmark=cifar10_methods", "outputs=out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    written = (tmp_path / "report/table.md").read_text()
    assert [row for row in table("cifar10_methods").benchmark.rows if f"| {row} |" not in written] == []


@pytest.mark.slow
def test_dry_run_of_alexnet_on_imagenet(pretrained: Path) -> None:
    check_filled(pretrained, "alexnet_imagenet_linear")
    again = run_table(pretrained, "alexnet_imagenet_linear", "data.dir=imagenet", "data.heldout=4")
    assert again.stdout.count("is finished") == 7  # no row ran twice


@pytest.mark.slow
def test_dry_run_of_resnet_on_imagenet(place: Path) -> None:
    run_table(place, "resnet50_imagenet", "data.dir=imagenet", "data.heldout=4")
    check_filled(place, "resnet50_imagenet")


VOC = {
    "voc07_classification": ["probe.finetune.epochs=1", "probe.finetune.min_steps=1"],
    "voc07_detection": ["data.size=[64,64]", "probe.detection.steps=2", "probe.detection.evals=1"],
    "voc12_segmentation": ["data.size=[64,64]", "probe.segmentation.steps=2", "probe.segmentation.evals=1"],
}


@pytest.mark.slow
def test_dry_run_of_alexnet_on_voc(pretrained: Path) -> None:
    rows = ["random", "inpainting", "colorization"]  # an untrained backbone, one for RGB, one for L
    for experiment, small in VOC.items():
        batch = "finetune" if "classification" in experiment else experiment.partition("_")[2]
        run_table(
            pretrained,
            "alexnet_voc",
            f"experiment={experiment}",
            f"benchmark.row={','.join(rows)}",
            "data.dir=voc",
            "data.image_size=64",
            "data.heldout=3",
            f"probe.{batch}.batch_size=2",
            *small,
        )
    check_filled(pretrained, "alexnet_voc", rows)


@pytest.mark.slow
def test_a_missing_backbone_is_named(place: Path) -> None:
    job = ["experiment=voc07_classification", "benchmark.row=rotation", "seed=7"]
    done = run_table(place, "alexnet_voc", *job, "data.dir=voc", "data.heldout=3", ok=False)
    missing = "out/benchmark/alexnet_imagenet_linear/tiny/rotation/seed7/backbone.safetensors is not there"
    assert f"error: {missing}" in done.stderr


def test_the_rows_of_cifar10_methods_share_all_but_their_task() -> None:
    rows = {cfg.benchmark.row: cfg for cfg in jobs("cifar10_methods")}
    six = included("cifar10_methods")
    assert list(six) == list(table("cifar10_six").benchmark.rows)
    for row, cfg in (six | rows).items():
        assert cfg.choices.backbone == ("vit_tiny_small_images" if row in ON_A_VIT else "convnet")
        assert cfg.choices.task == ("combined" if row.startswith("rotation_") else row.removesuffix("_vit"))
        for key in ("probe", "callbacks", "encoding"):
            assert cfg[key] == six["random"][key]
        if cfg.choices.task != "random":
            assert cfg.trainer.max_epochs == 4
            assert cfg.probe_untrained


def test_one_command_gives_a_gpu_a_resnet_for_all_rows_but_those_of_a_transformer() -> None:
    named = ("random", "cifar10_six"), *((row, "cifar10_methods") for row in ("rotation_simclr", *ON_A_VIT))
    for row, name in named:
        rows = [cfg.benchmark.row for cfg in jobs(name)]
        cfg = job(name, "gpu", rows.index(row))
        assert cfg.benchmark.row == row
        assert cfg.choices.backbone == ("vit_tiny_small_images" if row in ON_A_VIT else "resnet18_small")
        backbone = instantiate(cfg.backbone, in_channels=3)
        get_class(cfg.task._target_)(backbone, ImageSpec(3, 32, (0.5,) * 3, (0.2,) * 3))


def test_the_experiments_of_lightly_have_its_settings() -> None:
    rows = {cfg.benchmark.row: cfg for cfg in jobs("lightly_cifar10")}
    for row, cfg in rows.items():
        assert (cfg.choices.backbone, cfg.probe.knn.ks, cfg.probe.knn.temperature) == (
            "resnet18_small",
            [200],
            0.1,
        )
        assert (cfg.data.batch_size, cfg.data.crop_padding, cfg.data.flip) == (512, 0, False)
        if row == "random":
            continue
        step = 4 if row == "byol" else 1  # its loss is four times theirs
        assert step * cfg.optimizer.lr * cfg.data.batch_size / cfg.task.lr_reference_batch == 0.06 * 512 / 128
        assert cfg.optimizer.weight_decay == step * 5e-4
        assert (cfg.optimizer.momentum, cfg.optimizer.nesterov) == (0.9, False)
        views = Strengths(**{f.name: cfg.task[f.name] for f in fields(Strengths)})
        of_dino = Strengths(crop_scale=[0.4, 1.0], saturation=0.2, solarise=0.1)  # of one view, with 0.2
        assert views == (of_dino if row == "dino" else Strengths(crop_scale=[0.08, 1.0]))
        assert cfg.trainer.max_epochs == 200


BY_LABELS = ["camvid_labels", "bccd_labels", "scenes_mask_labels", "scenes_box_labels"]


@pytest.mark.parametrize("name", BY_LABELS)
def test_the_arms_of_shares_of_labels_have_the_same_data_backbone_and_probe(name: str) -> None:
    arms = jobs(name)
    for key in ("data", "backbone", "probe", "encoding"):
        assert all(cfg[key] == arms[0][key] for cfg in arms)


@pytest.mark.parametrize("name", ["camvid_labels", "scenes_mask_labels"])
def test_the_tasks_of_segmentation_by_labels(name: str) -> None:
    arms = {cfg.benchmark.row.partition("_")[2]: cfg for cfg in jobs(name)}
    keys = ("mask", "adversarial_weight")
    tasks = {row: (cfg.choices.task, *map(cfg.task.get, keys)) for row, cfg in arms.items()}
    assert tasks == {
        "random": ("random", None, None),
        "autoencoder": ("inpainting", "none", 0),
        "inpainting": ("inpainting", "region", 0),
        "inpainting_adversarial": ("inpainting", "region", 0.1),
        "rotation": ("rotation", None, None),
        "jigsaw": ("jigsaw", None, None),
    }


def test_the_lengths_of_the_budgets() -> None:
    trained = [number for number, given in enumerate(sweep("camvid_labels")) if "random" not in given[0]]
    assert {job("camvid_labels", "cpu", number).trainer.max_epochs for number in trained} == {100}
    assert job("cifar10_six", "cpu", 2).trainer.max_epochs == 4


@pytest.mark.slow
def test_dry_run_of_the_labels_of_camvid(tmp_path: Path) -> None:
    for split, count in {"train": 20, "val": 2, "test": 2}.items():
        for number in range(count):
            save_picture(tmp_path / f"camvid/{split}/{number}.jpg", number)
            mask = np.random.default_rng(number).integers(0, 2, (48, 64), np.uint8)
            path = tmp_path / f"camvid/{split}annot/{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(mask).save(path)
    few = [
        "steps=2", "evals=1", "lr=0.01", "backbone_lr=[0.001,0.01]", "draws=2", "batch_size=2", "pictures=1"
    ]  # fmt: skip
    few = [f"probe.segmentation.{each}" for each in few]
    run_table(tmp_path, "camvid_labels", "data.dir=camvid", *few)
    folders = [tmp_path / "out" / job("camvid_labels", "tiny", number).folder for number in range(6)]
    for folder in folders:
        found = [r for r in results_of(folder).probes if r.branch == "backbone"]
        assert [(r.protocol["fraction"], r.protocol["labels"]["train"]) for r in found] == [
            (0.05, 1), (0.1, 2), (0.25, 5), (1.0, 20)
        ]  # fmt: skip
        assert all(len(r.protocol["values"]) == len(r.protocol["rates"]) == 2 for r in found)
    command = [sys.executable, str(ROOT / "report.py"), "benchmark=camvid_labels", "outputs=out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "37 pictures" in done.stdout


@pytest.mark.slow
def test_dry_run_of_the_labels_of_blood_cells(place: Path) -> None:
    few = ["steps=2", "evals=1", "draws=2", "batch_size=2", "pictures=1", "fractions=[0.5,1.0]"]
    few = [f"probe.detection.{each}" for each in few]
    given = ["data.dir=voc", "data.class_names=[cat,dog]", "data.size=[64,64]", *few]
    run_table(place, "bccd_labels", *given)
    for number, cfg in enumerate(jobs("bccd_labels")):
        folder = place / "out" / job("bccd_labels", "tiny", number).folder
        found = [r for r in results_of(folder).probes if r.metric == "ap50"]
        assert [r.protocol["labels"]["train"] for r in found] == [3, 6], cfg.benchmark.row


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "probe"), [("scenes_mask_labels", "segmentation"), ("scenes_box_labels", "detection")]
)
def test_dry_run_of_the_labels_of_scenes(tmp_path: Path, name: str, probe: str) -> None:
    save_small_sets(tmp_path / "cache")
    few = [
        "steps=2", "evals=1", "backbone_lr=0.001", "draws=2", "batch_size=2", "fractions=[0.1,1.0]"
    ]  # fmt: skip
    few = [f"probe.{probe}.{each}" for each in few]
    run_table(tmp_path, name, "data.num_train=40", "data.num_test=11", "data.heldout=20", *few)
    for number, cfg in enumerate(jobs(name)):
        found = results_of(tmp_path / "out" / job(name, "tiny", number).folder).probes
        labels = {r.protocol["labels"]["train"] for r in found if r.branch == "backbone"}
        assert labels == {2, 20}, cfg.benchmark.row
