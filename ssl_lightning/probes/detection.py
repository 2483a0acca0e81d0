"""Detection probe: Faster R-CNN with a feature pyramid, on a frozen or fine-tuned backbone."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.progress import tracked, watched
from ssl_lightning.core.seeding import generator, stream_seed
from ssl_lightning.networks.detector import SeededSampler, make_detector, pyramid_stages, seeded_samplers
from ssl_lightning.ops.voc_ap import voc_ap
from ssl_lightning.probes._dense import (
    StageMaps,
    gather_objects,
    own_batches,
    rank_and_world,
    read_split,
    spread_over,
    stage_numbers,
    sum_over_processes,
)
from ssl_lightning.probes._pictures import draw_boxes
from ssl_lightning.probes._plan import BatchPart, TrainingPlan
from ssl_lightning.probes._shares import Draw, Shares, Trained, candidate_plans
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
        finetune: Train a copy of the backbone too, with `backbone_lr`.
        width, box_width, anchor_scale, proposals, rois: See `make_detector`.
        fractions, draws, lr, backbone_lr: See `SegmentationProbe`.
        steps, batch_size, optimizer, weight_decay, evals: See `TrainingPlan`; AP50 selects.
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
        fractions: Sequence[float] | None = None,
        draws: int = 3,
        width: int = 128,
        box_width: int = 256,
        anchor_scale: float = 8.0,
        proposals: int = 500,
        rois: int = 128,
        steps: int = 1000,
        batch_size: int = 4,
        optimizer: str = "adamw",
        lr: float | Sequence[float] = 0.0005,
        backbone_lr: float | Sequence[float] = 0.0001,
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
        self.shares = Shares("detection", fractions, draws)
        self.plans = candidate_plans(
            "detection",
            lr,
            backbone_lr,
            finetune=finetune,
            steps=steps,
            batch_size=batch_size,
            optimizer=optimizer,
            weight_decay=weight_decay,
            evals=evals,
        )

    def check(self, counts: Mapping[str, int]) -> None:
        super().check(counts)
        self.plans[0].check(self.shares.smallest(counts["train"]))

    def fitted_limits(self, counts: Mapping[str, int]) -> list[str]:
        smallest = self.shares.smallest(counts["train"])
        return self.shares.fitted_limits(counts["train"]) + self.plans[0].fitted_limits(smallest)

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
        maps.measure_on(splits["train"][0], self.plans[0].batch_size)
        devices = [maps.device] if maps.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # the detector samples boxes from the global stream
            training = _Training(self, context, maps, splits)
            outcomes = self.shares.run(
                len(splits["train"][0]), self.plans, training.train, training.test, choose_by="ap50"
            )
        images, targets = splits["test"]
        if self.pictures and rank_and_world()[0] == 0:
            shown = spread_over(len(images), self.pictures)
            draw_boxes(
                context.folder / f"detection_{context.branch}.png",
                images[shown],
                [targets[i] for i in shown],
                [training.found[i] for i in shown],
                context.class_names,
                f"{context.branch}, test AP50 {100 * outcomes[-1].tested[-1]['ap50']:.1f} %",
                min_score=DRAWN_SCORE,
            )
        records = []
        for outcome in outcomes:
            protocol = {
                "stages": [f"stage{stage}" for stage in stages],
                "strides": [reductions[stage - 1] for stage in stages],
                **self.shape,
                "features": "standardised per channel",
                "image_size": list(images.shape[2:]),
                "flip": self.flip,
                **outcome.training(),
                "labels": {"train": len(outcome.draws[0].indices), "heldout": len(splits["heldout"][0])},
            }
            for metric in METRICS:
                value, figures = outcome.figure(metric)
                records.append(Record(f"stage{stages[-1]}", metric, value, len(images), protocol | figures))
        return records


class _Training:
    """Trainings of a detector, and if fine-tuned of the backbone; each starts from the given backbone.

    Args:
        probe: The probe with its settings.
        context: Context of the probe.
        maps: The stage maps, measured; their backbone is trained if the probe fine-tunes.
        splits: Images `(N, C, H, W)` uint8 and targets of each split.
    """

    def __init__(
        self,
        probe: DetectionProbe,
        context: ProbeContext,
        maps: StageMaps,
        splits: Mapping[str, tuple[Tensor, Any]],
    ) -> None:
        self.probe, self.context, self.maps, self.splits = probe, context, maps, splits
        self.tuned = maps.backbone if probe.finetune else None
        self.first = copy.deepcopy(self.tuned.state_dict()) if self.tuned is not None else {}
        self.detector: Any = None  # of the last training
        self.found: list[dict[str, Tensor]] = []  # its predictions for the test images

    def train(self, draw: Draw, plan: TrainingPlan) -> Trained:
        """Train on a draw of the labelled pictures, and keep the best state on held-out pictures."""
        seed = draw.seed(self.context.seed)
        streams = seed, "detection", self.context.branch
        if self.tuned is not None:
            self.tuned.load_state_dict(self.first)
        self.detector = self._new_detector(stream_seed(*streams, "weights"))
        samplers = seeded_samplers(self.detector)
        images, targets = self.splits["train"]

        def loss(batch: BatchPart) -> Tensor:
            mine = draw.indices[batch.mine]
            pixels, wanted = images[mine], [targets[index] for index in mine.tolist()]
            if self.probe.flip:
                flips = generator(*streams, "flip", batch.step)
                mirrored = torch.rand(len(batch.indices), generator=flips) < 0.5
                pixels, wanted = mirror(pixels, wanted, mirrored[batch.part])
            self.detector.train()
            places = range(batch.part.start, batch.part.stop)
            for number, sampler in enumerate(samplers):
                sampler.seeds = [stream_seed(*streams, batch.step, place, number) for place in places]
            losses = self.detector(list(self.maps.input(pixels)), to_torchvision(wanted, self.maps.device))
            return summand(losses, samplers, batch.weight)

        heldout, protocol = plan.train(
            self._head(),
            self.tuned,
            loss,
            lambda: self._evaluate("heldout")[0],
            images=len(draw.indices),
            seed=seed,
            choose_by="ap50",
        )
        return Trained(heldout, protocol, [copy.deepcopy(each.state_dict()) for each in self._trained()])

    def test(self, trained: Trained) -> dict[str, Any]:
        """Restore the state of a training, and return its test scores."""
        for module, state in zip(self._trained(), trained.states, strict=True):
            module.load_state_dict(state)
        scores, self.found = self._evaluate("test")
        return scores

    def _head(self) -> nn.ModuleList:
        return nn.ModuleList([self.detector.backbone.pyramid, self.detector.rpn, self.detector.roi_heads])

    def _trained(self) -> list[nn.Module]:
        return [self._head()] if self.tuned is None else [self._head(), self.tuned]

    def _new_detector(self, seed: int) -> nn.Module:
        info: Any = self.context.backbone.feature_info
        torch.manual_seed(seed)
        detector = make_detector(
            self.maps,
            [info.channels()[stage - 1] for stage in self.maps.stages],
            [info.reduction()[stage - 1] for stage in self.maps.stages],
            len(self.context.class_names),
            tuple(self.splits["train"][0].shape[2:]),  # type: ignore[arg-type]
            **self.probe.shape,
        )
        return detector.to(self.context.device)

    def _evaluate(self, split: str) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
        """Return the scores of a split, and the predictions on the CPU; each process detects on its part."""
        images, truth = self.splits[split]
        self.detector.eval()
        mine: list[dict[str, Tensor]] = []
        parts = own_batches(len(images), self.probe.plans[0].batch_size)
        with torch.no_grad():
            for part in tracked(parts, f"test on {split}", "batches"):
                mine += self.detector(list(self.maps.input(images[part])))
        mine = [{key: value.cpu() for key, value in objects.items()} for objects in mine]
        for objects in mine:
            objects["labels"] = objects["labels"] - 1  # 0 was background
        found = gather_objects(mine)
        with watched("average precision"):
            return average_precisions(found, truth, self.context.class_names), found


def summand(losses: Mapping[str, Tensor], samplers: Sequence[SeededSampler], weight: float) -> Tensor:
    """Return this process's summand of the loss of a batch that is split over the processes.

    Each loss is a mean over the boxes that a sampler took from the images of this process.

    Args:
        losses: The losses of torchvision's detector on these images.
        samplers: Of the proposal network and of the box head.
        weight: 0.0 if these images do not count, else 1.0.
    """
    mine = weight * torch.stack([sampler.sampled for sampler in samplers])
    of_proposals, of_boxes = mine / sum_over_processes(mine.clone())
    proposals = losses["loss_objectness"] + losses["loss_rpn_box_reg"]
    return of_proposals * proposals + of_boxes * (losses["loss_classifier"] + losses["loss_box_reg"])


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
