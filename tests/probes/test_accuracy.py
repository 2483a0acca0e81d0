"""Figures beside top-1 where classes are unequal: balanced accuracy and the share of the largest class."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.seeding import generator
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.fake import Fake
from ssl_lightning.data.io.sources import ArraySource
from ssl_lightning.features.encode import Features
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.probes._accuracy import metrics_of, records_of
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes.attentive import AttentiveProbe
from ssl_lightning.probes.base import BaseProbe
from ssl_lightning.probes.finetune import FineTuneProbe
from ssl_lightning.probes.knn import KNNProbe
from ssl_lightning.probes.linear import LinearProbe
from ssl_lightning.probes.lowshot import LowShotProbe
from ssl_lightning.probes.nonlinear import NonLinearProbe
from ssl_lightning.probes.svm import SVMProbe

SIZES = (30, 3)  # test images of each class


class Unequal(Fake):
    """Two classes, one of them with few test images."""

    def load(self) -> Pairing:
        pairing = super().load()
        assert isinstance(pairing.test, ArraySource)
        labels = pairing.test.labels
        kept = torch.cat([(labels == c).nonzero()[:n, 0] for c, n in enumerate(SIZES)])
        return replace(pairing, test=ArraySource(pairing.test.images[kept], labels[kept]))


def unequal() -> Fake:
    data = Unequal(num_train=60, num_test=60, num_classes=2, heldout=20, image_size=16, batch_size=8)
    data.setup()
    return data


def scored(*sizes: int) -> tuple[Tensor, Tensor]:
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    return torch.rand(len(labels), len(sizes), generator=generator("scores")), labels


@pytest.mark.parametrize(
    ("sizes", "metrics"),
    [
        ((16, 16), ("top1",)),
        ((8, 8, 7, 7), ("top1",)),
        ((3, 2), ("top1",)),
        ((300, 3), ("top1", "balanced")),
        ((2, 1), ("top1", "balanced")),
        ((4, 0, 4), ("top1",)),  # a class without a test image does not count
        ((9,), ("top1",)),
    ],
)
def test_unequal_classes_have_a_balanced_accuracy(sizes: tuple[int, ...], metrics: tuple[str, ...]) -> None:
    _, labels = scored(*sizes)
    assert metrics_of(labels) == metrics
    assert metrics_of(torch.nn.functional.one_hot(labels)) == ("map",)


def test_the_figures_are_scikit_learns() -> None:
    test, heldout = scored(300, 3, 40), scored(20, 2, 5)
    top1, balanced = records_of("stage1", {"k": 3}, test, heldout)
    assert (top1.metric, balanced.metric, balanced.n) == ("top1", "balanced", 343)
    for record, (scores, labels) in ((balanced.value, test), (balanced.heldout, heldout)):
        assert record == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert balanced.protocol["majority"] == pytest.approx(300 / 343)
    assert "majority" not in top1.protocol
    draws = torch.randint(2, (4000, 343), generator=generator("draws"))  # guesses, right on a half each
    labels = test[1]
    values = [torch.stack([draw[labels == c].double().mean() for c in range(3)]).mean() for draw in draws]
    half = torch.where(torch.arange(343) % 2 == 0, labels, (labels + 1) % 3)
    error = records_of("stage1", {}, (torch.eye(3)[half], labels), None)[1].standard_error
    assert error == pytest.approx(float(torch.stack(values).std()), rel=0.1)


def test_a_classifier_that_answers_the_largest_class_is_shown_for_what_it_is() -> None:
    labels = scored(300, 3)[1]
    always = torch.tensor([[1.0, 0.0]]).expand(303, 2)
    top1, balanced = records_of("stage1", {}, (always, labels), None)
    assert (top1.value, balanced.value) == (300 / 303, 0.5)
    assert balanced.protocol["majority"] == top1.value


FEATURE_PROBES = [
    KNNProbe(ks=[3, 5]), LinearProbe(), SVMProbe(costs=[1.0]), LowShotProbe(ks=[1, 4], draws=2),
]  # fmt: skip
BACKBONE_PROBES = [
    NonLinearProbe(epochs=1, stage="stage1"), NonLinearProbe(epochs=1, stage="stage1", augment=True),
    AttentiveProbe(epochs=1),
    FineTuneProbe(fractions=[1.0], epochs=1, min_steps=1),
]  # fmt: skip


@pytest.mark.parametrize("probe", FEATURE_PROBES + BACKBONE_PROBES)
def test_every_probe_of_classes_has_it(probe: BaseProbe, tmp_path: Path) -> None:
    data = unequal()
    splits = ("train", "heldout", "test")
    found, _ = run_probes(
        {"backbone": ConvNet(widths=[4, 4], strides=[2, 2])},
        lambda x: x,
        {"it": probe},
        {split: data.downstream(split) for split in splits},
        class_names=("a", "b"),
        folder=tmp_path,
        data=data,
        make_trainer=quiet_trainer,
    )
    firsts, seconds = found[::2], found[1::2]
    for top1, balanced in zip(firsts, seconds, strict=True):
        assert (top1.metric, balanced.metric) == ("top1", "balanced")
        assert setting(top1) == setting(balanced)
        assert balanced.protocol["majority"] == 30 / 33
        assert 0 <= balanced.value <= 1
        assert balanced.heldout is not None
        if "k_shot" not in top1.protocol:  # a mean over draws
            assert right_of(top1).mean() == top1.value
            assert top1.answers == balanced.answers
            assert top1.answers.test == firsts[0].answers.test


def right_of(record: Record) -> np.ndarray:
    assert record.answers is not None
    assert np.array_equal(np.frombuffer(record.answers.labels, "<i4"), np.repeat([0, 1], SIZES))
    return np.unpackbits(np.frombuffer(record.answers.right, np.uint8), count=record.n)


def test_answers_name_their_test_set(tmp_path: Path) -> None:
    """Not only its labels: other images of the same classes are another set."""

    class Named(list):
        image_names = ["a", "b"]  # noqa: RUF012

    stream = generator("named")
    images = torch.randint(256, (4, 3, 8, 8), generator=stream, dtype=torch.uint8)
    splits = {split: Named([(images, torch.arange(4) % 2)]) for split in ("train", "heldout", "test")}
    tests = set()
    for names in (["a", "b"], ["a", "b"], ["a", "c"]):
        splits["test"].image_names = names
        (record,) = run_probes(
            {"backbone": ConvNet(widths=[4], strides=[2])}, lambda x: x, {"knn": KNNProbe(ks=[1])}, splits,
            class_names=("a", "b"), folder=tmp_path,
        )[0]  # fmt: skip
        assert record.answers is not None
        tests.add(record.answers.test)
    assert len(tests) == 2


def setting(record: Record) -> list[Any]:
    return [record.stage, record.n, *(record.protocol.get(key) for key in ("k", "k_shot", "fraction"))]


def quiet_trainer(**options: Any) -> Any:
    import pytorch_lightning as pl

    return pl.Trainer(accelerator="cpu", enable_model_summary=False, enable_checkpointing=False, **options)


def test_features_of_equal_classes_have_no_further_record() -> None:
    labels = {split: torch.arange(12) % 3 for split in ("train", "heldout", "test")}
    x = torch.randn(12, 4, generator=generator("x"))
    pooled = {split: {("stage1", (1, 1)): x} for split in labels}
    features = Features(labels, ("stage1",), {("stage1", 1): (1, 1)}, pooled, 1.0, 1.0)
    assert [r.metric for r in KNNProbe(ks=[1]).run(features, num_classes=3)] == ["top1"]
