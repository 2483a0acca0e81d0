"""Nearest-neighbour accuracy during pretraining, for monitoring only."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader, TensorDataset

from ssl_lightning.callbacks._loaders import (
    BATCH,
    Sample,
    channels_first,
    paired_data,
    read_sample,
    training_loader,
    validation_loader,
)
from ssl_lightning.engine.fsdp import unsharded_task
from ssl_lightning.features.encode import Features, encode
from ssl_lightning.ops.knn import knn_scores, topk_accuracy

_SPLITS = ("train", "heldout")


class OnlineKNN(Callback):
    """Classify held-out images by their nearest labelled training images, every few epochs.

    Logged as `online/<branch>/knn_top1` for the deepest stage. The name differs from the offline probes,
    which use all labels and the test images. This callback uses a fixed draw of labels and no test images.

    The labelled images are the first two arguments. Without them a data module of this package has them, or
    the training and validation loaders.

    Args:
        labelled_train: A loader of labelled batches, or a pair of images and labels (arrays or tensors).
        labelled_heldout: Images to classify, like `labelled_train`.
        every_n_epochs: Epochs between two figures.
        k: Number of neighbours.
        temperature: A neighbour's vote weighs exp(cosine / temperature).
        batches: Most batches of labelled training images in the bank, and of held-out images.

    Raises:
        ValueError: A number is out of range; at the start of the fit, also if there are no labels.

    Example:
        >>> import torch
        >>> images, labels = torch.rand(32, 3, 16, 16), torch.arange(32) % 4
        >>> knn = OnlineKNN((images[:24], labels[:24]), (images[24:], labels[24:]), k=5)
    """

    def __init__(
        self,
        labelled_train: Any = None,
        labelled_heldout: Any = None,
        *,
        every_n_epochs: int = 1,
        k: int = 20,
        temperature: float = 0.07,
        batches: int = 10,
    ) -> None:
        values = {"every_n_epochs": every_n_epochs, "k": k, "temperature": temperature, "batches": batches}
        for name, value in values.items():
            if value <= 0:
                raise ValueError(f"callbacks.online_knn.{name} is {value}; it must be above 0")
        self.every_n_epochs, self.k, self.temperature, self.batches = every_n_epochs, k, temperature, batches
        if (labelled_train is None) != (labelled_heldout is None):
            raise ValueError(
                "OnlineKNN has only one of labelled_train and labelled_heldout; give both or neither"
            )
        self._given = None if labelled_train is None else (labelled_train, labelled_heldout)
        self._samples: dict[str, Sample] = {}  # by split, without a data module of this package
        self._features: dict[str, Features] = {}  # of the current epoch

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = self._data(trainer)
        if data is not None:
            self.check_data(data)

    def check_data(self, data: Any) -> None:
        """Raise if a data module of this package lacks the labels.

        Raises:
            ValueError: It has labels of another kind, or holds out no images.
        """
        if data.has_downstream and data.targets != "classes":
            raise ValueError(
                f"callbacks.online_knn votes on classes, and data {data.name} has {data.targets}; "
                "leave it out"
            )
        if data.has_downstream and not data.label_counts["heldout"]:
            raise ValueError(
                "callbacks.online_knn votes on held-out images, and data.heldout is 0; leave it out"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._data(trainer) is None:
            sources = self._given or (training_loader(trainer), validation_loader(trainer))
            self._samples = dict(zip(_SPLITS, map(self._read, sources, _SPLITS), strict=True))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._features = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        task = pl_module
        if not self.is_due(trainer):
            return
        for name, features in self.encoded(trainer, task).items():
            bank, queries = (features.get(split, features.stages[-1], 1) for split in _SPLITS)
            classes = 1 + max(int(labels.max()) for labels in features.labels.values())
            with torch.inference_mode():
                votes = knn_scores(
                    queries,
                    bank,
                    features.labels["train"],
                    classes,
                    [min(self.k, len(bank))],
                    temperature=self.temperature,
                )
                figure = topk_accuracy(votes[0], features.labels["heldout"])
            # default dtype; the figure is equal in every process, and Lightning warns without sync_dist
            task.log(f"online/{name}/knn_top1", figure.float(), logger=False, sync_dist=True)
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.log_metrics(
                        {"epoch": trainer.current_epoch, f"online/{name}/knn_top1": float(figure)},
                        step=trainer.fit_loop.total_batch_idx + 1,
                    )

    def is_due(self, trainer: pl.Trainer) -> bool:
        """Whether this epoch ends with a figure."""
        data = self._data(trainer)
        labelled = data is None or data.has_downstream
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0 and labelled

    def loaders(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Return the loaders of both splits, over a fixed draw of images."""
        data = self._data(trainer)
        if data is None:
            return {split: self._samples[split].batches(trainer) for split in _SPLITS}
        return {
            split: data.downstream(split).sample(self.batches * data.eval_batch_size) for split in _SPLITS
        }

    def holds(self, trainer: pl.Trainer, loader: Any) -> bool:
        """Whether the held-out images encoded at the end of this epoch begin with the images of `loader`."""
        if not self.is_due(trainer) or self._data(trainer) is None:
            return False
        mine = self.loaders(trainer)["heldout"]
        count = len(loader.indices)
        return mine.source is loader.source and torch.equal(mine.indices[:count], loader.indices)

    def encoded(self, trainer: pl.Trainer, task: Any) -> dict[str, Features]:
        """Return the features of `loaders` for every branch, encoded once per epoch."""
        if not self._features:
            loaders, unsharded = self.loaders(trainer), unsharded_task(trainer, task)
            for name, backbone in unsharded.branches().items():
                self._features[name] = encode(
                    backbone,
                    unsharded.probe_input,
                    loaders,
                    [1],
                    precision=trainer.precision_plugin.forward_context,
                    device=task.device,
                )
        return self._features

    def _data(self, trainer: pl.Trainer) -> Any | None:
        """Return the data module of this package that has the labels, or None."""
        return None if self._given else paired_data(trainer)

    def _read(self, source: Any, split: str) -> Sample:
        """Read the labelled images of one split.

        Raises:
            ValueError: There are none.
        """
        ways = (
            "give it images: OnlineKNN((images, labels), (heldout_images, heldout_labels)), or leave it out"
        )
        if source is None:
            raise ValueError(
                f"OnlineKNN votes on held-out images, and the Trainer has no validation loader; {ways}"
            )
        if isinstance(source, (tuple, list)) and len(source) == 2 and hasattr(source[0], "shape"):
            pixels, labels = channels_first(source[0]), torch.as_tensor(source[1])
            source = DataLoader(TensorDataset(pixels, labels), batch_size=BATCH)
        count = self.batches * (getattr(source, "batch_size", None) or BATCH)
        sample = read_sample(source, count)
        if int(sample.labels.min()) < 0:
            raise ValueError(
                f"OnlineKNN needs one label of 0 or more per image, and the {split} images lack them; {ways}"
            )
        return sample
