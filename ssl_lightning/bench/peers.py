"""Benchmark of SimCLR against lightly's example of it: images/s, and time to a kNN accuracy."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torchvision.transforms.functional import normalize

from ssl_lightning.bench.build import composed, device, make_data, precision_of, ratio, wait
from ssl_lightning.bench.lightly_example import LightlySimCLR, lightly_loader, lightly_trainer
from ssl_lightning.features.encode import encode
from ssl_lightning.ops.knn import knn_scores, topk_accuracy
from ssl_lightning.run.build import build_task
from ssl_lightning.run.execute import pretrain
from ssl_lightning.run.parts import build_parts
from ssl_lightning.tasks.simclr import SimCLR

WARM_UP = 16  # steps before the clock starts; eight workers hold as many batches
BLOCK = 32  # timed steps of a turn
WORKERS = 8  # as in lightly's example
EPOCHS = 10  # likewise
LABELLED, K = 5000, 20  # images of each labelled split, and neighbours, for the accuracy during training


class StepClock(Callback):
    """Time steps of a fit after some steps of warm-up.

    Args:
        warm_up: Steps before the clock starts.
        steps: Timed steps.
    """

    def __init__(self, warm_up: int, steps: int) -> None:
        self._ends = (warm_up, warm_up + steps)
        self._done, self._at = 0, [0.0, 0.0]

    @property
    def seconds(self) -> float:
        began, ended = self._at
        return ended - began

    def on_train_batch_end(self, *_: Any) -> None:
        self._done += 1
        if self._done in self._ends:
            wait()
            self._at[self._ends.index(self._done)] = time.perf_counter()


class UntilAccuracy(Callback):
    """Stop a fit at the end of the first epoch whose accuracy reaches a target; scoring takes no time.

    Args:
        target: Accuracy in (0, 1].
        score: Measures the accuracy of the module.
    """

    def __init__(self, target: float, score: Callable[[pl.LightningModule], float]) -> None:
        self.target, self.score = target, score
        self.seconds, self.accuracy, self.epochs = 0.0, 0.0, 0
        self._began = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait()
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        wait()
        self.seconds += time.perf_counter() - self._began
        self.epochs += 1
        self.accuracy = self.score(pl_module)
        trainer.should_stop = self.accuracy >= self.target


class Peers:
    """SimCLR trained by this framework and by lightly's example, on the same images with the same backbone.

    Both have the backbone with its first weights, the size of the head, the temperature, the batch, the size
    of the views (that of the images, as in the example) and their strengths from `overrides`. Optimizer,
    precision, memory format and loader are their own.

    Args:
        overrides: Overrides of the run; the experiment is `cifar10_simclr`.
        workers: Processes of lightly's loader.

    Raises:
        ValueError: The task is another one, or lightly cannot make the views.
    """

    def __init__(self, overrides: Sequence[str], workers: int = WORKERS) -> None:
        quiet = ["callbacks=[progress]", "probe=[]", "probe_untrained=false", "trainer.limit_val_batches=0"]
        self.overrides = ["experiment=cifar10_simclr", "task.view_scale=1", *overrides, *quiet]
        with tempfile.TemporaryDirectory() as folder:
            self.cfg = composed(self.overrides, Path(folder))
        self.data = make_data(self.cfg)
        task = self.new_task()
        self.loader = lightly_loader(self.data, task.strengths, workers)
        self.device = device(self.cfg.trainer.accelerator)

    def train_ours(self, callback: Callback, **length: int) -> None:
        """Train as `train.py` does, for `max_steps` or `max_epochs`."""
        given = [f"trainer.{key}={value}" for key, value in ({"max_epochs": -1} | length).items()]
        with silent(), tempfile.TemporaryDirectory() as folder:
            parts = build_parts(composed([*self.overrides, *given], Path(folder)), Path(folder))
            parts.trainer.callbacks.append(callback)  # type: ignore[attr-defined]
            pretrain(parts)

    def train_lightly(self, callback: Callback, **length: int) -> None:
        """Train as lightly's example does, for `max_steps` or `max_epochs`."""
        task = self.new_task()
        backbone = task.backbone.to(memory_format=torch.contiguous_format)
        module = LightlySimCLR(backbone, task.hidden, task.embedding, task.temperature)
        accelerator = "gpu" if self.device.type == "cuda" else "cpu"
        with silent(), tempfile.TemporaryDirectory() as folder:
            lightly_trainer(accelerator, folder, [callback], **length).fit(module, self.loader)

    def heldout_knn(self, module: pl.LightningModule) -> float:
        """Return the kNN accuracy of the last stage of `module.backbone` on held-out images."""
        backbone, spec = module.backbone, self.data.spec
        assert isinstance(backbone, nn.Module)
        loaders = {split: self.data.downstream(split).sample(LABELLED) for split in ("train", "heldout")}
        mean, std = list(spec.mean), list(spec.std)
        found = encode(backbone, lambda x: normalize(x, mean, std), loaders, [1], device=module.device)
        bank, queries = (found.get(split, found.stages[-1], 1) for split in loaders)
        classes = len(spec.class_names or ())
        votes = knn_scores(queries, bank, found.labels["train"], classes, [min(K, len(bank))])
        return float(topk_accuracy(votes[0], found.labels["heldout"]))

    def new_task(self) -> SimCLR:
        """Build a task with the first weights of the run.

        Raises:
            ValueError: The task is another one, or its views are smaller than the images.
        """
        task, _ = build_task(self.cfg, self.data)
        if not isinstance(task, SimCLR):
            raise ValueError(f"the section peers compares task=simclr, and task is {type(task).__name__}")
        if task.view_scale != 1:
            raise ValueError(
                f"task.view_scale is {task.view_scale}; lightly's example makes views of the size of the "
                "images, so the section peers needs a task.view_scale of 1"
            )
        return task


def throughput(peers: Peers, pairs: int, block: int = BLOCK, warm_up: int = WARM_UP) -> dict[str, float]:
    """Measure images/s of both in pairs of short fits; the first pair warms up, and the order alternates.

    Args:
        peers: The two sides.
        pairs: Number of measured pairs.
        block: Timed steps of a fit.
        warm_up: Steps of a fit before them.

    Returns:
        Medians of images/s, and median, smallest and largest ratio of a pair.
    """
    sides = {"ours": peers.train_ours, "lightly": peers.train_lightly}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(pairs + 1):
        for name in sides if pair % 2 else reversed(sides):
            clock = StepClock(warm_up, block)
            sides[name](clock, max_steps=warm_up + block)
            if pair:
                spent[name].append(clock.seconds)
    images = peers.data.batch_size * block
    ratios = [theirs / ours for ours, theirs in zip(*spent.values(), strict=True)]
    return {
        **{f"{name}_images_per_s": images / statistics.median(times) for name, times in spent.items()},
        **ratio("times", ratios),
    }


def time_to_accuracy(peers: Peers, target: float, epochs: int = EPOCHS) -> dict[str, float]:
    """Train both until the held-out kNN accuracy reaches a target, at most for some epochs.

    Args:
        peers: The two sides.
        target: Accuracy in (0, 1]; it is measured after every epoch, outside the time.
        epochs: Most epochs, and the length of our schedule.

    Returns:
        Of each side the accuracy that it reached, its epochs, and the seconds of training.
    """
    found: dict[str, float] = {"target_knn": target}
    for name, train in (("ours", peers.train_ours), ("lightly", peers.train_lightly)):
        watch = UntilAccuracy(target, peers.heldout_knn)
        train(watch, max_epochs=epochs)
        found |= {f"{name}_knn": watch.accuracy, f"{name}_epochs": watch.epochs, f"{name}_s": watch.seconds}
    return found


def against_lightly(
    overrides: Sequence[str],
    pairs: int,
    block: int = BLOCK,
    workers: int = WORKERS,
    target: float | None = None,
    epochs: int = EPOCHS,
) -> dict[str, Any]:
    """Measure one row: images/s of both sides, and with a target the time to that kNN accuracy.

    Raises:
        ValueError: The target is out of range, the task is another one, or lightly cannot make the views.
    """
    if target is not None and not 0 < target <= 1:
        raise ValueError(f"--peers-knn is {target}; allowed is a share above 0, up to 1, such as 0.45")
    peers = Peers(overrides, workers)
    found = {
        "backbone": peers.cfg.choices.backbone,
        "batch": peers.data.batch_size,
        "precision": precision_of(peers.cfg),
        "lightly_workers": workers,
    }
    found |= throughput(peers, pairs, block)
    return found if target is None else found | time_to_accuracy(peers, target, epochs)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Compute progress but do not show it, nor the hints of a plain Trainer and DataLoader."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
