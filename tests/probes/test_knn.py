"""kNN probe: against scikit-learn; a held-out image is not its own neighbour."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from ssl_lightning.core.progress import Work, watched
from ssl_lightning.core.seeding import generator
from ssl_lightning.data.io.splits import draw_folds
from ssl_lightning.features.encode import Features
from ssl_lightning.probes import _folds, knn
from ssl_lightning.probes.knn import KNNProbe

CLASSES = 4
SIZES = {"train": 150, "heldout": 50, "test": 120}


@pytest.fixture
def features() -> Features:
    labels, pooled = {}, {}
    centres = torch.randn(CLASSES, 6, generator=generator("centres"))
    for split, n in SIZES.items():
        labels[split] = torch.arange(n) % CLASSES
        noise = torch.randn(n, 6, generator=generator("knn", split))
        pooled[split] = {("stage1", (1, 1)): centres[labels[split]] + 1.2 * noise}
    return Features(labels, ("stage1",), {("stage1", 1): (1, 1)}, pooled, 1.0, 1.0)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_figures_are_scikit_learns(
    features: Features, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_folds, "FEW", SIZES["heldout"])
    x = {split: features.get(split, "stage1", 1).numpy() for split in SIZES}
    y = {split: labels.numpy() for split, labels in features.labels.items()}
    both = np.concatenate([x["train"], x["heldout"]]), np.concatenate([y["train"], y["heldout"]])
    ks = [1, 7, 120]
    records = KNNProbe(ks=ks, temperature=temperature).run(features, num_classes=CLASSES)
    for record, k in zip(records, ks, strict=True):
        model = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature))
        protocol = record.protocol
        assert (protocol["k"], protocol["temperature"]) == (k, temperature)
        assert record.value == pytest.approx(model.fit(*both).score(x["test"], y["test"]), abs=1e-9)
        heldout = model.fit(x["train"], y["train"]).score(x["heldout"], y["heldout"])
        assert protocol["heldout"] == pytest.approx(heldout, abs=1e-9)
        assert 0.3 < record.value < 0.99


def test_few_heldout_images_vote_by_folds(features: Features) -> None:
    x = torch.cat([features.get(s, "stage1", 1) for s in ("train", "heldout")]).numpy()
    y = torch.cat([features.labels[s] for s in ("train", "heldout")])
    part = draw_folds(y, 5).numpy()
    y = y.numpy()
    for record, neighbours in zip(
        KNNProbe(ks=[7, 150], temperature=0.5).run(features, num_classes=CLASSES), (7, 150), strict=True
    ):
        model = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.5))
        right = [
            (model.fit(x[part != f], y[part != f]).predict(x[part == f]) == y[part == f]).sum()
            for f in range(5)
        ]
        assert record.heldout == pytest.approx(sum(right) / 200, abs=1e-9)
        assert (record.protocol["folds"], record.heldout_images) == (5, 200)


@pytest.mark.parametrize(("few", "queries"), [(50, 120 + 50), (500, 120 + 200)])
def test_progress_counts_the_queries_of_all_stages(
    features: Features, few: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_folds, "FEW", few)
    works: list[Work] = []

    @contextmanager
    def noted(*given: Any) -> Iterator[Work]:
        with watched(*given) as work:
            works.append(work)
            yield work

    monkeypatch.setattr(knn, "watched", noted)
    KNNProbe(ks=[1]).run(features, num_classes=CLASSES)
    assert [(work.done, work.total) for work in works] == [(queries, queries)]


@pytest.mark.parametrize(("ks", "used"), [((20, 200), [20]), ((150,), [150]), ((160, 200), [150])])
def test_more_neighbours_than_labels_are_left_out(features: Features, ks: tuple, used: list) -> None:
    few = KNNProbe(ks=ks)
    counts = {"train": 150, "heldout": 50, "test": 1}
    few.check(counts)
    said = few.fitted_limits(counts)
    assert [r.protocol["k"] for r in few.run(features, num_classes=CLASSES)] == used
    assert said == ([] if list(ks) == used else [
        f"probe.knn.ks is {list(ks)}; {used} is used, since the train split has 150 labelled images"
    ])  # fmt: skip
    with pytest.raises(ValueError, match="there are none"):
        few.check({"train": 0, "heldout": 50, "test": 1})


@pytest.mark.parametrize("options", [{"ks": []}, {"ks": [0]}, {"pool": 0}, {"temperature": 0.0}])
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"probe\.knn"):
        KNNProbe(**options)
