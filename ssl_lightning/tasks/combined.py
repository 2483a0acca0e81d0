"""Several pretext tasks on one backbone (Doersch, Zisserman 2017)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor, nn

from ssl_lightning.config.plugins import conf_dirs
from ssl_lightning.config.types import accepted, check_values
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import twin
from ssl_lightning.networks.own_statistics import OwnStatistics
from ssl_lightning.tasks._contract import check_scores
from ssl_lightning.tasks.base import Panel, PretextTask


class Combined(PretextTask):
    """Learn several pretext tasks at once, on one backbone; the loss is the weighted sum of their losses.

    Each part keeps its own head, corruption, random draws and initial weights: they are what it has alone,
    whatever the other parts are. Its scores are logged with its name, such as `train/rotation/acc`. (Beside a
    part that draws for the batch of all processes, those beyond the first draw other numbers than alone.)

    Parts differ in what they feed the backbone: images, tiles, or lightness without colour. The first part is
    the leading one: probes feed the backbone as it does, and the statistics of the batch norms are its own.
    Every other part has statistics of its own, so that each is validated on the input that it trains on.

    Args:
        backbone: The backbone. Colorization repeats L for all its channels.
        spec: Shape and statistics of the images.
        parts: Names of the tasks.
        weights: Weight of the loss of each part; None for 1 each.
        options: Keywords of the parts by name: `{"colorization": {"target": "l2"}}`.
        cache_dir: `cache_dir` of the parts that have one.
        **base: The keywords of `PretextTask`.

    Raises:
        ValueError: A part is unknown or a control, has a second optimizer or refuses its keywords or the
            images, or a number is out of range.
    """

    default_optimizer = (torch.optim.AdamW, {"lr": 0.002, "weight_decay": 0.05})

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        parts: Sequence[str] = ("rotation", "colorization"),
        weights: Sequence[float] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        kinds, options = part_classes(parts), options or {}
        self.weights = check_weights(weights, parts)
        if unknown := sorted(set(options) - set(kinds)):
            raise ValueError(
                f"task.options has {', '.join(unknown)}; allowed are the names in task.parts, "
                f"{', '.join(kinds)}"
            )
        shared: dict[str, Any] = {
            "seed": self.seed,
            "channels_last": self.image_format is torch.channels_last,
        }
        self.parts = nn.ModuleDict()
        for name, kind in kinds.items():
            own = check_options(name, kind, options.get(name, {}), cache_dir)
            with explaining_part(name):
                part = kind(self.backbone, **own, **shared)
            if not part.automatic_optimization:
                raise ValueError(
                    f"task.parts has {name}, whose discriminator needs an optimizer of its own; train it "
                    f"without one: +task.options.{name}.adversarial_weight=0"
                )
            del part.backbone  # a plain reference, so that checkpoints hold the backbone once
            part.__dict__["backbone"] = self.backbone
            self.parts[name] = part
        self.recordable = all(part.recordable for part in self.tasks.values())
        self.fewest_images = max(part.fewest_images for part in self.tasks.values())
        self.shares_draws = any(part.shares_draws for part in self.tasks.values())
        self.recalibrate = self.leading.recalibrate
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        for name, part in self.tasks.items():
            with explaining_part(name), torch.random.fork_rng(devices=[]):
                part.build(spec)
        followers = list(self.parts)[1:]
        self.statistics = nn.ModuleDict({name: OwnStatistics(self.backbone) for name in followers})
        self.views_per_image = sum(part.views_per_image for part in self.tasks.values())
        seen = [part.labels_seen for part in self.tasks.values() if part.labels_seen != "none"]
        self.labels_seen = ", and ".join(dict.fromkeys(seen)) or "none"

    @property
    def tasks(self) -> dict[str, PretextTask]:
        """The parts by name, in order."""
        return cast(dict[str, PretextTask], dict(self.parts.items()))

    @property
    def leading(self) -> PretextTask:
        """The part whose input the probes use."""
        return next(iter(self.tasks.values()))

    def chances(self) -> dict[str, float]:
        return {
            f"{name}/{score}": chance
            for name, part in self.tasks.items()
            for score, chance in part.chances().items()
        }

    def embeddings(self, features: Tensor) -> dict[str, Tensor]:
        return {
            f"{name} {key}": value
            for name, part in self.tasks.items()
            for key, value in part.embeddings(features).items()
        }

    def networks(self) -> list[nn.Module]:
        return [self.backbone, *(network for part in self.tasks.values() for network in part.children())]

    def check_images(self, sample: Callable[[int], Tensor]) -> None:
        for part in self.tasks.values():
            part.check_images(sample)

    def check_channels(self) -> None:
        for part in self.tasks.values():
            part.check_channels()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for part in self.tasks.values():
            part.trainer = self.trainer
            part.setup(stage)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        for part in self.tasks.values():
            part.on_fit_start()

    def on_train_start(self) -> None:
        super().on_train_start()
        for part in self.tasks.values():
            part.on_train_start()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        for part in self.tasks.values():
            part.on_train_batch_start(batch, batch_idx)

    def on_validation_start(self) -> None:
        super().on_validation_start()
        for part in self.tasks.values():
            part.on_validation_start()

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().on_validation_batch_start(batch, batch_idx, dataloader_idx)
        for part in self.tasks.values():
            part.on_validation_batch_start(batch, batch_idx, dataloader_idx)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        for part in self.tasks.values():
            part.on_before_optimizer_step(optimizer)

    def receive(self, images: Tensor) -> Tensor:
        return images  # each part converts them

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        losses: list[Tensor] = []
        scores: dict[str, Tensor] = {}
        for weight, (name, part) in zip(self.weights, self.tasks.items(), strict=True):
            rank = self.global_rank if self.shares_draws and not part.shares_draws else 0
            with self.statistics_of(name):
                found = part.step(part.receive(images), labels, twin(stream, name, rank))
            check_scores(part, found)
            losses.append(weight * found["loss"])
            scores |= {f"{name}/{score}": value for score, value in found.items()}
        return {"loss": torch.stack(losses).sum()} | scores

    def statistics_of(self, name: str) -> AbstractContextManager[None]:
        """Let the backbone use the batch-norm statistics of a part."""
        if name not in self.statistics:  # those of the leading part are in the backbone
            return nullcontext()
        return cast(OwnStatistics, self.statistics[name]).used_by(self.backbone)

    def probe_input(self, images: Tensor) -> Tensor:
        return self.leading.probe_input(images)

    def probe_views(self, images: Tensor) -> Tensor:
        return self.leading.probe_views(images)

    def input_config(self) -> dict[str, Any]:
        return self.leading.input_config()

    def panel(self, images: Tensor) -> Panel:
        """Show the panels of the parts side by side."""
        panels = {}
        for name, part in self.tasks.items():
            with self.statistics_of(name):
                panels[name] = part.panel(images)
        return side_by_side(panels)


def part_classes(parts: Sequence[str]) -> dict[str, type[PretextTask]]:
    """Return the classes of tasks by name: of `conf/task` here and of plugins, without the controls.

    Raises:
        ValueError: A name is unknown, a control, or given twice, or there is none.
    """
    targets = {
        path.stem: str(OmegaConf.load(path)._target_)
        for conf in reversed(conf_dirs())
        for path in sorted(conf.glob("task/*.yaml"))
    }

    def combines(name: str) -> bool:
        kind = cast(type[PretextTask], get_class(targets[name]))
        return kind.needs_training and not kind.needs_labels and kind is not Combined

    wrong = [name for name in parts if name not in targets or not combines(name)]
    if wrong or not parts or isinstance(parts, str) or len(set(parts)) < len(parts):
        allowed = ", ".join(sorted(filter(combines, targets)))
        raise ValueError(
            f"task.parts is {list(parts)}; allowed are different names of pretext tasks: {allowed}"
        )
    return {name: cast(type[PretextTask], get_class(targets[name])) for name in parts}


def check_weights(weights: Sequence[float] | None, parts: Sequence[str]) -> list[float]:
    """Return a weight for each part, 1 by default.

    Raises:
        ValueError: The number differs, a weight is negative or not finite, or all are 0.
    """
    if weights is None:
        return [1.0] * len(parts)
    fine = all(math.isfinite(weight) and weight >= 0 for weight in weights) and any(weights)
    if len(weights) != len(parts) or not fine:
        raise ValueError(
            f"task.weights is {list(weights)}; allowed is null, or a number for each of the {len(parts)} "
            "task.parts, 0 or more, one of them above 0"
        )
    return list(weights)


def check_options(
    name: str, kind: type[PretextTask], options: Mapping[str, Any], cache_dir: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """Return the keywords of a part, checked by its constructor's annotations.

    Raises:
        ValueError: A keyword is unknown, belongs to all parts together, or is of the wrong type.
    """
    known, _ = accepted(kind)
    shared, _ = accepted(PretextTask)
    own = {key: value for key, value in known.items() if key not in {*shared, "cache_dir"}}
    check_values(options, own, f"task.options.{name}.")
    return dict(options) | ({"cache_dir": cache_dir} if "cache_dir" in known else {})


@contextmanager
def explaining_part(name: str) -> Iterator[None]:
    """Name the keys of a part in its errors as they are in the combined task.

    Raises:
        ValueError: The part raised it.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(re.sub(r"\btask\.", f"task.options.{name}.", str(error))) from error


def side_by_side(panels: Mapping[str, Panel]) -> Panel:
    """Join panels of the same images; their columns get the names of the panels."""
    columns: list[str] = []
    captions: list[list[list[str]]] = []
    right: list[list[list[bool | None]]] = []
    watched = None
    for name, panel in panels.items():
        rows, count = panel.images.shape[:2]
        if watched is None and panel.watched is not None:
            watched = len(columns) + panel.watched
        columns += [f"{name.replace('_', ' ')}\n{title}" for title in panel.columns]
        captions.append(panel.captions or [[""] * count] * rows)
        right.append(panel.right or [[None] * count] * rows)
    return Panel(
        torch.cat([panel.images for panel in panels.values()], 1),
        columns,
        [[each for part in row for each in part] for row in zip(*captions, strict=True)],
        [[each for part in row for each in part] for row in zip(*right, strict=True)],
        watched,
    )
