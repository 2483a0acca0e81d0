"""Faster R-CNN with a feature pyramid over stage maps (Ren et al. 2015, Lin et al. 2017)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

ASPECTS = (0.5, 1.0, 2.0)  # of the anchors, height over width
ROI_CELLS = 7


class SeededSampler(BalancedPositiveNegativeSampler):
    """Sample the boxes of each image from a random stream of its own, not from that of the batch.

    Attributes:
        seeds: Seed of each image of the next batch.
        sampled: Number of boxes sampled from the last batch, `()` int64.
    """

    seeds: Sequence[int] = ()
    sampled: Tensor

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return masks of the positive and the negative samples of each image."""
        positive: list[Tensor] = []
        negative: list[Tensor] = []
        for seed, matched in zip(self.seeds, matched_idxs, strict=True):
            torch.manual_seed(seed)
            for masks, (mask,) in zip((positive, negative), super().__call__([matched]), strict=True):
                masks.append(mask)
        self.sampled = torch.stack([mask.sum() for mask in positive + negative]).sum()
        return positive, negative


class PyramidBackbone(nn.Module):
    """A backbone with a feature pyramid over its stage maps, in the form of torchvision's detectors.

    Args:
        backbone: Maps images to the chosen stage maps, shallow to deep, as float32.
        channels: Channels of each of these maps.
        out_channels: Channels of every level of the pyramid.
    """

    def __init__(self, backbone: nn.Module, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = FeaturePyramidNetwork(list(channels), out_channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images `(B, C, H, W)` to levels, fine to coarse; the last is pooled from the one before."""
        maps = self.backbone(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.pyramid(OrderedDict((str(level), x) for level, x in enumerate(maps)))


def make_detector(
    backbone: nn.Module,
    channels: Sequence[int],
    reductions: Sequence[int],
    num_classes: int,
    image_size: tuple[int, int],
    *,
    width: int = 128,
    box_width: int = 256,
    anchor_scale: float = 8.0,
    proposals: int = 500,
    rois: int = 128,
    max_detections: int = 100,
) -> Any:
    """Build torchvision's Faster R-CNN without its resizing and normalisation of images.

    Args:
        backbone: Maps images to the chosen stage maps, shallow to deep, as float32.
        channels: Channels of each of these maps.
        reductions: Image size over map size of each map; each is twice the one before, as the box head needs.
        num_classes: Number of classes without background.
        image_size: Height and width of the images.
        width: Channels of the pyramid.
        box_width: Units of the two layers of the box head.
        anchor_scale: Side of a level's anchors over its reduction (torchvision: 8).
        proposals: Boxes per image that the region proposal network passes to the box head.
        rois: Proposals per image that the box head is trained on.
        max_detections: Upper bound for the detections of an image.

    Returns:
        `FasterRCNN`: labels count from 1, 0 is background.

    Raises:
        ValueError: The reductions do not double.
    """
    if any(deeper != 2 * shallower for shallower, deeper in pairwise(reductions)):
        raise ValueError(
            f"the stages have the strides {list(reductions)}; in a pyramid each must be twice the one "
            "before: choose other stages with probe.detection.stages"
        )
    levels = [*reductions, 2 * reductions[-1]]
    names = [str(level) for level in range(len(reductions))]
    return FasterRCNN(
        PyramidBackbone(backbone, channels, width),
        rpn_anchor_generator=AnchorGenerator(
            tuple((round(anchor_scale * stride),) for stride in levels), (ASPECTS,) * len(levels)
        ),
        rpn_pre_nms_top_n_train=proposals,
        rpn_pre_nms_top_n_test=proposals,
        rpn_post_nms_top_n_train=proposals,
        rpn_post_nms_top_n_test=proposals,
        box_roi_pool=MultiScaleRoIAlign(names, output_size=ROI_CELLS, sampling_ratio=2),
        box_head=TwoMLPHead(width * ROI_CELLS**2, box_width),
        box_predictor=FastRCNNPredictor(box_width, 1 + num_classes),
        box_batch_size_per_image=rois,
        box_detections_per_img=max_detections,
        # keep the image size; padding makes every level divide it and puts anchors on their cells
        min_size=min(image_size),
        max_size=max(image_size),
        size_divisible=levels[-1],
        image_mean=[0.0],
        image_std=[1.0],
    )


def seeded_samplers(detector: FasterRCNN) -> tuple[SeededSampler, SeededSampler]:
    """Replace the samplers of the proposal network and of the box head by seeded ones, and return them."""
    found = []
    for part in (detector.rpn, detector.roi_heads):
        old = part.fg_bg_sampler
        part.fg_bg_sampler = SeededSampler(old.batch_size_per_image, old.positive_fraction)
        found.append(part.fg_bg_sampler)
    return found[0], found[1]


def pyramid_stages(reductions: Sequence[int], finest: int) -> list[int]:
    """Choose the stages of a pyramid, counted from 1: the deepest stage of each stride from `finest` on.

    Args:
        reductions: Reductions of all stages of a backbone.
        finest: Smallest stride of a level; if no stage has such a stride, the deepest stage is chosen.

    >>> pyramid_stages([2, 4, 8, 16, 32], 4)
    [2, 3, 4, 5]
    >>> pyramid_stages([2, 4, 4], 4)
    [3]
    """
    deepest = {stride: stage for stage, stride in enumerate(reductions, 1)}
    chosen = sorted(stage for stride, stage in deepest.items() if stride >= finest)
    return chosen or [len(reductions)]
