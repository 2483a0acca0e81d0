"""SimCLR against lightly's example of it, at a tiny size."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_lightning.bench import __main__ as bench
from ssl_lightning.bench import peers as module
from ssl_lightning.bench.lightly_example import LightlySimCLR, lightly_loader
from ssl_lightning.bench.peers import (
    Peers,
    StepClock,
    UntilAccuracy,
    against_lightly,
    throughput,
    time_to_accuracy,
)
from ssl_lightning.ops.contrastive import nt_xent
from ssl_lightning.ops.views import Strengths

TINY = ["data=fake", "data.batch_size=16", "backbone.widths=[8,8]", "backbone.strides=[2,2]", "trainer=cpu"]
TINY += ["task.hidden=8", "task.embedding=8"]


@pytest.fixture(scope="module")
def peers() -> Peers:
    return Peers(TINY, workers=0)


def test_both_compute_the_same_loss_from_the_same_views(peers: Peers) -> None:
    task = peers.new_task().eval()  # batch norms of all views together, or of each view, then agree
    theirs = LightlySimCLR(task.backbone, task.hidden, task.embedding, task.temperature).eval()
    theirs.projection_head.load_state_dict(task.head.network.state_dict())
    views = torch.rand(2, 16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    embedded = task.embed(views)
    loss, _ = nt_xent(embedded, embedded, 0, task.temperature)
    normalised = task.normalise(views.flatten(0, 1)).unflatten(0, (2, 16))
    batch = (list(normalised), torch.zeros(16), [""] * 16)
    torch.testing.assert_close(theirs.training_step(batch, 0), loss, rtol=1e-5, atol=1e-5)


def test_both_start_from_the_same_backbone_and_end_elsewhere(peers: Peers) -> None:
    kept: dict[str, dict[str, torch.Tensor]] = {}

    class Keep(StepClock):
        def __init__(self, name: str) -> None:
            super().__init__(0, 1)
            self.name = name

        def on_train_start(self, trainer, pl_module) -> None:
            state = pl_module.backbone.state_dict()
            kept[self.name] = {key: value.clone() for key, value in state.items()}

        def on_train_end(self, trainer, pl_module) -> None:
            kept[f"{self.name} after"] = pl_module.backbone.state_dict()

    peers.train_ours(Keep("ours"), max_steps=1)
    peers.train_lightly(Keep("lightly"), max_steps=1)
    for key, value in kept["ours"].items():
        assert torch.equal(value, kept["lightly"][key])
    for name in ("ours", "lightly"):
        assert any(not torch.equal(kept[name][key], kept[f"{name} after"][key]) for key in kept[name])


def test_lightly_sees_the_pretraining_images_and_makes_views_like_ours(peers: Peers) -> None:
    still = Strengths(crop_scale=(1, 1), flip=0, jitter=0, grey=0)
    loader = lightly_loader(peers.data, still, workers=0)
    assert len(loader) == peers.data.pretrain_batches
    seen = {bytes(image.numpy()) for images, _ in peers.data.unlabelled() for image in images}
    assert {bytes(image) for image in np.moveaxis(loader.dataset.dataset.pixels, 3, 1).copy()} == seen
    (first, second), _, _ = next(iter(lightly_loader(peers.data, Strengths(), workers=0)))
    assert first.shape == second.shape == (16, 3, 32, 32)
    assert not torch.equal(first, second)
    task = peers.new_task()
    assert (task.view_size, task.view_size) == first.shape[2:]


def test_views_that_lightly_does_not_make_are_refused() -> None:
    with pytest.raises(ValueError, match=r"task\.solarise 0\.2"):
        Peers([*TINY, "task.solarise=0.2"])
    with pytest.raises(ValueError, match=r"channels are 1"):
        Peers([*TINY, "data.channels=1"])
    with pytest.raises(ValueError, match=r"task\.view_scale is 0\.625;.* needs a task\.view_scale of 1"):
        Peers([*TINY, "task.view_scale=0.625"])
    with pytest.raises(ValueError, match="task is VICReg"):
        Peers(["experiment=cifar10_vicreg", *TINY])


def test_images_per_s_come_from_pairs_in_turns(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    ticks = iter([9.0, 9.0, 1.0, 4.0, 6.0, 2.0, 2.0, 5.0])  # the first pair warms up
    for name in ("ours", "lightly"):

        def train(self: Peers, clock: StepClock, *, max_steps: int, name: str = name) -> None:
            assert max_steps == 7
            order.append(name)
            clock._at = [0.0, next(ticks)]

        monkeypatch.setattr(Peers, f"train_{name}", train)
    found = throughput(peers, pairs=3, block=4, warm_up=3)
    assert order == ["lightly", "ours", "ours", "lightly", "lightly", "ours", "ours", "lightly"]
    # ours 1, 2, 2 s and lightly 4, 6, 5 s for 64 images
    assert found["ours_images_per_s"] == 64 / 2
    assert found["lightly_images_per_s"] == 64 / 5
    assert (found["times"], found["times_lowest"], found["times_highest"]) == (3.0, 2.5, 4.0)


def test_the_clock_runs_from_the_end_of_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = StepClock(2, 3), iter([10.0, 16.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(now))
    for _ in range(6):
        clock.on_train_batch_end()
    assert clock.seconds == 6


def test_scoring_takes_no_time_and_ends_the_fit_at_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    now, accuracies = [0.0], iter([0.2, 0.6])

    def score(_: object) -> float:
        now[0] += 100
        return next(accuracies)

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    watch, trainer = UntilAccuracy(0.5, score), argparse.Namespace(should_stop=False)
    for stops in (False, True):
        watch.on_train_epoch_start(trainer, None)
        now[0] += 7
        watch.on_train_epoch_end(trainer, None)
        assert trainer.should_stop == stops
    assert (watch.seconds, watch.epochs, watch.accuracy) == (14, 2, 0.6)


def test_the_accuracy_is_that_of_a_plain_vote(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "K", 1)
    task = peers.new_task().eval()
    pooled, labels = {}, {}
    for split in ("train", "heldout"):
        images, labels[split] = (torch.cat(each) for each in zip(*peers.data.downstream(split), strict=True))
        with torch.no_grad():
            pooled[split] = task.backbone(task.normalise(images / 255))[-1].mean((2, 3))
    nearest = (F.normalize(pooled["heldout"]) @ F.normalize(pooled["train"]).T).argmax(1)
    expected = (labels["train"][nearest] == labels["heldout"]).double().mean()
    assert peers.heldout_knn(task) == pytest.approx(float(expected), abs=1.5 / len(nearest))


def test_a_wrong_target_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"--peers-knn is 45\.0"):
        against_lightly(TINY, 1, target=45.0)


def test_training_ends_at_the_target_or_at_the_limit(peers: Peers) -> None:
    for target, epochs in ((0.01, 1), (1.0, 2)):
        found = time_to_accuracy(peers, target, epochs=2)
        for side in ("ours", "lightly"):
            assert found[f"{side}_epochs"] == epochs
            assert found[f"{side}_s"] > 0
            assert (found[f"{side}_knn"] >= target) == (epochs == 1)


def test_the_command_prints_a_row_for_each_number_of_workers(tmp_path: Path) -> None:
    given = ["--repeats", "1", "--block", "1", "--peers-workers", "0", "1", "--out", str(tmp_path / "a.json")]
    assert bench.main([*TINY, "--sections", "peers", *given]) == 0
    rows = json.loads((tmp_path / "a.json").read_text())["peers"]
    assert [row["lightly_workers"] for row in rows] == [0, 1]
    for row in rows:
        assert row["ours_images_per_s"] > 0
        assert row["times"] == pytest.approx(row["ours_images_per_s"] / row["lightly_images_per_s"])
