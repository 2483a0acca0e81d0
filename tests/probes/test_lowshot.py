"""Low-shot probe: stratified and reproducible draws, scores against scikit-learn."""

import statistics

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.features.encode import Features
from ssl_lightning.probes.lowshot import LowShotProbe, draw_images

CLASSES = 3
GOLDEN = [
    [7, 9, 11, 14, 18, 22],
    [0, 1, 17, 25, 27, 29],
    [12, 16, 24, 26, 28, 29],
]
SIZES = {"train": 60, "heldout": 30, "test": 45}


def make(noise: float = 0.8, *, several: bool = False) -> Features:
    centres = torch.randn(CLASSES, 8, generator=generator("centres"))
    labels, pooled = {}, {}
    for split, n in SIZES.items():
        labels[split] = torch.arange(n) % CLASSES
        mean = centres[labels[split]]
        if several:
            labels[split] = torch.nn.functional.one_hot(labels[split], CLASSES)
        stream = generator("lowshot", split)
        pooled[split] = {("stage1", (1, 1)): mean + noise * torch.randn(n, 8, generator=stream)}
    grids = {("stage1", pool): (1, 1) for pool in (1, 2)}
    return Features(labels, ("stage1",), grids, pooled, 1.0, 1.0)


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels)


def test_draws_are_the_same_on_every_machine() -> None:
    targets = one_hot(torch.arange(30) % 3)
    taken = [
        (draw_images(targets, 2, number, one_label=True)[:, 0] >= 0).nonzero()[:, 0].tolist()
        for number in range(3)
    ]
    assert taken == GOLDEN


@pytest.mark.parametrize("k", [1, 3, 10])
def test_one_label_draws_are_stratified_and_nested(k: int) -> None:
    labels = torch.randint(4, (100,), generator=generator("labels"))
    targets = one_hot(labels)
    drawn = draw_images(targets, k, 0, one_label=True)
    rows = (drawn >= 0).any(1)
    assert labels[rows].bincount().tolist() == [k] * 4
    assert torch.equal(drawn[rows], targets[rows])
    assert (drawn[~rows] == -1).all()
    more = (draw_images(targets, k + 1, 0, one_label=True) >= 0).any(1)
    assert (more | ~rows).all()  # a larger draw includes them


def test_draws_of_several_classes_an_image_take_images_with_and_without_each() -> None:
    stream = generator("several")
    targets = (torch.rand(200, 5, generator=stream) < 0.2).long()
    targets[torch.rand(200, 5, generator=stream) < 0.1] = -1
    drawn = draw_images(targets, 4, 1, one_label=False)
    assert ((drawn == 1).sum(0) == 4).all()
    assert ((drawn == 0).sum(0) == 16).all()
    assert ((drawn == targets) | (drawn == -1)).all()
    few = draw_images(targets[:30], 1, 0, one_label=False)
    assert ((few == 0).sum(0) == 4).all()


def test_figures_are_the_mean_over_the_draws_of_scikit_learns() -> None:
    features = make()
    (record,) = LowShotProbe(ks=[5], draws=3, costs=[1.0]).run(features, num_classes=CLASSES)
    x = {s: features.get(s, "stage1", 1).double().numpy() for s in SIZES}
    x = {s: values / np.linalg.norm(values, axis=1, keepdims=True) for s, values in x.items()}
    labels = {s: values.numpy() for s, values in features.labels.items()}
    figures: dict[str, list[float]] = {"test": [], "heldout": []}
    for number in range(3):
        rows = (draw_images(one_hot(features.labels["train"]), 5, number, one_label=True)[:, 0] >= 0).numpy()
        models = [
            LinearSVC(class_weight={1: 2, -1: 1}, dual=False, tol=1e-8, max_iter=100_000).fit(
                x["train"][rows], np.where(labels["train"][rows] == k, 1, -1)
            )
            for k in range(CLASSES)
        ]
        for split, values in figures.items():
            scores = np.stack([m.decision_function(x[split]) for m in models], 1)
            values.append((scores.argmax(1) == labels[split]).mean())
    assert record.value == pytest.approx(np.mean(figures["test"]), abs=1e-9)
    assert record.protocol["values"] == pytest.approx(figures["test"], abs=1e-9)
    assert record.protocol["sd"] == pytest.approx(np.std(figures["test"], ddof=1), abs=1e-9)
    assert record.protocol["heldout"] == pytest.approx(np.mean(figures["heldout"]), abs=1e-9)
    assert 0.4 < record.value < 0.99
    assert record.protocol["labels"] == {"train": 15, "heldout": 30}


def test_numbers_that_the_smallest_class_does_not_have_are_left_out() -> None:
    records = LowShotProbe(draws=2).run(make(), num_classes=CLASSES)
    assert [r.protocol["k_shot"] for r in records] == [1, 2, 4, 8, 16]
    assert records[0].protocol["candidates"] == [16.0]
    assert records[0].protocol["selected_on"] == "nothing"
    assert records[1].protocol["selected_on"].startswith("2-fold")
    (record,) = LowShotProbe(ks=[30], draws=2).run(make(), num_classes=CLASSES)
    assert record.protocol["k_shot"] == 20  # all images of the smallest class
    (said,) = LowShotProbe(ks=[4, 30]).fitted_limits({"train": 60, "rarest": 20})
    assert said == (
        "probe.lowshot.ks is [4, 30]; [4] is used, since the smallest class has 20 labelled training images"
    )


@pytest.mark.parametrize("several", [False, True])
def test_separable_classes_score_one(several: bool) -> None:
    for record in LowShotProbe(ks=[1, 4], draws=2).run(make(0.01, several=several), num_classes=CLASSES):
        assert record.metric == ("map" if several else "top1")
        assert (record.value, record.protocol["sd"]) == (1.0, 0.0)
        assert record.protocol["heldout"] == statistics.mean(record.protocol["values"])


@pytest.mark.parametrize("options", [{"ks": []}, {"ks": [0]}, {"draws": 1}, {"cost": 0.0}, {"costs": []}])
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=rf"probe\.lowshot\.{next(iter(options))}"):
        LowShotProbe(**options)


def test_a_class_without_an_image_is_refused_beforehand() -> None:
    with pytest.raises(ValueError, match="needs a labelled training image of every class"):
        LowShotProbe(ks=[8]).check({"train": 15, "heldout": 1, "test": 1, "rarest": 0})
