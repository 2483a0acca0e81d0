"""SVM probe: against scikit-learn; C and the held-out score use only the allowed images."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl_lightning.core.seeding import generator
from ssl_lightning.features.encode import Features
from ssl_lightning.ops import svm
from ssl_lightning.ops.average_precision import mean_average_precision
from ssl_lightning.ops.svm import Samples
from ssl_lightning.probes._svm import as_targets, assign_folds, fit, fit_cross_validated
from ssl_lightning.probes.svm import SVMProbe
from tests.ops._bounds import assert_same_svms

CLASSES = 4
SIZES = {"train": 120, "heldout": 60, "test": 80}


def make(noise: float = 1.0, *, several: bool = False) -> Features:
    """Draw Gaussian clusters; with `several`, each image shows about a third of the classes, some ignored."""
    centres = torch.randn(CLASSES, 12, generator=generator("centres"))
    labels, pooled = {}, {}
    for split, n in SIZES.items():
        draw = generator("svm", split)
        if several:
            labels[split] = (torch.rand(n, CLASSES, generator=draw) < 0.35).long()
            mean = labels[split].float() @ centres
            labels[split][torch.rand(n, CLASSES, generator=draw) < 0.05] = -1
        else:
            labels[split] = torch.arange(n) % CLASSES
            mean = centres[labels[split]]
        pooled[split] = {("stage1", (1, 1)): mean + noise * torch.randn(n, 12, generator=draw)}
    grids = {("stage1", pool): (1, 1) for pool in (1, 2)}
    return Features(labels, ("stage1",), grids, pooled, 1.0, 1.0)


def unit(features: Features, split: str) -> np.ndarray:
    x = features.get(split, "stage1", 1).double().numpy()
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def machine(cost: float) -> LinearSVC:
    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=False, tol=1e-8, max_iter=100_000)


def test_top1_is_scikit_learns() -> None:
    features = make()
    (record,) = SVMProbe(costs=[1.0]).run(features, num_classes=CLASSES)
    labels = features.labels

    def top1(fitted: tuple[str, ...], split: str) -> float:
        x = np.concatenate([unit(features, s) for s in fitted])
        y = torch.cat([labels[s] for s in fitted]).numpy()
        models = [machine(1.0).fit(x, np.where(y == k, 1, -1)) for k in range(CLASSES)]
        scores = np.stack([model.decision_function(unit(features, split)) for model in models], 1)
        return (scores.argmax(1) == labels[split].numpy()).mean()

    assert record.metric == "top1"
    assert record.value == pytest.approx(top1(("train", "heldout"), "test"), abs=1e-9)
    assert record.protocol["heldout"] == pytest.approx(top1(("train",), "heldout"), abs=1e-9)
    assert 0.4 < record.value < 0.99
    assert record.protocol["C"] == 1.0
    assert record.protocol["converged"]


def test_map_is_that_of_scikit_learns_machines() -> None:
    features = make(several=True)
    costs = [0.01, 1.0]
    (record,) = SVMProbe(costs=costs).run(features, num_classes=CLASSES)
    labels = {split: values.numpy() for split, values in features.labels.items()}
    x = np.concatenate([unit(features, "train"), unit(features, "heldout")])
    y = np.concatenate([labels["train"], labels["heldout"]])
    scores = np.empty((SIZES["test"], CLASSES))
    for k in range(CLASSES):
        rows = y[:, k] >= 0
        model = machine(record.protocol["C"][k]).fit(x[rows], np.where(y[rows, k] == 1, 1, -1))
        scores[:, k] = model.decision_function(unit(features, "test"))
    expected = mean_average_precision(torch.from_numpy(scores), features.labels["test"])
    assert record.metric == "map"
    assert record.value == pytest.approx(float(expected), abs=1e-6)
    assert set(record.protocol["C"]) <= set(costs)


def test_c_is_what_cross_validation_says() -> None:
    features = make(2.0, several=True)
    costs = [1e-3, 0.1, 10.0]
    x, targets = torch.from_numpy(unit(features, "train")), features.labels["train"]
    found = fit_cross_validated(Samples(x, bias=True), targets, costs, 3, one_label=False, max_iter=100)
    part = assign_folds(targets, 3, one_label=False)
    for k in range(CLASSES):
        rows = (targets[:, k] >= 0).numpy()
        y = np.where(targets[rows, k] == 1, 1, -1)
        folds = [(np.flatnonzero(part[rows, k] != f), np.flatnonzero(part[rows, k] == f)) for f in range(3)]
        scores = [
            cross_val_score(machine(c), x[rows].numpy(), y, cv=folds, scoring="average_precision").mean()
            for c in costs
        ]
        assert found.costs[k] == costs[int(np.argmax(scores))]
    assert len(set(found.costs.tolist())) > 1  # the choice varies


def test_one_label_shares_the_c_of_the_best_top1() -> None:
    features = make(1.5)
    costs = [1e-4, 1e-2, 1.0, 100.0]
    x, labels = torch.from_numpy(unit(features, "train")), features.labels["train"]
    found = fit_cross_validated(
        Samples(x, bias=True), as_targets(labels, CLASSES), costs, 3, one_label=True, max_iter=100
    )
    part = assign_folds(as_targets(labels, CLASSES), 3, one_label=True)[:, 0]
    accuracy = []
    for cost in costs:
        right = []
        for f in range(3):
            models = [
                machine(cost).fit(x[part != f].numpy(), np.where(labels[part != f] == k, 1, -1))
                for k in range(CLASSES)
            ]
            scores = np.stack([m.decision_function(x[part == f].numpy()) for m in models], 1)
            right.append((scores.argmax(1) == labels[part == f].numpy()).mean())
        accuracy.append(np.mean(right))
    assert found.costs.tolist() == [costs[int(np.argmax(accuracy))]] * CLASSES


def test_parts_have_their_share_of_every_class() -> None:
    labels = torch.tensor([0] * 7 + [1] * 6 + [2] * 2)
    part = assign_folds(as_targets(labels, 3), 3, one_label=True)
    for fold in range(3):
        counts = labels[part[:, 0] == fold].bincount(minlength=3)
        assert counts.tolist() in ([3, 2, 1], [2, 2, 1], [2, 2, 0])
    targets = features_targets()
    part = assign_folds(targets, 3, one_label=False)
    for k in range(CLASSES):
        sizes = part[targets[:, k] == 1, k].bincount(minlength=3)
        assert sizes.max() - sizes.min() <= 1


def features_targets() -> Tensor:
    return make(several=True).labels["train"]


@pytest.mark.parametrize("several", [False, True])
def test_machines_fitted_a_few_at_a_time_are_the_same(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    features = make(several=several)
    x, targets = torch.from_numpy(unit(features, "train")), as_targets(features.labels["train"], CLASSES)
    found = []
    for at_once in (svm.AT_ONCE, 3 * len(x)):  # of four classes, and of three folds of them
        monkeypatch.setattr(svm, "AT_ONCE", at_once)
        one_label = not several
        found.append(
            fit_cross_validated(
                Samples(x, bias=True), targets, [0.25, 4.0], 3, one_label=one_label, max_iter=100
            )
        )
    assert torch.equal(found[0].costs, found[1].costs)
    costs = found[0].costs[:, None] * (1 + targets.T)  # weight 2 for positives, 0 for -1
    weights = [each.joined for each in found]
    assert_same_svms(*weights, torch.cat([x, x.new_ones(len(x), 1)], 1), 2.0 * targets.T - 1, costs)


class Largest(TorchDispatchMode):
    """Record the bytes of the largest tensor that any operation makes."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self.nbytes = max(self.nbytes, each.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("several", [False, True])
def test_blocks_change_nothing_and_bound_the_memory(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    features, costs = make(1.5, several=several), [0.01, 1.0]
    (together,) = SVMProbe(costs=costs, folds=5).run(features, num_classes=CLASSES)
    monkeypatch.setattr(svm, "AT_ONCE", 720)  # six machines, or four on all labelled images
    monkeypatch.setattr(svm, "KEPT", 0)
    monkeypatch.setattr(svm, "BLOCK", 7 * 12)  # seven images
    with Largest() as seen:
        (record,) = SVMProbe(costs=costs, folds=5).run(features, num_classes=CLASSES)
    assert record.value == together.value
    assert record.protocol == together.protocol
    assert seen.nbytes < (SIZES["train"] + SIZES["heldout"]) * 12 * 4  # no copy, not even in float32


def test_a_class_that_is_never_or_always_there_gets_a_constant_answer() -> None:
    x = Samples(torch.randn(6, 3, generator=generator("x")).double(), bias=True)
    targets = torch.tensor([[0, 1, -1, 1]] * 3 + [[0, 1, -1, 0]] * 3)
    machines = fit(svm.SVMSolver(x), lambda few: targets.T[few], torch.ones(4), max_iter=100)
    assert machines.scores(x)[:, :3].tolist() == [[-1.0, 1.0, -1.0]] * 6
    assert machines.weight[3].abs().sum() > 0


def test_separable_classes_score_one() -> None:
    (record,) = SVMProbe().run(make(0.01), num_classes=CLASSES)
    assert record.value == record.protocol["heldout"] == 1.0


def test_a_machine_that_was_not_solved_is_said() -> None:
    protocol = SVMProbe(costs=[1000.0], max_iter=1).run(make(), num_classes=CLASSES)[0].protocol
    assert not protocol["converged"]
    assert "in 1 steps" in protocol["warning"]


@pytest.mark.parametrize(
    "options", [{"pool": 0}, {"max_dims": 0}, {"costs": []}, {"costs": [0.0]}, {"folds": 1}, {"max_iter": 0}]
)
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=rf"probe\.svm\.{next(iter(options))}"):
        SVMProbe(**options)


def test_few_images_have_fewer_folds() -> None:
    features = make()
    few = torch.tensor([0, 1, 2, 3])
    features.labels["train"] = features.labels["train"][few]
    for key, x in features.pooled["train"].items():
        features.pooled["train"][key] = x[few]
    probe = SVMProbe(folds=5)
    (said,) = probe.fitted_limits({"train": 4, "heldout": 1, "test": 1})
    assert said == "probe.svm.folds is 5; 4 is used, since the train split has 4 labelled images"
    assert probe.run(features, num_classes=CLASSES)[0].protocol["selected_on"].startswith("4-fold")
    with pytest.raises(ValueError, match="needs at least 2 labelled training images"):
        probe.check({"train": 1, "heldout": 1, "test": 1})
