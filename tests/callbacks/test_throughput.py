"""Images per second, with a fake clock."""

from types import SimpleNamespace

import torch

from ssl_lightning.callbacks import throughput
from ssl_lightning.callbacks.throughput import Throughput


def test_validation_is_not_counted(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    watch, trainer = Throughput(), SimpleNamespace(world_size=2)
    assert watch.images_per_s == 0.0

    def batch(seconds: float) -> None:
        now[0] += seconds
        watch.on_train_batch_end(trainer, None, None, (torch.zeros(8, 1), None), 0)

    watch.on_train_start(trainer, None)
    batch(1.0)
    batch(3.0)
    watch.on_validation_start(trainer, None)
    now[0] += 1000
    watch.on_validation_end(trainer, None)
    batch(4.0)
    assert watch.images_per_s == 3 * 8 * 2 / 8.0
    watch.on_train_end(trainer, None)
    now[0] += 1000
    assert watch.images_per_s == 3 * 8 * 2 / 8.0
