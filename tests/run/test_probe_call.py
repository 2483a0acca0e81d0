"""One call that probes: against `run_probes`, numpy, and every kind of network and of labelled images."""

import builtins
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from ssl_lightning import ImageData, load_backbone, probe
from ssl_lightning.artifacts.records import Record
from ssl_lightning.data.fake import Fake, striped
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes.knn import KNNProbe
from ssl_lightning.probes.linear import LinearProbe
from ssl_lightning.report.probe_table import ProbeTable
from ssl_lightning.run.probe_call import probe_names
from ssl_lightning.tasks.inpainting import Inpainting
from ssl_lightning.tasks.jigsaw import Jigsaw
from ssl_lightning.tasks.rotation import Rotation

QUIET: dict[str, Any] = {"device": "cpu", "progress": False}
SPLITS = ("train", "heldout", "test")


def fake(**changes: Any) -> Fake:
    data = Fake(**{"num_train": 120, "num_test": 40, "heldout": 30, "image_size": 16} | changes)
    data.setup()
    return data


def arrays(count: int, stream: str) -> tuple[Tensor, Tensor]:
    """Return striped images (N, H, W, C) uint8 of 4 classes, and their labels."""
    return striped(count, 4, 3, 16, stream)


def backbone() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(widths=[6, 10], strides=[2, 2])


def figures(records: list[Record]) -> list[tuple[Any, ...]]:
    return [(r.probe, r.branch, r.stage, r.metric, r.value, r.heldout, r.n) for r in records]


class TwoBranches(Rotation):
    recalibrate = True

    def branches(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "discriminator": self.backbone}


def test_figures_of_a_task_equal_those_of_run_probes() -> None:
    data = fake()
    task = Rotation(backbone(), data.spec).train()
    task.backbone.eval()  # a mixture of modes
    state = torch.get_rng_state()
    table = probe(task, data, probes=["linear", KNNProbe(ks=[3])], **QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    assert task.training
    assert not task.backbone.training
    expected, _ = run_probes(
        {"backbone": task.backbone}, task.probe_input, {"linear": LinearProbe(), "knn": KNNProbe(ks=[3])},
        {split: data.downstream(split) for split in SPLITS},
        class_names=data.spec.class_names or (), folder=Path(),
    )  # fmt: skip
    assert figures(table.records) == figures(expected)
    assert len(table.records) == 4


def test_figures_of_arrays_equal_nearest_neighbours_by_numpy() -> None:
    images, labels = arrays(120, "train")
    test_images, test_labels = arrays(40, "test")
    network = backbone()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    table = probe(
        network, (images.numpy(), labels.numpy()), (test_images.permute(0, 3, 1, 2), test_labels),
        probes=[KNNProbe(ks=[1])], mean=mean, std=std, **QUIET,
    )  # fmt: skip
    network.eval()

    def features(x: Tensor) -> np.ndarray:
        inputs = (x.numpy() / 255 - np.array(mean)) / np.array(std)
        with torch.no_grad():
            maps = network(torch.from_numpy(inputs).permute(0, 3, 1, 2).float())
        pooled = maps[-1].double().numpy().mean((2, 3))
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    nearest = (features(test_images) @ features(images).T).argmax(1)
    top1 = (labels.numpy()[nearest] == test_labels.numpy()).mean()
    record = table.records[-1]
    assert (record.stage, record.n) == ("stage2", 40)
    assert record.value == pytest.approx(top1)
    assert record.standard_error == pytest.approx((top1 * (1 - top1) / 40) ** 0.5)
    assert record.protocol["labels"] == {"train": 108, "heldout": 12}  # a tenth
    assert "as given" in record.protocol["normalisation"]


@pytest.mark.parametrize(
    ("make", "stages", "words"),
    [
        (lambda: torchvision.models.resnet18(), 4, "measured on the images"),
        (lambda: timm.create_model("resnet10t"), 5, "timm's pretrained_cfg"),
        (lambda: timm.create_model("resnet10t", features_only=True), 5, "timm's pretrained_cfg"),
    ],
)
def test_any_network_is_probed_and_stays_as_it_is(make: Any, stages: int, words: str) -> None:
    network = make()
    names = [type(part).__name__ for part in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    table = probe(network, fake(image_size=32), probes=["knn"], **QUIET)
    assert {record.stage for record in table.records} == {f"stage{n + 1}" for n in range(stages)}
    assert words in repr(table)
    assert [type(part).__name__ for part in network.modules()] == names
    assert network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_a_loaded_backbone_takes_its_own_input() -> None:
    network = load_backbone(Path(__file__).parents[1] / "fixtures/run_8a5cf39")
    images, labels = striped(60, 4, 3, 40, "train")
    table = probe(network, (images, labels), (images[:8], labels[:8]), probes=[KNNProbe(ks=[1])], **QUIET)
    assert {record.value for record in table.records} == {1.0}  # the test images are in the bank
    assert table.records[0].protocol["normalisation"] == "transform of the backbone"


def test_all_branches_are_probed_with_the_batch_norm_of_the_task() -> None:
    data = fake()
    task = TwoBranches(backbone(), data.spec)
    table = probe(task, data, probes={"near": KNNProbe(ks=[3])}, **QUIET)
    assert [(r.branch, r.probe, r.stage) for r in table.records] == [
        (branch, "near", stage) for branch in ("backbone", "discriminator") for stage in ("stage1", "stage2")
    ]
    assert table.records[0].protocol["batch_norm"].startswith("recalibrated on 90 ")
    assert "discriminator stage2" in repr(table)
    kept = probe(task, data, probes=[KNNProbe(ks=[3])], batch_norm="trained", **QUIET)
    assert kept.records[0].protocol["batch_norm"] == "trained"


def test_finetuning_and_pictures_work_in_one_call(tmp_path: Path) -> None:
    from ssl_lightning.probes.embedding import EmbeddingProbe
    from ssl_lightning.probes.finetune import FineTuneProbe

    few = FineTuneProbe(fractions=[1.0], epochs=1, min_steps=2)
    table = probe(backbone(), fake(), probes=[few, EmbeddingProbe()], folder=tmp_path, **QUIET)
    assert [(r.probe, r.metric, r.n) for r in table.records] == [("finetune", "top1", 40)]
    assert (tmp_path / "neighbours.png").exists()


def record(name: str, stage: str, value: float, heldout: float | None, **more: Any) -> Record:
    protocol = {"heldout": heldout, **more}
    return Record(stage, "top1", value, 100, protocol, probe=name, branch="backbone")


TABLE = ProbeTable(
    [
        record("linear", "stage1", 0.5, 0.4),
        record("linear", "stage2", 0.4, 0.6),
        record("knn", "stage1", 0.3, 0.7, k=20),
        record("knn", "stage2", 0.2, 0.1, k=20),
        Record("stage2", "rankme", 12.34, 50, {}, probe="rankme", branch="backbone", split="pretrain"),
    ],
    ["images: <3>"],
)


def test_the_best_stage_is_the_one_of_the_heldout_images() -> None:
    assert TABLE.best("linear") is TABLE.records[1]
    assert TABLE.best() is TABLE.records[2]
    assert TABLE.best("rankme").value == 12.34
    assert str(TABLE.best("linear")) == "linear top1 of backbone stage2: 0.4000 ± 0.0490 (n=100)"
    with pytest.raises(ValueError, match=r"probe is 'svm'; this table has linear, knn, rankme"):
        TABLE.best("svm")
    with pytest.raises(ValueError, match=r"metric is 'map'; this table has top1"):
        TABLE.best("knn", "map")


def test_a_table_shows_figures_with_their_errors() -> None:
    lines = repr(TABLE).splitlines()
    assert [line.split() for line in lines if line.lstrip().startswith("stage")] == [
        ["stage1", "50.0", "±", "5.0", "30.0", "±", "4.6*"],
        ["stage2", "40.0", "±", "4.9*", "20.0", "±", "4.0", "12.3"],
    ]
    assert lines[-1] == "images: <3>"
    html = TABLE._repr_html_()
    assert "<th>knn k=20</th>" in html
    assert "40.0 ± 4.9*" in html
    assert "&lt;3&gt;" in html
    rows = TABLE.rows()
    assert [row["best"] for row in rows] == [False, True, True, False, False]
    assert rows[2]["k"] == 20
    assert rows[4]["standard_error"] is None


def test_a_table_beside_an_earlier_one_shows_the_gains() -> None:
    before = ProbeTable([record("linear", "stage1", 0.4, 0.5), record("linear", "stage2", 0.3, 0.1)])
    table = TABLE.against(before)
    lines = repr(table).splitlines()
    assert lines[0].startswith("Test results in %, before → after, gain ± standard error")
    error = 100 * math.hypot(
        math.sqrt(0.5 * 0.5 / 100), math.sqrt(0.4 * 0.6 / 100)
    )  # no answers: independent
    assert [line.split() for line in lines if line.lstrip().startswith("stage")] == [
        ["stage1", "40.0*", "→", "50.0", "+10.0", "±", f"{error:.1f}", "30.0*"],
        ["stage2", "30.0", "→", "40.0*", "+10.0", "±", "6.7", "20.0", "12.3"],
    ]
    assert table.records == TABLE.records
    assert "40.0* → 50.0" in table._repr_html_()


def test_tables_of_other_images_or_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="the tables are of different test images"):
        TABLE.against(ProbeTable([replace(record("linear", "stage1", 0.4, 0.5), n=99)]))
    with pytest.raises(ValueError, match="the tables share no stage and probe"):
        TABLE.against(ProbeTable([record("linear", "stage9", 0.4, 0.5)]))


@pytest.mark.parametrize("kind", [Rotation, Jigsaw, Inpainting])
def test_a_task_is_probed_before_and_after_its_training(kind: Any, tmp_path: Path) -> None:
    labelled = arrays(120, "train"), arrays(40, "test")
    torch.manual_seed(1)
    task = kind(backbone())
    state = torch.get_rng_state()
    weights = [each.clone() for each in task.backbone.parameters()]
    before = probe(task, *labelled, probes=["linear"], **QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    assert not task.is_built
    assert all(map(torch.equal, weights, task.backbone.parameters()))
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(task, ImageData(labelled[0][0], batch_size=16))
    after = probe(task, *labelled, probes=["linear"], **QUIET)
    assert {r.branch for r in before.records} == {r.branch for r in after.records} == set(task.branches())
    for row in repr(after.against(before)).splitlines():
        assert ("→" in row and "±" in row) == ("stage" in row)


def test_a_table_becomes_a_data_frame() -> None:
    frame = pytest.importorskip("pandas") and TABLE.to_pandas()
    assert frame.loc[frame.best, "probe"].tolist() == ["linear", "knn"]
    assert frame.value.tolist() == [r.value for r in TABLE.records]


def test_without_pandas_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refuse(name: str, *rest: Any, **keys: Any) -> Any:
        if name == "pandas":
            raise ImportError
        return load(name, *rest, **keys)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install pandas; \.rows\(\) needs no package"):
        TABLE.to_pandas()


def test_neighbours_are_limited_to_the_images() -> None:
    table = probe(backbone(), fake(), probes=["knn"], **QUIET)
    assert {r.protocol["k"] for r in table.records} == {20}  # of 20 and 200, for 90 images
    again = probe(backbone(), fake(), probes=[KNNProbe()], **QUIET)
    assert [r.value for r in again.records] == [r.value for r in table.records]


def test_probes_of_the_config_are_all_known() -> None:
    assert {"linear", "knn", "svm", "lowshot", "finetune", "rankme"} <= set(probe_names())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probes": ["lineer"]}, r"probes has 'lineer'; allowed are attentive, .*linear"),
        ({"probes": []}, r"probes is empty"),
        ({"probes": ["knn", KNNProbe(ks=[1])]}, r"probes has knn twice"),
        ({"probes": [3]}, r"probes has 3; allowed are names"),
        ({"probes": ["segmentation"]}, r"needs labels of the kind masks, and the images have classes"),
        ({"heldout": 3}, r"heldout is given beside the data module Fake"),
        ({"test": "photos"}, r"test is given beside the data module Fake"),
        ({"train": (np.zeros((9, 8, 8, 3), np.uint8), [0] * 9)}, r"test is missing"),
        ({"model": "resnet18"}, r"the model is str; allowed is a task or a torch.nn.Module"),
        ({"mean": (0.5, 0.5, 0.5)}, r"mean and std belong together"),
        ({"train": fake(heldout=0)}, r"needs held-out images to select on"),
        ({"model": Rotation(ConvNet(), fake(channels=1).spec)}, r"images of 1 channels, .*have 3"),
        (
            {"model": Rotation(torchvision.models.resnet18()), "train": fake(channels=1)},
            r"Rotation feeds the backbone 1 channel, but its first convolution takes 3; .*\(channels=3\)",
        ),
        (
            {"model": torchvision.models.resnet18(), "train": fake(channels=1)},
            r"ResNet takes no images of 1 channel and 16 px: its first convolution takes 3; .*\(channels=3\)",
        ),
        (
            {"model": Rotation(ConvNet(), fake().spec), "mean": [0.5], "std": [0.5]},
            r"normalises images itself",
        ),
        ({"model": nn.Identity()}, r"Identity"),
        ({"train": arrays(12, "train"), "test": arrays(12, "test"), "image_size": 0}, r"image_size is 0"),
        ({"train": arrays(12, "train"), "test": arrays(12, "test"), "channels": 0}, r"channels is 0"),
        ({"batch_norm": "new"}, r"batch_norm is 'new'"),
    ],
)
def test_a_wrong_argument_gets_one_sentence(changes: dict[str, Any], message: str) -> None:
    given = {"model": backbone(), "train": fake(), **changes}
    with pytest.raises(ValueError, match=message):
        probe(given.pop("model"), given.pop("train"), given.pop("test", None), **{**QUIET, **given})


def test_labels_of_one_class_are_refused_and_five_images_suffice() -> None:
    images, labels = arrays(24, "train")
    with pytest.raises(ValueError, match=r"one class only, 0; at least 2 are needed"):
        probe(backbone(), (images, labels * 0), (images[:4], labels[:4] * 0), **QUIET)
    table = probe(backbone(), (images[:5], labels[:5]), (images, labels), **QUIET)
    assert table.notes[0] == "images: 4 train, 1 held out, 24 test"
    assert {r.protocol["k"] for r in table.records if r.probe == "knn"} == {4}
    with pytest.raises(ValueError, match="source has 1 images; at least 2 are needed"):
        probe(backbone(), (images[:1], labels[:1]), (images, labels), **QUIET)


@pytest.mark.parametrize("kind", ["arrays", "folders"])
def test_training_images_that_are_test_images_are_counted(kind: str, tmp_path: Path) -> None:
    images, labels = torch.randint(256, (12, 16, 16, 3), dtype=torch.uint8), torch.arange(12) % 2
    train: Any = (images, labels)
    test: Any = (images[:5].clone(), labels[:5])
    for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        folder = tmp_path / str(label)
        folder.mkdir(exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / f"{row}.png")
    if kind == "folders":
        train = test = tmp_path
    count = 12 if kind == "folders" else 5
    with pytest.warns(UserWarning, match=f"{count} images of train are also test images"):
        probe(backbone(), train, test, probes=["knn"], **QUIET)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match=r"runs in one process, and there are 2"):
        probe(backbone(), fake(), **QUIET)
