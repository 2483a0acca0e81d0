"""Segmentation probe: an FCN head on the stage maps of a frozen or fine-tuned backbone (Long et al. 2015)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from ssl_lightning.artifacts.results import Record
from ssl_lightning.core.seeding import stream_seed
from ssl_lightning.data.io.annotations import VOID
from ssl_lightning.networks.fcn import FCNHead
from ssl_lightning.probes._dense import (
    MEASURED,
    StageMaps,
    chunks,
    is_rank_zero,
    read_split,
    spread_over,
    stage_numbers,
)
from ssl_lightning.probes._pictures import draw_masks
from ssl_lightning.probes._plan import TrainingPlan
from ssl_lightning.probes.base import BackboneProbe, ProbeContext

Maps = Callable[[Tensor], list[Tensor]]  # indices of images -> their standardised stage maps


class SegmentationProbe(BackboneProbe):
    """Mean intersection over union of per-pixel classification, over all pixels of a split.

    Pixels with id 255 are ignored in training and evaluation. All splits are read into memory (uint8). There
    is no augmentation, which made no noticeable difference in the paper (sec. 4.3). So a frozen backbone
    encodes each image once.

    Args:
        stages: Stages whose maps are scored, counted from 1; None takes the last three, as in FCN-8s.
        hidden, dilation: See `FCNHead`.
        finetune: Train a copy of the backbone too, with `trunk_lr`.
        steps, batch_size, optimizer, lr, trunk_lr, weight_decay, evals: See `TrainingPlan`; mIoU selects.
        cache_gb: Memory limit in GB for the maps of a frozen backbone. Above it, every step encodes its
            images.
        pictures: Number of test images drawn into `segmentation_<branch>.png`; 0 draws none.

    Raises:
        ValueError: A value is out of range.
    """

    targets: ClassVar[tuple[str, ...]] = ("masks",)
    takes_views = False

    def __init__(
        self,
        *,
        stages: Sequence[int] | None = None,
        hidden: int = 0,
        dilation: int = 1,
        finetune: bool = False,
        steps: int = 1000,
        batch_size: int = 8,
        optimizer: str = "adamw",
        lr: float = 0.005,
        trunk_lr: float = 0.0005,
        weight_decay: float = 0.0001,
        evals: int = 5,
        cache_gb: float = 4.0,
        pictures: int = 6,
    ) -> None:
        if hidden < 0 or dilation < 1:
            raise ValueError(
                f"probe.segmentation has hidden {hidden} and dilation {dilation}; allowed are 0 or more "
                "channels and a dilation of at least 1"
            )
        if cache_gb < 0 or pictures < 0:
            raise ValueError(
                f"probe.segmentation has cache_gb {cache_gb} and pictures {pictures}; both must be at least 0"
            )
        self.stages, self.hidden, self.dilation, self.finetune = stages, hidden, dilation, finetune
        self.plan = TrainingPlan(
            "segmentation", steps, batch_size, optimizer, lr, trunk_lr, weight_decay, evals
        )
        self.cache_gb, self.pictures = cache_gb, pictures

    def check(self, counts: Mapping[str, int]) -> None:
        super().check(counts)
        self.plan.check(counts["train"])

    def fitted_limits(self, counts: Mapping[str, int]) -> list[str]:
        return self.plan.fitted_limits(counts["train"])

    def run(self, context: ProbeContext) -> list[Record]:
        info: Any = context.backbone.feature_info
        stages = stage_numbers(
            context,
            self.stages,
            range(max(1, len(info.channels()) - 2), len(info.channels()) + 1),
            "segmentation",
        )
        splits = {split: read_split(loader, context.device) for split, loader in context.loaders.items()}
        backbone = StageMaps(context, stages, copied=self.finetune)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(context.seed, "segmentation", context.branch))
            head = FCNHead(
                [info.channels()[stage - 1] for stage in stages],
                len(context.class_names),
                hidden=self.hidden,
                dilation=self.dilation,
            ).to(context.device)
        for split in ("heldout", "test"):
            if not (splits[split][1] != VOID).any():
                raise ValueError(f"the {split} masks have no pixel of a class, so mIoU is undefined")
        maps, cached = self._maps(backbone, {split: images for split, (images, _) in splits.items()})

        def loss(indices: Tensor, step: int) -> Tensor:
            head.train()
            masks = splits["train"][1][indices].to(context.device).long()  # (B, H, W)
            logits = head(maps["train"](indices), tuple(masks.shape[1:]))  # (B, K, H, W)
            flat = logits.movedim(1, -1).flatten(0, 2)  # 1-d, so that the gradient is deterministic on a GPU
            total = F.cross_entropy(flat, masks.flatten(), ignore_index=VOID, reduction="sum")
            return total / (masks != VOID).sum().clamp(min=1)

        def evaluate(split: str) -> tuple[dict[str, Any], Tensor]:
            images, masks = splits[split]
            size = tuple(masks.shape[1:])
            metric = MulticlassJaccardIndex(
                len(context.class_names),
                average=None,
                ignore_index=VOID,
                zero_division=torch.nan,  # a class with neither true nor predicted pixels
                sync_on_compute=False,  # every process has all images
            ).to(context.device)
            answers = torch.empty_like(masks)
            head.eval()
            with torch.no_grad():
                for part in chunks(len(images), self.plan.batch_size):
                    found = head(maps[split](torch.arange(part.start, part.stop)), size).argmax(1)
                    metric.update(found, masks[part].to(context.device).long())
                    answers[part] = found.byte().cpu()
            per_class = metric.compute()
            names = zip(context.class_names, per_class.tolist(), strict=True)
            return {
                "miou": float(per_class.nanmean()),
                "per_class": {name: None if math.isnan(iou) else iou for name, iou in names},
            }, answers

        heldout, training = self.plan.train(
            head,
            backbone.backbone if self.finetune else None,
            loss,
            lambda: evaluate("heldout")[0],
            images=len(splits["train"][0]),
            seed=context.seed,
            choose_by="miou",
        )
        test, answers = evaluate("test")
        images, masks = splits["test"]
        if self.pictures and is_rank_zero():
            shown = spread_over(len(images), self.pictures)
            draw_masks(
                context.folder / f"segmentation_{context.branch}.png",
                images[shown],
                masks[shown],
                answers[shown],
                context.class_names,
                f"{context.branch}, test mIoU {100 * test['miou']:.1f} %",
            )
        protocol = {
            "stages": [f"stage{stage}" for stage in stages],
            "strides": [info.reduction()[stage - 1] for stage in stages],
            "hidden": self.hidden,
            "dilation": self.dilation if self.hidden else None,
            "features": "standardised per channel",
            "image_size": list(images.shape[2:]),
            **training,
            "maps": "kept" if cached else "encoded at every step",
            "labels": {split: len(splits[split][0]) for split in ("train", "heldout")},
            "per_class": test["per_class"],
            "heldout": heldout["miou"],
        }
        return [Record(f"stage{stages[-1]}", "miou", test["miou"], len(images), protocol)]

    def _maps(self, backbone: StageMaps, images: Mapping[str, Tensor]) -> tuple[dict[str, Maps], bool]:
        """Return the source of the maps of each split, and whether it keeps them in memory."""

        size = self.plan.batch_size

        @torch.no_grad()
        def encode(pictures: Tensor) -> Iterator[list[Tensor]]:
            for part in chunks(len(pictures), size):
                yield backbone.raw(pictures[part])

        batches = encode(images["train"])
        first = next(batches)
        each = sum(x.numel() * x.element_size() for x in first) / len(first[0])
        needed = each * sum(len(images[split]) for split in ("train", "heldout"))
        cached = not self.finetune and needed <= self.cache_gb * 1e9
        kept: dict[str, list[Tensor]] = {}
        if cached:
            for split, encoded in (
                ("train", chain([first], batches)),
                ("heldout", encode(images["heldout"])),
            ):
                kept[split] = [torch.cat(parts) for parts in zip(*encoded, strict=True)]
            backbone.measure([x[part] for x in kept["train"]] for part in chunks(len(images["train"]), size))
        else:
            backbone.measure(encode(images["train"][spread_over(len(images["train"]), MEASURED)]))

        def source(split: str) -> Maps:
            if split in kept:
                return lambda indices: backbone.scaled([x[indices.to(x.device)] for x in kept[split]])
            return lambda indices: backbone(backbone.input(images[split][indices]))

        return {split: source(split) for split in images}, cached
