"""Average precision of detections on VOC (Everingham et al. 2010, sec. 4.2; 11 points until VOC 2009)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

Detections = Mapping[str, Tensor]  # of one image: boxes (n, 4), labels (n,), scores (n,)
Truth = Mapping[str, Tensor]  # of one image: boxes (m, 4), labels (m,), difficult (m,) bool


def voc_ap(
    detections: Sequence[Detections], truth: Sequence[Truth], num_classes: int, *, iou: float = 0.5
) -> Tensor:
    """Compute the 11-point average precision of each class.

    A detection is matched to the object of its class that it overlaps most. It is correct if they overlap by
    `iou` or more and no detection with a higher score matched that object. It is ignored if the object is
    difficult, and wrong otherwise. Boxes are left, top, right, bottom, with right and bottom exclusive. VOC's
    code has inclusive pixels; the overlaps are equal.

    Args:
        detections: Detections of each image; equal scores keep their order.
        truth: Objects of each image.
        num_classes: K; labels are 0..K-1.
        iou: Smallest intersection over union of a correct detection, in (0, 1].

    Returns:
        `(K,)` float64; NaN for a class without non-difficult objects.

    Raises:
        ValueError: `iou` is out of range.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou is {iou}; it must be above 0 and at most 1")
    if not truth:
        return torch.full((num_classes,), torch.nan, dtype=torch.float64)
    found = []
    for label in range(num_classes):
        scores, objects, difficult = _best_objects(detections, truth, label, iou)
        order = scores.argsort(descending=True, stable=True)
        objects, skip = objects[order], difficult[objects[order]] & (objects[order] >= 0)
        hits = first_of_each(objects) & (objects >= 0)
        found.append(eleven_points(hits[~skip], int((~difficult[:-1]).sum())))
    return torch.stack(found)


def eleven_points(hits: Tensor, positives: int) -> Tensor:
    """Average the best precision at or above each of the recalls 0, 0.1, ..., 1.

    Args:
        hits: `(n,)` bool, whether each detection is correct, from the highest score to the lowest.
        positives: Number of objects.

    Returns:
        `()` float64; NaN without objects.

    >>> round(11 * eleven_points(torch.tensor([True, False, True]), 2).item(), 3)  # 6 * 1 + 5 * 2 / 3
    9.333
    """
    if positives == 0:
        return torch.tensor(torch.nan, dtype=torch.float64)
    right = hits.cumsum(0)
    precision = right.double() / torch.arange(1, len(hits) + 1, device=hits.device)
    # recall >= tenths / 10, in integers: 0.3 is not 3 / 10 in floats
    reached = 10 * right >= positives * torch.arange(11, device=hits.device)[:, None]  # (11, n)
    best = (precision * reached).max(1).values if len(hits) else torch.zeros(11, dtype=torch.float64)
    return best.mean()


def first_of_each(values: Tensor) -> Tensor:
    """Mark the first occurrence of each value in `(n,)`.

    >>> first_of_each(torch.tensor([5, 3, 5, 3, 1])).tolist()
    [True, True, False, False, True]
    """
    order = values.argsort(stable=True)
    run = values[order]
    first = torch.ones_like(values, dtype=torch.bool)
    first[order[1:]] = run[1:] != run[:-1]
    return first


def _best_objects(
    detections: Sequence[Detections], truth: Sequence[Truth], label: int, iou: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Match all detections of one class to its objects.

    Returns:
        Scores `(n,)`. Index of the matched object over all images `(n,)`, -1 if no overlap reaches `iou`.
        Whether each object is difficult `(objects + 1,)`; the last entry is False, so that -1 may index it.
    """
    scores, objects, difficult, count = [], [], [], 0
    for found, there in zip(detections, truth, strict=True):
        mine, wanted = found["labels"] == label, there["labels"] == label
        scores.append(found["scores"][mine])
        difficult.append(there["difficult"][wanted])
        if wanted.any():
            overlap, best = box_iou(found["boxes"][mine].double(), there["boxes"][wanted].double()).max(1)
            objects.append(torch.where(overlap >= iou, best + count, -1))  # -1 for NaN (empty boxes) too
        else:
            objects.append(torch.full((int(mine.sum()),), -1, device=mine.device))
        count += int(wanted.sum())
    end = torch.zeros(1, dtype=torch.bool, device=difficult[0].device)
    return torch.cat(scores), torch.cat(objects), torch.cat([*difficult, end])
