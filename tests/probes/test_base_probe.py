"""Runner of the probes: one encode pass per backbone, records as in results.json, clear errors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.seeding import generator
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes.base import BackboneProbe, Probe, ProbeContext
from ssl_lightning.probes.knn import KNNProbe
from ssl_lightning.probes.linear import LinearProbe

SIZES = {"train": 40, "heldout": 12, "test": 20}
CLASSES = 3

HOW: dict[str, Any] = {"class_names": tuple(map(str, range(CLASSES))), "folder": Path()}


class Backbone(nn.Module):
    """Two stages; counts the images that enter it."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0

    def forward(self, x: Tensor) -> list[Tensor]:
        self.images += len(x)
        return [x, x[..., ::2, ::2].square()]


def loaders(classes: int = CLASSES) -> dict[str, list[tuple[Tensor, Tensor]]]:
    stream = generator("probes")
    return {
        split: [
            (
                torch.randint(256, (half, 3, 4, 4), generator=stream, dtype=torch.uint8),
                torch.arange(half) % classes,
            )
            for half in (n // 2, n - n // 2)
        ]
        for split, n in SIZES.items()
    }


def test_each_image_is_encoded_once_per_branch_for_all_probes() -> None:
    backbones = {"backbone": Backbone().train(), "discriminator": Backbone()}
    probes: dict[str, Probe] = {
        "linear": LinearProbe(),
        "fine": LinearProbe(pool=4),
        "knn": KNNProbe(ks=[1, 5]),
    }
    records, seconds = run_probes(backbones, lambda x: x, probes, loaders(), **HOW)
    assert [backbone.images for backbone in backbones.values()] == [sum(SIZES.values())] * 2
    assert backbones["backbone"].training
    assert set(seconds) == {"encode_s", "linear_s", "fine_s", "knn_s"}
    assert all(s > 0 for s in seconds.values())
    assert [(r.branch, r.probe, r.stage, r.protocol.get("k")) for r in records] == [
        (branch, probe, stage, k)
        for branch in backbones
        for probe, ks in (("linear", [None]), ("fine", [None]), ("knn", [1, 5]))
        for stage in ("stage1", "stage2")
        for k in ks
    ]
    for record in records:
        assert (record.split, record.n) == ("test", SIZES["test"])
        assert 0 <= record.value <= 1
        assert 0 <= record.protocol["heldout"] <= 1
        assert record.protocol["labels"] == {"train": 40, "heldout": 12}
    grids = {(r.probe, r.stage): r.protocol["pool"] for r in records}
    assert grids["fine", "stage1"] == [4, 4]
    assert grids["fine", "stage2"] == [2, 2]  # the map has no more cells


def test_same_input_same_records() -> None:
    def once() -> list[Record]:
        probes: Mapping[str, Probe] = {"linear": LinearProbe(), "knn": KNNProbe(ks=[3])}
        return run_probes({"backbone": Backbone()}, lambda x: x, probes, loaders(), **HOW)[0]

    assert once() == once()


def test_labels_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'train' lie in 0\.\.4.*0\.\.2"):
        run_probes({"backbone": Backbone()}, lambda x: x, {"linear": LinearProbe()}, loaders(5), **HOW)


def test_probes_check_what_was_encoded() -> None:
    few = {split: loader for split, loader in loaders().items() if split != "heldout"}
    with pytest.raises(ValueError, match="KNNProbe needs held-out images"):
        run_probes({"backbone": Backbone()}, lambda x: x, {"knn": KNNProbe()}, few, **HOW)


LABELS = {"train": SIZES["train"], "heldout": SIZES["heldout"]}
PROTOCOL: dict[str, Any] = {"labels": LABELS, "heldout": None}


class Counting(BackboneProbe):
    """Counts the test images in its loader, and runs the backbone itself."""

    def run(self, context: ProbeContext) -> list[Record]:
        stages = [context.backbone(context.probe_input(x / 255)) for x, _ in context.loaders["test"]]
        return [Record("stage1", "seen", 1.0, sum(len(s[0]) for s in stages), PROTOCOL)]


def test_a_probe_of_the_backbone_needs_no_features() -> None:
    backbone = Backbone()
    records, seconds = run_probes(
        {"backbone": backbone},
        lambda x: x,
        {"count": Counting()},
        loaders(),
        protocol={"input": "image"},
        **HOW,
    )
    assert set(seconds) == {"count_s"}
    assert backbone.images == records[0].n == SIZES["test"]
    assert (records[0].probe, records[0].branch) == ("count", "backbone")
    assert records[0].protocol == PROTOCOL | {"input": "image"}


def record(**protocol: Any) -> Record:
    return Record("stage1", "top1", 0.5, SIZES["test"], protocol)


NUMBERS = "a record of top1 whose protocol lacks the numbers of labelled images, such as"
WRONG: dict[str, tuple[Any, str]] = {
    "a dictionary": ({"top1": 0.5}, "returned a dict; it must return a list of Record"),
    "none": (None, "returned None; it must return a list of Record"),
    "one record": (record(labels=LABELS), "returned a Record; it must return a list of Record"),
    "numbers": ([0.5], "returned a float in a list; it must return a list of Record"),
    "no labels": ([record(heldout=0.5)], f"returned {NUMBERS}"),
    "no held-out labels": ([record(labels={"train": 40})], f"returned {NUMBERS}"),
    "a number of labels": ([record(labels=40)], f"returned {NUMBERS}"),
    "a percentage": (
        [replace(record(labels=LABELS), value=40.6)],
        "returned a record of top1; record.value is '40.6'; allowed is a fraction",
    ),
    "not a number": (
        [replace(record(labels=LABELS), value=float("nan"))],
        "returned a record of top1; record.value is 'nan'",
    ),
}


class OfFeatures(Probe):
    """A probe of features that returns what a test sets."""

    selects = False
    read: tuple[str, str, int] | None = None

    def __init__(self, returned: Any = None) -> None:
        self.returned = returned

    @property
    def pools(self) -> tuple[int, ...]:
        return (2,)

    def run(self, features: Any, *, num_classes: int) -> list[Record]:
        if self.read:
            features.get(*self.read)
        return self.returned


class OfBackbone(BackboneProbe):
    """A probe of the backbone that returns what a test sets."""

    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def run(self, context: ProbeContext) -> list[Record]:
        return self.returned


@pytest.mark.parametrize("kind", [OfFeatures, OfBackbone])
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_return_of_a_probe_is_told(kind: type, fault: str) -> None:
    returned, message = WRONG[fault]
    with pytest.raises(ValueError, match=f"{kind.__name__}.run {message}"):
        run_probes({"backbone": Backbone()}, lambda x: x, {"own": kind(returned)}, loaders(), **HOW)


@pytest.mark.parametrize("kind", [OfFeatures, OfBackbone])
def test_a_record_of_unlabelled_images_needs_no_numbers_of_labels(kind: type) -> None:
    given = [Record("stage1", "rankme", 2.0, 9, {}, split="pretrain"), record(labels=LABELS)]
    found, _ = run_probes({"backbone": Backbone()}, lambda x: x, {"own": kind(given)}, loaders(), **HOW)
    assert [each.metric for each in found] == ["rankme", "top1"]


UNREAD = {
    ("train", "stage1", 1): "no features of pool size 1; `pools` of the probe must name .* and names 2",
    ("train", "stage3", 2): "no features of 'stage3'; the backbone has stage1, stage2",
    ("val", "stage1", 2): "no features of 'val'; encoded are train, heldout, test",
}


@pytest.mark.parametrize("place", UNREAD)
def test_features_that_are_not_encoded_are_named(place: tuple[str, str, int]) -> None:
    probe = OfFeatures([])
    probe.read = place
    with pytest.raises(ValueError, match=UNREAD[place]):
        run_probes({"backbone": Backbone()}, lambda x: x, {"own": probe}, loaders(), **HOW)
