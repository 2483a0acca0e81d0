"""Linear probe: against scikit-learn, selection by folds too; the test split selects nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_lightning.artifacts.records import best_stage
from ssl_lightning.core.seeding import generator
from ssl_lightning.data.io.splits import draw_folds
from ssl_lightning.features.encode import Features
from ssl_lightning.probes import _folds
from ssl_lightning.probes.linear import LinearProbe, standardisation

CLASSES = 6
SIZES = {"train": 300, "heldout": 100, "test": 200}


@pytest.fixture
def _enough_heldout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_folds, "FEW", SIZES["heldout"])


def make(noise: float = 1.5, classes: int = CLASSES) -> Features:
    """Make one stage of 16 features with unequal scales and means other than 0."""
    labels, pooled = {}, {}
    centres = torch.randn(classes, 16, generator=generator("centres"))
    for split, n in SIZES.items():
        stream = generator("linear", split)
        labels[split] = torch.arange(n) % classes
        x = centres[labels[split]] + noise * torch.randn(n, 16, generator=stream)
        pooled[split] = {("stage1", (2, 2)): x * torch.logspace(-1, 1.5, 16) + 5}
    return Features(labels, ("stage1",), {("stage1", 2): (2, 2)}, pooled, 1.0, 1.0)


def with_maps(features: Features, change) -> Features:
    pooled = {s: {key: change(x) for key, x in maps.items()} for s, maps in features.pooled.items()}
    return replace(features, pooled=pooled)


@pytest.mark.usefixtures("_enough_heldout")
@pytest.mark.parametrize("refit", [True, False])
def test_figures_are_scikit_learns(refit: bool) -> None:
    features, l2 = make(), 0.01
    probe = LinearProbe(l2=[l2], refit=refit, tol=1e-6)
    records = {r.metric: r for r in probe.run(features, num_classes=CLASSES)}
    train, heldout, test = (features.get(s, "stage1", 2).numpy() for s in SIZES)
    labels = {split: y.numpy() for split, y in features.labels.items()}
    x = np.concatenate([train, heldout]) if refit else train
    y = np.concatenate([labels["train"], labels["heldout"]]) if refit else labels["train"]
    mean, std = train.mean(0), train.std(0)
    model = LogisticRegression(C=1 / (len(x) * l2), max_iter=5000, tol=1e-8).fit((x - mean) / std, y)
    probability = model.predict_proba((test - mean) / std)
    best = np.argsort(-probability, axis=1)
    for k in (1, 5):
        expected = (best[:, :k] == labels["test"][:, None]).any(1).mean()
        assert records[f"top{k}"].value == pytest.approx(expected, abs=1 / 200)  # a near tie may flip
    assert 0.4 < records["top1"].value < 0.95  # the test needs a task that is neither hopeless nor trivial


def test_few_heldout_images_leave_the_selection_to_folds() -> None:
    features, candidates = make(2.5), [1.0, 1e-2, 1e-4]
    record = LinearProbe(l2=candidates, tol=1e-6, select_tol=1e-6).run(features, num_classes=CLASSES)[0]
    x = torch.cat([features.get(s, "stage1", 2) for s in ("train", "heldout")]).numpy()
    y = torch.cat([features.labels[s] for s in ("train", "heldout")]).numpy()
    x_test, y_test = features.get("test", "stage1", 2).numpy(), features.labels["test"].numpy()
    part = draw_folds(torch.from_numpy(y), 5).numpy()
    mean, std = x.mean(0), x.std(0)

    def right(l2: float, rows: np.ndarray, to: np.ndarray, labels: np.ndarray) -> int:
        model = LogisticRegression(C=1 / (rows.sum() * l2), max_iter=5000, tol=1e-8)
        return (model.fit((x[rows] - mean) / std, y[rows]).predict((to - mean) / std) == labels).sum()

    for l2 in candidates:
        expected = sum(right(l2, part != f, x[part == f], y[part == f]) for f in range(5)) / len(y)
        assert record.protocol["candidates"][str(l2)] == pytest.approx(expected, abs=1 / 400)
    assert record.protocol["candidates"][str(record.protocol["l2"])] == record.heldout
    assert record.heldout == max(record.protocol["candidates"].values())
    tested = right(record.protocol["l2"], part >= 0, x_test, y_test) / len(y_test)  # fitted to all labels
    assert record.value == pytest.approx(tested, abs=1 / 200)
    assert record.protocol["selected_on"] == "5-fold cross-validation on train + heldout"
    assert (record.protocol["folds"], record.heldout_images) == (5, 400)


def test_enough_heldout_images_select_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_folds, "FEW", SIZES["heldout"])
    (record, _) = LinearProbe().run(make(), num_classes=CLASSES)
    assert "folds" not in record.protocol
    assert (record.protocol["selected_on"], record.heldout_images) == ("heldout", 100)


def test_one_image_a_class_is_enough_for_folds() -> None:
    few = {split: torch.arange(3) for split in SIZES}
    features = replace(make(0.01, classes=3), labels=few)
    features = with_maps(features, lambda x: x[:3])
    (record,) = LinearProbe().run(features, num_classes=3)
    assert (record.value, record.heldout) == (1.0, 1.0)  # the other three images show what is left out


@pytest.mark.usefixtures("_enough_heldout")
def test_the_penalty_is_the_best_on_heldout_images() -> None:
    features, candidates = make(2.5), [30.0, 1.0, 1e-2, 1e-4]
    chosen = LinearProbe(l2=candidates).run(features, num_classes=CLASSES)[0].protocol
    alone = {
        l2: LinearProbe(l2=[l2]).run(features, num_classes=CLASSES)[0].protocol["heldout"]
        for l2 in candidates
    }
    assert chosen["candidates"] == {str(l2): value for l2, value in alone.items()}
    assert chosen["heldout"] == max(alone.values())
    assert chosen["l2"] == max(
        l2 for l2 in candidates if alone[l2] == chosen["heldout"]
    )  # the stronger of a tie
    assert len(set(alone.values())) > 1


def test_the_test_split_chooses_nothing() -> None:
    features = make()
    poisoned = replace(features, labels=features.labels | {"test": (features.labels["test"] + 1) % CLASSES})
    clean, other = (LinearProbe().run(f, num_classes=CLASSES)[0] for f in (features, poisoned))
    assert other.protocol == clean.protocol
    assert other.value < clean.value


def test_scale_shift_and_dead_features_do_not_matter() -> None:
    def changed(x: Tensor) -> Tensor:
        return torch.cat([x * 1000 - 3, torch.full_like(x[:, :2], 0.1)], 1)

    features = make()
    one, two = (
        LinearProbe(l2=[0.01]).run(f, num_classes=CLASSES)[0]
        for f in (features, with_maps(features, changed))
    )
    assert two.value == pytest.approx(one.value, abs=1 / 200)
    assert (one.protocol["dims"], two.protocol["dims"]) == (16, 18)


def test_a_feature_that_never_varied_in_training_is_left_out() -> None:
    shift, scale = standardisation(torch.tensor([[1.0, 0.1, 0.0], [3.0, 0.1, 0.0]]))
    assert scale.tolist() == [1.0, 0.0, 0.0]
    assert shift[0] == 2.0


def test_separable_classes_are_separated_and_top5_needs_more_than_five() -> None:
    (record,) = LinearProbe().run(make(0.05, classes=5), num_classes=5)
    assert (record.metric, record.value) == ("top1", 1.0)


def test_no_convergence_is_said() -> None:
    protocol = LinearProbe(max_iter=1).run(make(), num_classes=CLASSES)[0].protocol
    assert not protocol["converged"]
    assert "in 1 iterations" in protocol["warning"]
    assert "warning" not in LinearProbe().run(make(), num_classes=CLASSES)[0].protocol


def test_nothing_to_choose_by_is_refused() -> None:
    with pytest.raises(ValueError, match="LinearProbe needs held-out images to select on"):
        LinearProbe().check({"train": 300, "heldout": 0, "test": 5})


@pytest.mark.parametrize("options", [{"pool": 0}, {"l2": []}, {"l2": [0.0]}, {"max_iter": 0}, {"tol": 0.0}])
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"probe\.linear"):
        LinearProbe(**options)


def test_wide_stages_are_pooled_to_fewer_cells() -> None:
    torch.manual_seed(0)
    channels = {"stage1": 4, "stage2": 40, "stage3": 400}
    labels = {split: torch.arange(n) % 3 for split, n in (("train", 30), ("heldout", 9), ("test", 9))}
    grids = {(stage, pool): (pool, pool) for stage in channels for pool in (1, 2, 4)}
    pooled = {
        split: {
            (stage, (g, g)): torch.randn(len(y), c * g * g)
            for stage, c in channels.items()
            for g in (1, 2, 4)
        }
        for split, y in labels.items()
    }
    features = Features(labels, tuple(channels), grids, pooled, 1.0, 1.0)
    probe = LinearProbe(pool=4, max_dims=200)
    assert set(probe.pools) == {4, 2, 1}
    found = {r.stage: r.protocol for r in probe.run(features, num_classes=3)}
    assert {stage: p["pool"] for stage, p in found.items()} == {
        "stage1": [4, 4],  # 64 features
        "stage2": [2, 2],  # 160: 4 x 4 would be 640
        "stage3": [1, 1],  # 400; one cell is always allowed
    }
    assert found["stage2"]["dims"] == 160


@pytest.mark.parametrize(("join", "metric"), [(1, "top1"), (4, "balanced")])
def test_the_figure_that_judges_chooses_the_stored_classifier(join: int, metric: str) -> None:
    features, noise = make(), generator("noise")
    labels = {split: (y - join + 1).clamp(min=0) for split, y in features.labels.items()}  # joins the first
    pooled = {
        split: {("stage1", (2, 2)): x, ("stage2", (2, 2)): x + torch.randn(x.shape, generator=noise)}
        for split, ((_, x),) in ((split, tuple(maps.items())) for split, maps in features.pooled.items())
    }
    grids = dict.fromkeys([("stage1", 2), ("stage2", 2)], (2, 2))
    probe = LinearProbe(l2=[0.01], calibration=True)
    records = probe.run(Features(labels, ("stage1", "stage2"), grids, pooled, 1.0, 1.0), num_classes=CLASSES)
    judged = [record for record in records if record.metric == metric]
    assert probe.fitted is not None
    assert probe.fitted.record is best_stage(judged)
    assert "majority" not in next(record.protocol for record in records if record.metric == "ece")
