"""Shares of the labelled pictures: draws, choice of rates, figures over the draws, and their independence."""

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_lightning.artifacts.records import Record
from ssl_lightning.probes._plan import TrainingPlan
from ssl_lightning.probes._shares import Draw, Shares, Trained, candidate_plans
from ssl_lightning.probes.detection import METRICS
from ssl_lightning.probes.segmentation import SegmentationProbe
from tests.probes import test_detection
from tests.probes.test_segmentation import SIZES, Backbone, Splits, run, splits

PLAN: dict[str, Any] = {
    "steps": 10,
    "batch_size": 3,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "evals": 5,
}


def noisy(masks: Tensor) -> Tensor:
    """Exchange the classes of a third of the pixels, so that no figure is perfect."""
    stream = torch.Generator().manual_seed(0)
    return torch.where(torch.rand(masks.shape, generator=stream) < 0.3, 1 - masks, masks)


def test_draws_are_fixed_random_and_nested() -> None:
    shares = Shares("x", [0.5, 0.1, 1.0], 3)
    drawn = shares.of(20)
    assert [[len(draw.indices) for draw in draws] for draws in drawn] == [[2] * 3, [10] * 3, [20] * 3]
    for tenth, half, everything in zip(*drawn, strict=True):
        assert set(tenth.indices.tolist()) < set(half.indices.tolist()) < set(everything.indices.tolist())
        assert everything.indices.tolist() == list(range(20))
        assert tenth.seed(5) == half.seed(5) != tenth.seed(6)
    assert len({tuple(draw.indices.tolist()) for draw in drawn[1]}) == 3
    again = shares.of(20)
    assert all(
        torch.equal(a.indices, b.indices)
        for draws, others in zip(drawn, again, strict=True)
        for a, b in zip(draws, others, strict=True)
    )


def test_without_shares_there_is_one_training_with_the_seed_of_the_run() -> None:
    ((draw,),) = Shares("x", None, 3).of(4)
    assert (draw.fraction, draw.indices.tolist(), draw.seed(7)) == (None, [0, 1, 2, 3], 7)


def test_the_first_draw_chooses_the_rates_and_the_best_heldout_score_wins() -> None:
    plans = candidate_plans("x", [0.1, 0.2], [0.01, 0.02], finetune=True, **PLAN)
    assert [(plan.lr, plan.backbone_lr) for plan in plans] == [
        (0.1, 0.01), (0.1, 0.02), (0.2, 0.01), (0.2, 0.02)
    ]  # fmt: skip
    heldout = {(0.1, 0.01): 0.3, (0.1, 0.02): 0.5, (0.2, 0.01): 0.5, (0.2, 0.02): 0.4}
    trained: list[tuple[int, float, float]] = []
    tested: list[tuple[int, float]] = []

    def train(draw: Draw, plan: TrainingPlan) -> Trained:
        trained.append((draw.number, plan.lr, plan.backbone_lr))
        score = heldout[plan.lr, plan.backbone_lr] + draw.number
        scores = {"miou": score, "per_class": {"miou": {"a": score, "b": None}}}
        return Trained(scores, {"lr": plan.lr, "chosen_step": draw.number, "candidates": {}}, [])

    def test(each: Trained) -> dict[str, Any]:
        tested.append((each.protocol["chosen_step"], each.protocol["lr"]))
        score = each.heldout["miou"] / 10
        return {"miou": score, "per_class": {"miou": {"a": score, "b": score if score < 0.1 else None}}}

    (outcome,) = Shares("x", [0.5], 3).run(8, plans, train, test, "miou")
    assert trained[:4] == [(0, *pair) for pair in heldout]
    assert trained[4:] == [(1, 0.1, 0.02), (2, 0.1, 0.02)]  # the first of equal ones
    assert tested == [(0, 0.1), (1, 0.1), (2, 0.1)]
    assert [each["heldout"] for each in outcome.training()["rates"]] == list(heldout.values())
    assert outcome.training()["chosen_step"] == [0, 1, 2]
    value, protocol = outcome.figure("miou")
    assert value == pytest.approx(0.15)
    assert protocol["sd"] == pytest.approx(statistics.stdev([0.05, 0.15, 0.25]))
    assert protocol["heldout"] == pytest.approx(1.5)
    assert protocol["per_class"] == {"a": pytest.approx(0.15), "b": pytest.approx(0.05)}
    assert protocol["class_draws"]["test"][1] == {"a": pytest.approx(0.15), "b": None}


def test_segmentation_gives_a_record_for_each_share(tmp_path: Path) -> None:
    found = run(splits(noisy), tmp_path, fractions=[0.25, 1.0], draws=2, steps=12, lr=[0.02, 0.1], stages=[1])
    assert [record.protocol["fraction"] for record in found] == [0.25, 1.0]
    assert [record.protocol["labels"]["train"] for record in found] == [3, 12]
    for record in found:
        protocol = record.protocol
        assert record.value == pytest.approx(statistics.fmean(protocol["values"]))
        assert protocol["sd"] == pytest.approx(statistics.stdev(protocol["values"]))
        best = max(protocol["rates"], key=lambda rate: rate["heldout"])
        assert protocol["lr"] == best["lr"]
        assert len(protocol["chosen_step"]) == len(protocol["class_draws"]["test"]) == 2


def test_only_the_drawn_pictures_are_trained_on(tmp_path: Path) -> None:
    data = splits(noisy)
    draws = Shares("segmentation", [0.25], 2).of(SIZES["train"])[0]
    drawn = torch.cat([draw.indices for draw in draws]).unique()
    masks = torch.cat([masks for _, masks in data["train"]])
    spoilt = 1 - masks
    spoilt[drawn] = masks[drawn]
    other: Splits = data | {
        "train": [(images, spoilt[6 * i : 6 * i + 6]) for i, (images, _) in enumerate(data["train"])]
    }
    options: dict[str, Any] = {"fractions": [0.25], "draws": 2, "steps": 9, "stages": [1]}
    assert run(data, tmp_path, **options) == run(other, tmp_path, **options)
    assert run(data, tmp_path, **options) != run(other, tmp_path, **options | {"fractions": [1.0]})


@pytest.mark.parametrize("finetune", [False, True])
def test_a_draw_does_not_depend_on_the_trainings_before_it(
    finetune: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "fractions": [0.5], "draws": 2, "steps": 9, "stages": [1], "finetune": finetune, "hidden": 4,
        "backbone_lr": 0.05,
    }  # fmt: skip
    network = Backbone()
    (both,) = run(splits(noisy), tmp_path, network, **options)
    assert torch.equal(network.scale, torch.ones(3, 1, 1))
    plain = Shares.of
    monkeypatch.setattr(Shares, "of", lambda self, images: [plain(self, images)[0][1:]])
    (second,) = run(splits(noisy), tmp_path, Backbone(), **options)
    assert second.protocol["values"] == both.protocol["values"][1:]
    assert both.protocol["values"][0] != both.protocol["values"][1]


def test_the_test_split_chooses_neither_rates_nor_states(tmp_path: Path) -> None:
    data = splits()
    poisoned = {**data, "test": [(images, 1 - masks) for images, masks in data["test"]]}
    options: dict[str, Any] = {"fractions": [0.5], "draws": 2, "stages": [1], "lr": [0.001, 0.1], "steps": 20}

    def chosen(record: Record) -> list[Any]:
        return [record.protocol[key] for key in ("lr", "rates", "chosen_step", "candidates", "heldout")]

    (clean,), (other,) = run(data, tmp_path, **options), run(poisoned, tmp_path, **options)
    assert clean.value != other.value
    assert chosen(clean) == chosen(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fractions": []}, r"fractions is \[\]; allowed are null, or shares"),
        ({"fractions": [0.0, 1.0]}, r"fractions is \[0\.0, 1\.0\]"),
        ({"draws": 0}, r"probe\.segmentation\.draws is 0"),
        ({"lr": []}, r"lr \[\] and backbone_lr \[0\.0005\]; each needs at least one"),
        ({"lr": [0.1, 0.0]}, r"probe\.segmentation\.lr is 0\.0"),
        (
            {"backbone_lr": [0.1, 0.2]},
            r"backbone_lr is \[0\.1, 0\.2\], but the backbone is frozen; set probe",
        ),
    ],
)
def test_bad_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationProbe(**options)


def test_shares_without_a_picture_are_left_out() -> None:
    probe = SegmentationProbe(fractions=[0.01, 0.5], batch_size=1)
    (said,) = probe.fitted_limits({"train": 12, "heldout": 4, "test": 4})
    assert said.startswith(
        "probe.segmentation.fractions is [0.01, 0.5]; [0.5] is used, since the train split has 12"
    )
    few = SegmentationProbe(fractions=[0.01])
    with pytest.raises(ValueError, match="needs labelled training images; there are none"):
        few.check({"train": 12, "heldout": 4, "test": 4})


@pytest.mark.parametrize("finetune", [False, True])
def test_detection_gives_a_record_for_each_share_and_metric(
    finetune: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "fractions": [0.5, 1.0], "draws": 2, "steps": 6, "finetune": finetune, "lr": [0.001, 0.01],
        "backbone_lr": 0.01, "batch_size": 2,
    }  # fmt: skip
    data = test_detection.splits()
    found = test_detection.run(data, tmp_path, **options)
    shares = [(record.protocol["fraction"], record.metric) for record in found]
    assert shares == [(part, metric) for part in (0.5, 1.0) for metric in METRICS]
    for record in found:
        protocol = record.protocol
        assert record.value == pytest.approx(statistics.fmean(protocol["values"]))
        assert protocol["labels"]["train"] == 8 * protocol["fraction"]
        assert set(protocol["class_draws"]["test"][0]) == set(test_detection.NAMES)
        assert protocol["rates"] == found[0].protocol["rates"] or protocol["fraction"] == 1.0
    plain = Shares.of
    monkeypatch.setattr(Shares, "of", lambda self, images: [plain(self, images)[0][1:]])
    second = test_detection.run(data, tmp_path, **options | {"lr": found[0].protocol["lr"]})
    for both, alone in zip(found[:3], second, strict=True):
        assert alone.protocol["values"] == both.protocol["values"][1:]
