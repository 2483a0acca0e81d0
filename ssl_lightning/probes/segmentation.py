"""Segmentation probe: an FCN head on the stage maps of a frozen or fine-tuned backbone (Long et al. 2015)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from ssl_lightning.artifacts.records import Record
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
from ssl_lightning.probes._shares import Draw, Shares, Trained, candidate_plans
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
        finetune: Train a copy of the backbone too, with `backbone_lr`.
        fractions: Shares of the labelled pictures, a record each with the mean and the deviation over draws;
            None trains once on all of them.
        draws: Random draws of each share, the same pictures in every run; see `Shares`.
        lr, backbone_lr: Learning rates, see `TrainingPlan`. Of several, held-out pictures choose a pair with
            the first draw of each share.
        steps, batch_size, optimizer, weight_decay, evals: See `TrainingPlan`; mIoU selects.
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
        fractions: Sequence[float] | None = None,
        draws: int = 3,
        steps: int = 1000,
        batch_size: int = 8,
        optimizer: str = "adamw",
        lr: float | Sequence[float] = 0.005,
        backbone_lr: float | Sequence[float] = 0.0005,
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
        self.shares = Shares("segmentation", fractions, draws)
        self.plans = candidate_plans(
            "segmentation",
            lr,
            backbone_lr,
            finetune=finetune,
            steps=steps,
            batch_size=batch_size,
            optimizer=optimizer,
            weight_decay=weight_decay,
            evals=evals,
        )
        self.cache_gb, self.pictures = cache_gb, pictures

    def check(self, counts: Mapping[str, int]) -> None:
        super().check(counts)
        self.plans[0].check(self.shares.smallest(counts["train"]))

    def fitted_limits(self, counts: Mapping[str, int]) -> list[str]:
        smallest = self.shares.smallest(counts["train"])
        return self.shares.fitted_limits(counts["train"]) + self.plans[0].fitted_limits(smallest)

    def run(self, context: ProbeContext) -> list[Record]:
        info: Any = context.backbone.feature_info
        stages = stage_numbers(
            context,
            self.stages,
            range(max(1, len(info.channels()) - 2), len(info.channels()) + 1),
            "segmentation",
        )
        splits = {split: read_split(loader, context.device) for split, loader in context.loaders.items()}
        for split in ("heldout", "test"):
            if not (splits[split][1] != VOID).any():
                raise ValueError(f"the {split} masks have no pixel of a class, so mIoU is undefined")
        backbone = StageMaps(context, stages, copied=self.finetune)
        maps, cached = self._maps(backbone, {split: images for split, (images, _) in splits.items()})
        training = _Training(
            self, context, backbone, maps, {split: masks for split, (_, masks) in splits.items()}
        )
        outcomes = self.shares.run(
            len(splits["train"][0]), self.plans, training.train, training.test, choose_by="miou"
        )
        images, masks = splits["test"]
        if self.pictures and rank_and_world()[0] == 0:
            shown = spread_over(len(images), self.pictures)
            draw_masks(
                context.folder / f"segmentation_{context.branch}.png",
                images[shown],
                masks[shown],
                training.answer("test", torch.tensor(shown)).byte().cpu(),
                context.class_names,
                f"{context.branch}, test mIoU {100 * outcomes[-1].tested[-1]['miou']:.1f} %",
            )
        records = []
        for outcome in outcomes:
            value, figures = outcome.figure("miou")
            protocol = {
                "stages": [f"stage{stage}" for stage in stages],
                "strides": [info.reduction()[stage - 1] for stage in stages],
                "hidden": self.hidden,
                "dilation": self.dilation if self.hidden else None,
                "features": "standardised per channel",
                "image_size": list(images.shape[2:]),
                **outcome.training(),
                "maps": "kept" if cached else "encoded at every step",
                "labels": {"train": len(outcome.draws[0].indices), "heldout": len(splits["heldout"][0])},
                **figures,
            }
            records.append(Record(f"stage{stages[-1]}", "miou", value, len(images), protocol))
        return records

    def _maps(self, backbone: StageMaps, images: Mapping[str, Tensor]) -> tuple[dict[str, Maps], bool]:
        """Return the source of the maps of each split, and whether it keeps them in memory."""

        size = self.plans[0].batch_size
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


class _Training:
    """Trainings of a head, and if fine-tuned of the backbone; each starts from the given backbone.

    Args:
        probe: The probe with its settings.
        context: Context of the probe.
        backbone: The stage maps, measured; its backbone is trained if the probe fine-tunes.
        maps: Source of the maps of each split.
        masks: Masks of each split, `(N, H, W)` uint8.
    """

    def __init__(
        self,
        probe: SegmentationProbe,
        context: ProbeContext,
        backbone: StageMaps,
        maps: Mapping[str, Maps],
        masks: Mapping[str, Tensor],
    ) -> None:
        self.probe, self.context, self.maps, self.masks = probe, context, maps, masks
        self.stages = backbone.stages
        self.tuned = backbone.backbone if probe.finetune else None
        self.first = copy.deepcopy(self.tuned.state_dict()) if self.tuned is not None else {}
        self.head: nn.Module = nn.Identity()  # of the last training

    def train(self, draw: Draw, plan: TrainingPlan) -> Trained:
        """Train on a draw of the labelled pictures, and keep the best state on held-out pictures."""
        seed = draw.seed(self.context.seed)
        in_parts = self._in_parts(len(draw.indices), plan.batch_size)
        self.head = self._new_head(seed, synchronised=in_parts)
        if self.tuned is not None:
            self.tuned.load_state_dict(self.first)
        heldout, protocol = plan.train(
            self.head,
            self.tuned,
            lambda batch: self._loss(batch, draw.indices),
            lambda: self._evaluate("heldout"),
            images=len(draw.indices),
            seed=seed,
            choose_by="miou",
            split=in_parts,
        )
        return Trained(heldout, protocol, [copy.deepcopy(each.state_dict()) for each in self._trained()])

    def test(self, trained: Trained) -> dict[str, Any]:
        """Restore the state of a training, and return its test scores."""
        for module, state in zip(self._trained(), trained.states, strict=True):
            module.load_state_dict(state)
        return self._evaluate("test")

    @torch.no_grad()
    def answer(self, split: str, indices: Tensor) -> Tensor:
        """Return the predicted class of each pixel, `(B, H, W)`."""
        self.head.eval()
        size = tuple(self.masks[split].shape[1:])
        return self.head(self.maps[split](indices), size).argmax(1)

    def _trained(self) -> list[nn.Module]:
        return [self.head] if self.tuned is None else [self.head, self.tuned]

    def _in_parts(self, images: int, batch_size: int) -> bool:
        """Return whether the processes share a batch; batch norm over several needs equal parts."""
        return not self.probe.hidden or min(images, batch_size) % rank_and_world()[1] == 0

    def _new_head(self, seed: int, *, synchronised: bool) -> nn.Module:
        channels = self.context.backbone.feature_info.channels()  # type: ignore[operator, union-attr]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "segmentation", self.context.branch))
            head: nn.Module = FCNHead(
                [channels[stage - 1] for stage in self.stages],
                len(self.context.class_names),
                hidden=self.probe.hidden,
                dilation=self.probe.dilation,
            )
        if synchronised and rank_and_world()[1] > 1:
            on_gpu = torch.device(self.context.device).type == "cuda"
            head = synchronise_batch_norm(head, on_gpu=on_gpu)
        return head.to(self.context.device)

    def _loss(self, batch: BatchPart, drawn: Tensor) -> Tensor:
        """Return this process's summand of the mean loss over the pixels of a batch of drawn pictures."""
        self.head.train()
        indices = drawn[batch.indices]
        masks = self.masks["train"][indices].to(self.context.device)  # (B, H, W)
        count = (masks != VOID).sum().clamp(min=1)
        masks = masks[batch.part].long()  # (b, H, W)
        logits = self.head(self.maps["train"](indices[batch.part]), tuple(masks.shape[1:]))  # (b, K, H, W)
        flat = logits.movedim(1, -1).flatten(0, 2)  # 1-d, so that the gradient is deterministic on a GPU
        total = F.cross_entropy(flat, masks.flatten(), ignore_index=VOID, reduction="sum")
        return batch.weight * total / count

    def _evaluate(self, split: str) -> dict[str, Any]:
        """Return mIoU, and IoU by class, over all pixels of a split."""
        names, masks = self.context.class_names, self.masks[split]
        metric = MulticlassJaccardIndex(
            len(names),
            average=None,
            ignore_index=VOID,
            zero_division=torch.nan,  # a class with neither true nor predicted pixels
        ).to(self.context.device)
        parts = own_batches(len(masks), self.probe.plans[0].batch_size)
        for part in tracked(parts, f"test on {split}", "batches"):
            found = self.answer(split, torch.arange(part.start, part.stop))
            metric.update(found, masks[part].to(self.context.device).long())
        ious = metric.compute()  # sums the counts of all processes
        per_class = zip(names, ious.tolist(), strict=True)
        return {
            "miou": float(ious.nanmean()),
            "per_class": {"miou": {name: None if math.isnan(iou) else iou for name, iou in per_class}},
        }
