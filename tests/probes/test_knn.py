"""kNN probe against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from ssl_lightning.probes.base import Features, SplitFeatures
from ssl_lightning.probes.knn import KNNProbe
from ssl_lightning.seeding import generator


def split(name: str, n: int) -> SplitFeatures:
    stream = generator("knn", name)
    labels = torch.randint(4, (n,), generator=stream)
    centres = torch.randn(4, 6, 1, 1, generator=generator("centres"))
    maps = centres[labels] + 1.2 * torch.randn(n, 6, 1, 1, generator=stream)
    return SplitFeatures(labels, {1: {"stage1": maps}})


@pytest.fixture()
def features() -> Features:
    return Features(split("train", 150), split("heldout", 50), split("test", 120))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_accuracy_is_scikit_learns(features: Features, temperature: float) -> None:
    bank, labels = features.labelled(1, "stage1")
    for record in KNNProbe(ks=[1, 7, 120], temperature=temperature).run(features, 4):
        model = KNeighborsClassifier(
            record["protocol"]["k"], metric="cosine", weights=lambda d: np.exp((1 - d) / temperature)
        )
        model.fit(bank.numpy(), labels.numpy())
        expected = model.score(features.test.flat(1, "stage1").numpy(), features.test.labels.numpy())
        assert record["value"] == pytest.approx(expected, abs=1e-9)


def test_heldout_images_are_no_neighbours_of_themselves(features: Features) -> None:
    protocol = KNNProbe(ks=[1]).run(features, 4)[0]["protocol"]
    assert protocol["heldout"] < 1.0
    assert (protocol["labels_train"], protocol["labels_heldout"]) == (150, 50)


def test_more_neighbours_than_images_are_refused_beforehand() -> None:
    with pytest.raises(ValueError, match=r"200 neighbours, and there are 150"):
        KNNProbe().check({"train": 150, "heldout": 50, "test": 1}, 4)


@pytest.mark.parametrize("options", [{"ks": []}, {"ks": [0]}, {"pool": 0}, {"temperature": 0.0}])
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"probe\.knn"):
        KNNProbe(**options)
