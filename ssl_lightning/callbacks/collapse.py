"""Report after each epoch whether the features have collapsed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.callbacks._loaders import paired_data, watched_sample
from ssl_lightning.callbacks.online_knn import OnlineKNN
from ssl_lightning.engine.fsdp import unsharded_task
from ssl_lightning.features.encode import ClassLabels, encode
from ssl_lightning.ops.rank import dead_channels, effective_rank

log = logging.getLogger(__name__)

FEWEST = 16  # images needed to judge a rank
LOWEST_RANK, MOST_DEAD = 2.0, 0.5  # beyond these the features have collapsed


@dataclass(frozen=True)
class FeatureHealth:
    """Health of the pooled last stage of a backbone, or of the embeddings of a head, on some images.

    Args:
        rank: Effective rank, from 1 to `largest`.
        largest: Smaller of the numbers of images and channels.
        dead: Number of channels that are constant over all images.
        channels: Number of channels.
    """

    rank: float
    largest: int
    dead: int
    channels: int

    @property
    def collapsed(self) -> bool:
        """Whether the features hardly distinguish the images."""
        return self.rank < LOWEST_RANK or self.dead > MOST_DEAD * self.channels

    def __str__(self) -> str:
        return f"rank {self.rank:.1f} of {self.largest}, {self.dead} of {self.channels} channels dead"


class Collapse(Callback):
    """Report the effective rank and the dead channels of every branch after an epoch, in one line.

    The features are the average-pooled deepest stage of a fixed set of plain held-out images, in evaluation
    mode; of a task that compares views, the embeddings of its head too. With `data.heldout=0` pretraining
    images are used. The rank is RankMe (see `ops.rank`); a channel is dead if it is constant over all images.
    Logged as `features/<branch>/rank` and `features/<branch>/dead_channels`, where the branch may be `head`.
    A rank below 2, or more than half of the channels dead, turns the line into a warning, and the run
    continues. The callback changes no weight, statistic or random number.

    If `OnlineKNN` encodes these images too, they are encoded only once. With 1 to 15 held-out images the
    callback only says at the start that it reports nothing.

    The lines go to the logger of this module, at level INFO, or WARNING for a collapse. Our commands show
    both. Another program shows the warnings, and the rest once it configures logging.

    Args:
        images: Number of held-out images, or all if there are fewer; it bounds the rank.
        every_n_epochs: Epochs between two lines.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(self, *, images: int = 512, every_n_epochs: int = 1) -> None:
        if images < FEWEST:
            raise ValueError(
                f"callbacks.collapse.images is {images}; allowed are {FEWEST} and more, to judge a rank"
            )
        if every_n_epochs < 1:
            raise ValueError(f"callbacks.collapse.every_n_epochs is {every_n_epochs}; it must be above 0")
        self.images, self.every_n_epochs = images, every_n_epochs
        self.collapsed: list[str] = []  # branches and heads, by the last line of this process
        self._watches = True
        self._stock: list[tuple[Tensor, Tensor]] = []  # batches without a data module of this package

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        fewest = max(FEWEST, trainer.world_size)
        if paired_data(trainer) is None:
            sample = watched_sample(trainer, self.images)
            self._stock, count = sample.batches(trainer), len(sample.images)
            needed = f"{fewest} are needed"
        else:
            count, needed = len(self.loader(trainer).indices), f"data.heldout={fewest} is needed"
        self._watches = count >= fewest
        if not self._watches:
            rank_zero_warn(f"features are not watched for collapse: {count} held-out images, {needed}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._watches or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        features = self.features(trainer, pl_module)  # collective: every process must call it
        if trainer.is_global_zero:
            found = {name: feature_health(x) for name, x in features.items()}
            self.report(trainer, found)

    def loader(self, trainer: pl.Trainer) -> Any:
        """Return a loader of labelled held-out images, shared with `OnlineKNN`, if there are enough.

        Else it holds unlabelled held-out images, or pretraining images if none are held out. Without a data
        module of this package, it holds images of the validation loader, or else of the training loader.
        """
        data = paired_data(trainer)
        if data is None:
            return self._stock
        if not data.holds_out:
            return data.unlabelled(self.images)
        if data.has_downstream and data.targets == "classes":
            heldout = data.downstream("heldout").sample(self.images)
            if len(heldout.indices) == self.images:
                return heldout
        return data.val_dataloader().sample(self.images)

    def features(self, trainer: pl.Trainer, task: Any) -> dict[str, Tensor]:
        """Return the pooled last stage `(N, D)` of every branch, and embeddings, equal on every process."""
        unsharded = unsharded_task(trainer, task)
        pooled = self.pooled(trainer, task, unsharded)
        return pooled | unsharded.embeddings(pooled["backbone"])

    def pooled(self, trainer: pl.Trainer, task: Any, unsharded: Any) -> dict[str, Tensor]:
        """Return the pooled last stage `(N, D)` of every branch."""
        loader = self.loader(trainer)
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, OnlineKNN) and other.holds(trainer, loader):
                return {
                    name: each.get("heldout", each.stages[-1], 1)[: len(loader.indices)]
                    for name, each in other.encoded(trainer, task).items()
                }
        pooled = {}
        for name, backbone in unsharded.branches().items():
            each = encode(
                backbone,
                unsharded.probe_input,
                {"heldout": ClassLabels(loader)},
                [1],
                precision=trainer.precision_plugin.forward_context,
                device=task.device,
            )
            pooled[name] = each.get("heldout", each.stages[-1], 1)
        return pooled

    def report(self, trainer: pl.Trainer, found: Mapping[str, FeatureHealth]) -> None:
        """Log the line, and send the figures to the loggers."""
        self.collapsed = collapsed_branches(found)
        level = logging.WARNING if self.collapsed else logging.INFO
        log.log(level, line(trainer.current_epoch + 1, found))
        row: dict[str, float] = {}
        for name, health in found.items():
            row |= {f"features/{name}/rank": health.rank, f"features/{name}/dead_channels": health.dead}
        for logger in trainer.loggers:
            logger.log_metrics(
                {"epoch": trainer.current_epoch, **row}, step=trainer.fit_loop.total_batch_idx + 1
            )


def feature_health(x: Tensor) -> FeatureHealth:
    """Compute the health of features `(N, D)`."""
    dead = int(dead_channels(x).sum())
    return FeatureHealth(float(effective_rank(x)), min(x.shape), dead, x.shape[1])


def collapsed_branches(found: Mapping[str, FeatureHealth]) -> list[str]:
    """Return the names of the branches and heads whose features collapsed."""
    return [name for name, health in found.items() if health.collapsed]


def line(epoch: int, found: Mapping[str, FeatureHealth]) -> str:
    """Format the health of each branch after an epoch.

    >>> line(2, {"backbone": FeatureHealth(35.9, 96, 3, 96)})
    'epoch 2: features backbone rank 35.9 of 96, 3 of 96 channels dead'
    """
    text = "; ".join(f"{name} {health}" for name, health in found.items())
    collapsed = collapsed_branches(found)
    if not collapsed:
        return f"epoch {epoch}: features {text}"
    return (
        f"epoch {epoch}: warning: features of {' and '.join(collapsed)} have collapsed: {text}; "
        "all images look nearly the same. A lower optimizer.lr may help; see docs/trust.md, Numbers"
    )
