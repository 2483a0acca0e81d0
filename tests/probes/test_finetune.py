"""Fine-tuning probe: it overfits a few images, and keeps frozen stages and the original backbone."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_lightning.artifacts.records import Record
from ssl_lightning.data.fake import Fake
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.probes._fine_tuning import FineTuning, contributing_weights, loss
from ssl_lightning.probes._folds import FEW
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes.finetune import FineTuneProbe

CLASSES = ("a", "b", "c", "d")


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet(widths=[4, 8], strides=[2, 2])


def make(**options: Any) -> Fake:
    sizes: dict[str, Any] = {"num_train": 72, "num_test": 24, "heldout": 24, "batch_size": 8, "flip": True}
    return Fake(image_size=16, **(sizes | options))


def tune(network: nn.Module, data: Any, **options: Any) -> list[Record]:
    data.setup()
    probe = FineTuneProbe(**({"fractions": [1.0], "epochs": 2, "min_steps": 1, "batch_size": 16} | options))
    return run_probes(
        {"backbone": network},
        lambda x: x - 0.5,
        {"finetune": probe},
        {split: data.downstream(split) for split in ("train", "heldout", "test") if data.label_counts[split]},
        class_names=CLASSES,
        folder=Path(),
        data=data,
        make_trainer=partial(make_trainer, accelerator="cpu", devices=1, precision="32-true"),
    )[0]


def test_records_of_each_fraction_and_that_they_are_the_same_again() -> None:
    network = backbone()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    records = tune(network, make(), fractions=[0.5, 1.0])
    assert [(r.stage, r.metric, r.n) for r in records] == [("stage2", "top1", 24)] * 2
    assert [r.protocol["labels"] for r in records] == [{"train": n, "heldout": 24} for n in (24, 48)]
    assert [r.protocol["fraction"] for r in records] == [0.5, 1.0]
    for name, value in network.state_dict().items():  # the probe trained a copy
        assert torch.equal(value, before[name])
    assert all(weight.grad is None for weight in network.parameters())
    torch.manual_seed(1)
    assert tune(network, make(), fractions=[0.5, 1.0]) == records


class Same(Fake):
    """The training images serve as held-out and test images too."""

    def downstream(self, split: str, batch_size: int | None = None) -> Any:
        return super().downstream("train", batch_size)


def test_a_few_images_are_learned_by_heart() -> None:
    data = Same(num_train=24, num_test=4, heldout=4, batch_size=4, image_size=16)
    (record,) = tune(backbone(), data, epochs=60, batch_size=10, lr=0.05, patience=100)
    assert record.value == record.protocol["heldout"] == 1.0
    assert 1 < record.protocol["epoch"] <= 60


def test_a_training_that_diverges_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"the loss of probe finetune is (nan|inf); lower probe\.finetune\.lr"
    ):
        tune(backbone(), make(), epochs=6, lr=1e20)


def test_training_ends_early_and_the_best_weights_are_tested() -> None:
    options: dict[str, Any] = {"lr": 0.0, "head_lr": 1e-12, "epochs": 40, "patience": 1}  # no improvement
    (record,) = tune(backbone(), make(), selection="heldout", **options)
    protocol = record.protocol
    assert (protocol["epoch"], protocol["patience"]) == (2, 2)  # two epochs between evaluations
    assert protocol["epochs_run"] == 4


@pytest.mark.parametrize(("heldout", "selects"), [(FEW - 1, False), (FEW, True)])
def test_few_heldout_images_neither_stop_nor_select(heldout: int, selects: bool) -> None:
    options: dict[str, Any] = {"lr": 0.0, "head_lr": 1e-12, "epochs": 4, "patience": 1}  # no improvement
    (record,) = tune(backbone(), make(num_train=heldout + 16, heldout=heldout), **options)
    assert record.protocol["selected_on"] == ("heldout" if selects else "nothing")
    assert (record.protocol["epoch"], record.protocol["epochs_run"]) == ((1, 2) if selects else (4, 4))


def test_a_small_share_is_passed_over_more_often() -> None:
    (record,) = tune(backbone(), make(), fractions=[0.25], min_steps=7, batch_size=6, patience=9)
    assert record.protocol["labels"]["train"] == 12
    assert record.protocol["epochs"] == 4  # 2 steps each


def test_frozen_stages_keep_weights_and_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[FineTuning] = []
    end = FineTuning.on_train_epoch_end
    monkeypatch.setattr(FineTuning, "on_train_epoch_end", lambda self: (trained.append(self), end(self))[0])
    network = backbone()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    (record,) = tune(network, make(), freeze_until="stage1", epochs=1)
    assert record.protocol["trained"] == "what follows stage1"
    after = trained[-1].backbone.state_dict()
    kept = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert kept == {name for name in before if name.startswith("stages.0.")}


def test_a_stage_that_is_not_there_is_refused_beforehand() -> None:
    shapes = {f"stage{n}": (3, 4, 4) for n in (1, 2, 3)}
    with pytest.raises(ValueError, match="'stage9'; the backbone has stage1, stage2"):
        FineTuneProbe(stage="stage9").check_backbone(shapes, {})
    refused = {None: "stage3", "stage2": "stage2"}  # these leave nothing to train
    for stage, frozen in refused.items():
        with pytest.raises(ValueError, match=rf"freeze_until is '{frozen}'; .* allowed are stage1, .*null"):
            FineTuneProbe(stage=stage, freeze_until=frozen).check_backbone(shapes, {})
    FineTuneProbe(stage="stage2", freeze_until="stage1").check_backbone(shapes, {})


def caught(monkeypatch: pytest.MonkeyPatch) -> list[FineTuning]:
    """Collect the modules that are trained from now on."""
    trained: list[FineTuning] = []
    start = FineTuning.on_train_start
    monkeypatch.setattr(FineTuning, "on_train_start", lambda self: (trained.append(self), start(self))[0])
    return trained


def test_a_conv_classifier_and_the_stages_up_to_its_own_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = caught(monkeypatch)
    torch.manual_seed(0)
    network = ConvNet(widths=[4, 8, 16], strides=[2, 2, 1])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    (record,) = tune(network, make(), classifier="conv", stage="stage2", epochs=1)
    assert record.stage == "stage2"
    protocol = record.protocol
    assert (protocol["classifier"], protocol["trained"]) == ("NIN block and a linear layer", "up to stage2")
    after = trained[-1].backbone.state_dict()
    kept = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert kept == {name for name in before if name.startswith("stages.2.")}
    # by hand: convolutions, two weights per channel of each batch norm, the linear layer with its biases
    block = 9 * 8 * 192 + 2 * 192 * 192 + 3 * 2 * 192 + 192 * 4 + 4
    stages = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("stages.2."))
    assert protocol["weights"] == stages + block


def test_the_last_weights_are_tested_where_nothing_is_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = caught(monkeypatch)
    figures: list[str] = []
    scores = FineTuning.scores
    monkeypatch.setattr(FineTuning, "scores", lambda self, s: (figures.append(s), scores(self, s))[1])
    options: dict[str, Any] = {"epochs": 3, "patience": 1, "selection": "last", "head_lr": 1e-12, "lr": 0.0}
    (record,) = tune(backbone(), make(), milestones=[0.5], **options)  # no improvement, and no early stop
    protocol = record.protocol
    assert [protocol[key] for key in ("epoch", "epochs_run", "selected_on")] == [3, 3, "nothing"]
    assert protocol["labels"] == {"train": 48, "heldout": 24}
    assert sorted(figures) == ["heldout", "test"]  # once, at the end
    logits, labels = scores(trained[-1], "heldout")
    assert protocol["heldout"] == float((logits.argmax(1) == labels).double().mean())
    assert trained[-1].optimizers().param_groups[0]["lr"] == pytest.approx(2e-13)  # type: ignore[union-attr]


def test_heldout_images_are_trained_on_if_asked_and_none_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"selection": "last", "augment": False}
    (both,) = tune(backbone(), make(), labels="train+heldout", **options)
    data = make(heldout=0)
    (none,) = tune(backbone(), data, **options)
    assert both.protocol["labels"] == {"train": 72, "heldout": 0}
    assert both == none
    assert both.protocol["heldout"] is None
    assert not both.protocol["augmented"]
    with pytest.raises(ValueError, match="FineTuneProbe needs held-out images to select on"):
        FineTuneProbe(selection="heldout").check(data.label_counts)


def test_images_are_augmented_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    labelled = Fake.labelled
    monkeypatch.setattr(
        Fake, "labelled", lambda self, *a, **k: (asked.append(k["augment"]), labelled(self, *a, **k))[1]
    )
    tune(backbone(), make(), epochs=1)
    tune(backbone(), make(), epochs=1, augment=False)
    assert asked == [True, False]


def test_contributing_weights_of_an_output() -> None:
    network = backbone()
    maps = network(torch.zeros(1, 3, 16, 16))
    names = [name for name, _ in network.named_parameters()]
    assert contributing_weights(network, maps[0]) == {name for name in names if name.startswith("stages.0.")}
    assert contributing_weights(network, maps[1]) == set(names)


def test_loss_of_several_classes_does_not_count_ignored_labels() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 9.0]])
    labels = torch.tensor([[1, 0], [0, -1]])
    expected = (-F.logsigmoid(logits[0, 0]) - F.logsigmoid(-logits[0, 1]) - F.logsigmoid(-logits[1, 0])) / 3
    torch.testing.assert_close(loss(logits, labels), expected)
    assert loss(logits, torch.tensor([0, 1])).item() == pytest.approx(
        F.cross_entropy(logits, torch.tensor([0, 1])).item()
    )
    assert loss(logits, torch.full((2, 2), -1)).item() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"fractions": []},
        {"fractions": [0.0]},
        {"fractions": [1.5]},
        {"lr": -1.0},
        {"head_lr": 0.0},
        {"batch_size": 0},
        {"epochs": 0},
        {"min_steps": 0},
        {"patience": 0},
        {"classifier": "svm"},
        {"selection": "best"},
        {"labels": "all"},
        {"labels": "train+heldout", "selection": "heldout"},
        {"milestones": [0.5, 1.0]},
    ],
)
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=rf"probe\.finetune\.{next(iter(options))}"):
        FineTuneProbe(**options)


def test_too_few_labels_are_refused_beforehand() -> None:
    counts = {"train": 130, "heldout": 10, "test": 10}
    FineTuneProbe().check(counts)
    (said,) = FineTuneProbe().fitted_limits(counts)
    assert said == (
        "probe.finetune.fractions is [0.01, 0.1, 1.0]; [0.1, 1.0] is used, since the train split has 130 "
        "labelled images"
    )
    with pytest.raises(ValueError, match=r"is \[0\.01\], at most 1 of 130 labelled training images; 2 are"):
        FineTuneProbe(fractions=[0.01]).check(counts)
