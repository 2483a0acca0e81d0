"""Detection probe: Faster R-CNN with a feature pyramid, on a frozen or fine-tuned backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.results import Record
from ssl_lightning.core.seeding import generator, stream_seed
from ssl_lightning.networks.detector import make_detector, pyramid_stages
from ssl_lightning.ops.voc_ap import voc_ap
from ssl_lightning.probes._dense import (
    MEASURED,
    StageMaps,
    chunks,
    is_rank_zero,
    read_split,
    spread_over,
    stage_numbers,
)
from ssl_lightning.probes._pictures import draw_boxes
from ssl_lightning.probes._plan import TrainingPlan
from ssl_lightning.probes.base import BackboneProbe, ProbeContext

METRICS = ("coco_map", "ap50", "voc07_ap50")
FINEST = 4  # smallest stride of a level of the pyramid
DRAWN_SCORE = 0.5
Target = Mapping[str, Tensor]


class DetectionProbe(BackboneProbe):
    """Average precision of boxes: COCO's mean over IoU 0.5..0.95, AP at 0.5, and VOC 2007's 11 points at 0.5.

    Difficult objects are trained on; the evaluation ignores them. Images without objects train as background.
    All splits are read into memory (uint8).

    Args:
        stages: Stages of the pyramid, counted from 1; None takes the deepest of each stride from 4 on.
        finetune: Train a copy of the backbone too, with `trunk_lr`.
        width, box_width, anchor_scale, proposals, rois: See `make_detector`.
        steps, batch_size, optimizer, lr, trunk_lr, weight_decay, evals: See `TrainingPlan`; AP50 selects.
        flip: Mirror half of the training images left to right.
        pictures: Number of test images drawn into `detection_<branch>.png`; 0 draws none.

    Raises:
        ValueError: A value is out of range.
    """

    targets: ClassVar[tuple[str, ...]] = ("boxes",)
    takes_views = False

    def __init__(
        self,
        *,
        stages: Sequence[int] | None = None,
        finetune: bool = False,
        width: int = 128,
        box_width: int = 256,
        anchor_scale: float = 8.0,
        proposals: int = 500,
        rois: int = 128,
        steps: int = 1000,
        batch_size: int = 4,
        optimizer: str = "adamw",
        lr: float = 0.0005,
        trunk_lr: float = 0.0001,
        weight_decay: float = 0.0001,
        evals: int = 4,
        flip: bool = True,
        pictures: int = 6,
    ) -> None:
        shape = {
            "width": width,
            "box_width": box_width,
            "anchor_scale": anchor_scale,
            "proposals": proposals,
            "rois": rois,
        }
        for key, value in shape.items():
            if value <= 0:
                raise ValueError(f"probe.detection.{key} is {value}; it must be above 0")
        if pictures < 0:
            raise ValueError(f"probe.detection.pictures is {pictures}; it must be at least 0")
        self.stages, self.finetune, self.flip, self.pictures = stages, finetune, flip, pictures
        self.shape: dict[str, Any] = shape
        self.plan = TrainingPlan("detection", steps, batch_size, optimizer, lr, trunk_lr, weight_decay, evals)

    def check(self, counts: Mapping[str, int]) -> None:
        super().check(counts)
        self.plan.check(counts["train"])

    def fitted_limits(self, counts: Mapping[str, int]) -> list[str]:
        return self.plan.fitted_limits(counts["train"])

    def run(self, context: ProbeContext) -> list[Record]:
        info: Any = context.backbone.feature_info
        reductions = info.reduction()
        stages = stage_numbers(context, self.stages, pyramid_stages(reductions, FINEST), "detection")
        splits = {split: read_split(loader, context.device) for split, loader in context.loaders.items()}
        for split in ("heldout", "test"):
            if not any((~target["difficult"]).any() for target in splits[split][1]):
                raise ValueError(
                    f"the {split} images have no object to detect, so average precision is undefined"
                )
        maps = StageMaps(context, stages, copied=self.finetune)
        images, targets = splits["train"]
        with torch.no_grad():
            measured = images[spread_over(len(images), MEASURED)]
            maps.measure(maps.raw(measured[part]) for part in chunks(len(measured), self.plan.batch_size))
        streams = context.seed, "detection", context.branch
        devices = [maps.device] if maps.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # the detector samples anchors from the global stream
            torch.manual_seed(stream_seed(*streams, "weights"))
            detector = make_detector(
                maps,
                [info.channels()[stage - 1] for stage in stages],
                [reductions[stage - 1] for stage in stages],
                len(context.class_names),
                tuple(images.shape[2:]),  # type: ignore[arg-type]
                **self.shape,
            ).to(context.device)

            def loss(indices: Tensor, step: int) -> Tensor:
                torch.manual_seed(stream_seed(*streams, step))
                batch, wanted = images[indices], [targets[index] for index in indices.tolist()]
                if self.flip:
                    mirrored = torch.rand(len(indices), generator=generator(*streams, "flip", step)) < 0.5
                    batch, wanted = mirror(batch, wanted, mirrored)
                detector.train()
                losses = detector(list(maps.input(batch)), to_torchvision(wanted, maps.device))
                return torch.stack(list(losses.values())).sum()

            heldout, training = self.plan.train(
                nn.ModuleList([detector.backbone.pyramid, detector.rpn, detector.roi_heads]),
                maps.backbone if self.finetune else None,
                loss,
                lambda: self._evaluate(detector, maps, *splits["heldout"], context.class_names)[0],
                images=len(images),
                seed=context.seed,
                choose_by="ap50",
            )
            test, found = self._evaluate(detector, maps, *splits["test"], context.class_names)
        images, targets = splits["test"]
        if self.pictures and is_rank_zero():
            shown = spread_over(len(images), self.pictures)
            draw_boxes(
                context.folder / f"detection_{context.branch}.png",
                images[shown],
                [targets[i] for i in shown],
                [found[i] for i in shown],
                context.class_names,
                f"{context.branch}, test AP50 {100 * test['ap50']:.1f} %",
                min_score=DRAWN_SCORE,
            )
        protocol = {
            "stages": [f"stage{stage}" for stage in stages],
            "strides": [reductions[stage - 1] for stage in stages],
            **self.shape,
            "features": "standardised per channel",
            "image_size": list(images.shape[2:]),
            "flip": self.flip,
            **training,
            "labels": {split: len(splits[split][0]) for split in ("train", "heldout")},
        }
        return [
            Record(
                f"stage{stages[-1]}",
                metric,
                test[metric],
                len(images),
                protocol | {"per_class": test["per_class"][metric], "heldout": heldout[metric]},
            )
            for metric in METRICS
        ]

    def _evaluate(
        self,
        detector: nn.Module,
        maps: StageMaps,
        images: Tensor,
        truth: Sequence[Target],
        class_names: Sequence[str],
    ) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
        """Return the scores of a split, and the predictions on the CPU."""
        detector.eval()
        found: list[dict[str, Tensor]] = []
        with torch.no_grad():
            for part in chunks(len(images), self.plan.batch_size):
                found += detector(list(maps.input(images[part])))
        found = [{key: value.cpu() for key, value in objects.items()} for objects in found]
        for objects in found:
            objects["labels"] = objects["labels"] - 1  # 0 was background
        return average_precisions(found, truth, class_names), found


def average_precisions(
    found: Sequence[Target], truth: Sequence[Target], class_names: Sequence[str]
) -> dict[str, Any]:
    """Compute the three scores, and each by class under "per_class" (None: the class has no object).

    Args:
        found: For each image predicted boxes `(n, 4)`, labels and scores `(n,)`.
        truth: For each image boxes `(m, 4)`, labels and difficult `(m,)`.
        class_names: In label order.
    """
    from torchmetrics.detection import MeanAveragePrecision

    def coco(thresholds: list[float] | None) -> tuple[float, dict[str, float | None]]:
        metric = MeanAveragePrecision(
            iou_thresholds=thresholds, class_metrics=True, backend="pycocotools", sync_on_compute=False
        )
        metric.warn_on_many_detections = False
        # COCO's evaluation ignores "crowd" objects: neither a miss nor a hit counts
        wanted = [
            {"boxes": t["boxes"], "labels": t["labels"], "iscrowd": t["difficult"].int()} for t in truth
        ]
        metric.update([dict(objects) for objects in found], wanted)
        figures = metric.compute()
        by_class = dict.fromkeys(class_names)
        pairs = zip(figures["classes"].reshape(-1), figures["map_per_class"].reshape(-1), strict=True)
        by_name = {class_names[int(label)]: float(ap) for label, ap in pairs}
        return float(figures["map"]), by_class | {name: ap for name, ap in by_name.items() if ap >= 0}

    voc = voc_ap(found, truth, len(class_names)).tolist()
    voc_by_class = {name: None if math.isnan(ap) else ap for name, ap in zip(class_names, voc, strict=True)}
    there = [ap for ap in voc_by_class.values() if ap is not None]
    figures = {
        "coco_map": coco(None),
        "ap50": coco([0.5]),
        "voc07_ap50": (sum(there) / len(there), voc_by_class),
    }
    return {name: mean for name, (mean, _) in figures.items()} | {
        "per_class": {name: of_class for name, (_, of_class) in figures.items()}
    }


def mirror(
    images: Tensor, targets: Sequence[Target], mirrored: Tensor
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Mirror the images `(B, C, H, W)` whose `mirrored` (B,) is true left to right, and their boxes."""
    width = images.shape[3]
    flipped = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    mirrored_targets = []
    for target, turn in zip(targets, mirrored.tolist(), strict=True):
        boxes = target["boxes"]
        if turn:
            left, top, right, bottom = boxes.unbind(1)
            boxes = torch.stack([width - right, top, width - left, bottom], 1)
        mirrored_targets.append({**target, "boxes": boxes})
    return flipped, mirrored_targets


def to_torchvision(targets: Sequence[Target], device: torch.device) -> list[dict[str, Tensor]]:
    """Count labels from 1, as torchvision's detectors do, and move the targets to the device."""
    return [{"boxes": t["boxes"].to(device), "labels": t["labels"].to(device) + 1} for t in targets]
