"""Segmentation probe: an FCN head on the stage maps of a frozen or fine-tuned backbone (Long et al. 2015)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from ssl_lightning.artifacts.results import Record
from ssl_lightning.core.progress import tracked
from ssl_lightning.core.seeding import stream_seed
from ssl_lightning.data.io.annotations import VOID
from ssl_lightning.engine.sync_batch_norm import synchronise_batch_norm
from ssl_lightning.networks.fcn import FCNHead
from ssl_lightning.probes._dense import (
    StageMaps,
    gather_parts,
    own_batches,
    rank_and_world,
    read_split,
    spread_over,
    stage_numbers,
)
from ssl_lightning.probes._pictures import draw_masks
from ssl_lightning.probes._plan import BatchPart, TrainingPlan
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
            network = FCNHead(
                [info.channels()[stage - 1] for stage in stages],
                len(context.class_names),
                hidden=self.hidden,
                dilation=self.dilation,
            )
        # batch norm over several processes needs equal parts
        processes = rank_and_world()[1]
        in_parts = not self.hidden or self.plan.batch_size % processes == 0
        if in_parts and processes > 1:
            on_gpu = torch.device(context.device).type == "cuda"
            network = synchronise_batch_norm(network, on_gpu=on_gpu)  # type: ignore[assignment]
        head = network.to(context.device)
        for split in ("heldout", "test"):
            if not (splits[split][1] != VOID).any():
                raise ValueError(f"the {split} masks have no pixel of a class, so mIoU is undefined")
        maps, cached = self._maps(backbone, {split: images for split, (images, _) in splits.items()})

        def loss(batch: BatchPart) -> Tensor:
            head.train()
            masks = splits["train"][1][batch.indices].to(context.device)  # (B, H, W)
            count = (masks != VOID).sum().clamp(min=1)
            masks = masks[batch.part].long()  # (b, H, W)
            logits = head(maps["train"](batch.mine), tuple(masks.shape[1:]))  # (b, K, H, W)
            flat = logits.movedim(1, -1).flatten(0, 2)  # 1-d, so that the gradient is deterministic on a GPU
            total = F.cross_entropy(flat, masks.flatten(), ignore_index=VOID, reduction="sum")
            return batch.weight * total / count

        @torch.no_grad()
        def answer(split: str, indices: Tensor) -> Tensor:
            head.eval()
            size = tuple(splits[split][1].shape[1:])
            return head(maps[split](indices), size).argmax(1)  # (B, H, W)

        def evaluate(split: str) -> dict[str, Any]:
            masks = splits[split][1]
            metric = MulticlassJaccardIndex(
                len(context.class_names),
                average=None,
                ignore_index=VOID,
                zero_division=torch.nan,  # a class with neither true nor predicted pixels
            ).to(context.device)
            parts = own_batches(len(masks), self.plan.batch_size)
            for part in tracked(parts, f"test on {split}", "batches"):
                found = answer(split, torch.arange(part.start, part.stop))
                metric.update(found, masks[part].to(context.device).long())
            per_class = metric.compute()  # sums the counts of all processes
            names = zip(context.class_names, per_class.tolist(), strict=True)
            return {
                "miou": float(per_class.nanmean()),
                "per_class": {name: None if math.isnan(iou) else iou for name, iou in names},
            }

        heldout, training = self.plan.train(
            head,
            backbone.backbone if self.finetune else None,
            loss,
            lambda: evaluate("heldout"),
            images=len(splits["train"][0]),
            seed=context.seed,
            choose_by="miou",
            split=in_parts,
        )
        test = evaluate("test")
        images, masks = splits["test"]
        if self.pictures and rank_and_world()[0] == 0:
            shown = spread_over(len(images), self.pictures)
            draw_masks(
                context.folder / f"segmentation_{context.branch}.png",
                images[shown],
                masks[shown],
                answer("test", torch.tensor(shown)).byte().cpu(),
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
        with torch.no_grad():
            one = backbone.raw(images["train"][:1])
        needed = sum(x.nbytes for x in one) * sum(len(images[split]) for split in ("train", "heldout"))
        cached = not self.finetune and needed <= self.cache_gb * 1e9
        kept: dict[str, list[Tensor]] = {}
        if cached:
            for split in ("train", "heldout"):
                batches = [[x[:0] for x in one]]  # a process may have no image
                with torch.no_grad():
                    for part in tracked(own_batches(len(images[split]), size), f"encode {split}", "batches"):
                        batches += [backbone.raw(images[split][part])]
                if split == "train":
                    backbone.measure(batches[1:])
                kept[split] = [gather_parts(torch.cat(parts)) for parts in zip(*batches, strict=True)]
        else:
            backbone.measure_on(images["train"], size)

        def source(split: str) -> Maps:
            if split in kept:
                return lambda indices: backbone.scaled([x[indices.to(x.device)] for x in kept[split]])
            return lambda indices: backbone(backbone.input(images[split][indices]))

        return {split: source(split) for split in images}, cached
