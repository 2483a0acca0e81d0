"""Linear probe: against scikit-learn, and blind to the test split until the end."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ssl_lightning.probes.base import Features, SplitFeatures
from ssl_lightning.probes.linear import LinearProbe
from ssl_lightning.seeding import generator

CLASSES = 6


def split(name: str, n: int, noise: float = 1.5) -> SplitFeatures:
    stream = generator("linear", name)
    labels = torch.randint(CLASSES, (n,), generator=stream)
    centres = torch.randn(CLASSES, 8, 2, 2, generator=generator("centres"))
    maps = centres[labels] + noise * torch.randn(n, 8, 2, 2, generator=stream)
    return SplitFeatures(labels, {2: {"stage1": maps * torch.linspace(0.1, 30, 8).view(8, 1, 1) + 5}})


@pytest.fixture()
def features() -> Features:
    return Features(split("train", 300), split("heldout", 100), split("test", 200))


def test_accuracy_is_scikit_learns(features: Features) -> None:
    l2 = 0.01
    records = {r["metric"]: r for r in LinearProbe(l2=[l2]).run(features, CLASSES)}
    x, labels = features.labelled(2, "stage1")
    scaler = StandardScaler().fit(x.numpy())
    model = LogisticRegression(C=1 / (len(x) * l2), max_iter=5000, tol=1e-8)
    model.fit(scaler.transform(x.numpy()), labels.numpy())
    probability = model.predict_proba(scaler.transform(features.test.flat(2, "stage1").numpy()))
    truth = features.test.labels.numpy()
    assert records["top1"]["value"] == pytest.approx((probability.argmax(1) == truth).mean(), abs=1 / 200)
    top5 = np.argsort(-probability, axis=1)[:, :5]
    assert records["top5"]["value"] == pytest.approx((top5 == truth[:, None]).any(1).mean(), abs=1 / 200)
    assert 0.4 < records["top1"]["value"] < 0.99  # neither trivial nor hopeless, or the above says little


def test_the_penalty_is_the_best_on_heldout_images(features: Features) -> None:
    candidates = [1e-4, 1e-2, 1.0, 30.0]
    chosen = LinearProbe(l2=candidates).run(features, CLASSES)[0]["protocol"]
    single = {
        l2: LinearProbe(l2=[l2]).run(features, CLASSES)[0]["protocol"]["heldout"] for l2 in candidates
    }
    assert chosen["heldout"] == max(single.values())
    assert single[chosen["l2"]] == max(single.values())


def test_test_labels_choose_nothing(features: Features) -> None:
    poisoned = SplitFeatures((features.test.labels + 1) % CLASSES, features.test.maps)
    clean = LinearProbe().run(features, CLASSES)[0]
    other = LinearProbe().run(Features(features.train, features.heldout, poisoned), CLASSES)[0]
    assert other["protocol"] == clean["protocol"]
    assert other["value"] < clean["value"]


def test_scale_and_constants_of_features_do_not_matter(features: Features) -> None:
    def changed(part: SplitFeatures) -> SplitFeatures:
        maps = part.maps[2]["stage1"] * 1000 - 3
        return SplitFeatures(part.labels, {2: {"stage1": torch.cat([maps, torch.full_like(maps[:, :1], 7.0)], 1)}})

    other = Features(*(changed(getattr(features, s)) for s in ("train", "heldout", "test")))
    one, two = (LinearProbe(l2=[0.01]).run(f, CLASSES)[0] for f in (features, other))
    assert two["value"] == pytest.approx(one["value"], abs=1 / 200)


def test_separable_classes_are_separated() -> None:
    easy = Features(split("train", 200, 0.05), split("heldout", 50, 0.05), split("test", 80, 0.05))
    assert LinearProbe().run(easy, CLASSES)[0]["value"] == 1.0


@pytest.mark.parametrize("options", [{"pool": 0}, {"l2": []}, {"l2": [0.0]}, {"max_iter": 0}])
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"probe\.linear"):
        LinearProbe(**options)
