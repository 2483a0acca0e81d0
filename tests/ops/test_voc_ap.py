"""Average precision of VOC against values by hand and the devkit's loop."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.voc_ap import eleven_points, voc_ap


def truth(*boxes: list[float], difficult: tuple[int, ...] = (), label: int = 0) -> dict[str, Tensor]:
    n = len(boxes)
    hard = torch.tensor([i in difficult for i in range(n)], dtype=torch.bool)
    return {
        "boxes": torch.tensor(boxes).reshape(n, 4),
        "labels": torch.full((n,), label),
        "difficult": hard,
    }


def found(*rows: tuple[list[float], float], label: int = 0) -> dict[str, Tensor]:
    n = len(rows)
    return {
        "boxes": torch.tensor([box for box, _ in rows]).reshape(n, 4),
        "scores": torch.tensor([score for _, score in rows]),
        "labels": torch.full((n,), label),
    }


A, B, FAR = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def test_a_perfect_detector_scores_one() -> None:
    images = [truth(A, B), truth(), truth(FAR)]
    answers = [found((A, 0.9), (B, 0.3)), found(), found((FAR, 0.5))]
    assert voc_ap(answers, images, 1).tolist() == [1.0]


def test_a_wrong_one_between_two_right_ones() -> None:
    # precision 1 up to recall 1/2 (6 of the 11 points), 2/3 up to recall 1 (5 points)
    (ap,) = voc_ap([found((A, 0.9), (FAR, 0.8), (B, 0.7))], [truth(A, B)], 1).tolist()
    assert ap == pytest.approx(float(Fraction(6 * 3 + 5 * 2, 33)))


def test_an_object_is_found_once() -> None:
    # right, double (wrong), right: as above
    double = [0.0, 0.0, 10.0, 9.0]
    (ap,) = voc_ap([found((A, 0.9), (double, 0.8), (B, 0.7))], [truth(A, B)], 1).tolist()
    assert ap == pytest.approx(float(Fraction(6 * 3 + 5 * 2, 33)))
    # the better score takes it, not the better box
    (ap,) = voc_ap([found((double, 0.9), (A, 0.8))], [truth(A)], 1).tolist()
    assert ap == 1.0


def test_the_overlap_must_reach_the_threshold() -> None:
    half = [0.0, 0.0, 10.0, 5.0]  # IoU exactly 1/2
    less = [0.0, 0.0, 10.0, 4.9]
    assert voc_ap([found((half, 1.0))], [truth(A)], 1).tolist() == [1.0]
    assert voc_ap([found((less, 1.0))], [truth(A)], 1).tolist() == [0.0]
    assert voc_ap([found((less, 1.0))], [truth(A)], 1, iou=0.49).tolist() == [1.0]


def test_difficult_objects_count_nowhere() -> None:
    plain = voc_ap([found((A, 0.5))], [truth(A)], 1)
    with_hard = voc_ap([found((B, 0.9), (B, 0.8), (A, 0.5))], [truth(A, B, difficult=(1,))], 1)
    assert with_hard.tolist() == plain.tolist() == [1.0]


def test_classes_and_images_are_kept_apart() -> None:
    ap = voc_ap([found((A, 0.9), label=1), found((A, 0.9))], [truth(A), truth(A, label=1)], 3)
    assert ap[:2].tolist() == [0.0, 0.0]
    assert ap[2].isnan()  # no objects


def test_nothing_found_scores_zero() -> None:
    assert voc_ap([found()], [truth(A)], 1).tolist() == [0.0]


def test_recalls_are_compared_in_whole_numbers() -> None:
    # 3 of 10 found: 0.3 is reached, so 4 of the 11 points have precision 1
    assert eleven_points(torch.ones(3, dtype=torch.bool), 10).item() == pytest.approx(4 / 11)


def devkit(answers: list, images: list, label: int, iou: float) -> float:
    """VOCdevkit's VOCevaldet.m (VOC 2007), line by line."""
    rows = [
        (float(s), i, box.tolist())
        for i, a in enumerate(answers)
        for box, s, c in zip(a["boxes"], a["scores"], a["labels"], strict=True)
        if c == label
    ]
    rows.sort(key=lambda row: -row[0])
    objects = [
        [
            [box.tolist(), bool(d), False]
            for box, d, c in zip(t["boxes"], t["difficult"], t["labels"], strict=True)
            if c == label
        ]
        for t in images
    ]
    positives = sum(not d for of_image in objects for _, d, _ in of_image)
    tp, fp = [], []
    for _, i, (x1, y1, x2, y2) in rows:
        best, at = -1.0, None
        for item in objects[i]:
            a1, b1, a2, b2 = item[0]
            w, h = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
            if w > 0 and h > 0:
                shared = w * h
                overlap = shared / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared)
                if overlap > best:
                    best, at = overlap, item
        hit = miss = 0
        if best >= iou and at is not None:
            if not at[1]:
                hit, miss = (0, 1) if at[2] else (1, 0)
                at[2] = True
        else:
            miss = 1
        tp.append(hit)
        fp.append(miss)
    total, right, wrong = 0.0, 0, 0
    curve = []
    for hit, miss in zip(tp, fp, strict=True):
        right, wrong = right + hit, wrong + miss
        if hit or miss:
            curve.append((right, right / (right + wrong)))
    for tenth in range(11):
        total += max((p for r, p in curve if 10 * r >= tenth * positives), default=0.0) / 11
    return total


def test_it_is_the_devkits_loop_on_random_boxes() -> None:
    stream = generator("voc_ap")

    def boxes(n: int) -> Tensor:
        corner = torch.randint(0, 12, (n, 2), generator=stream).float()
        return torch.cat([corner, corner + torch.randint(4, 14, (n, 2), generator=stream)], 1)

    answers, images = [], []
    for _ in range(30):
        n, m = (int(torch.randint(0, 7, (), generator=stream)) for _ in range(2))
        images.append(
            {
                "boxes": boxes(m),
                "labels": torch.randint(3, (m,), generator=stream),
                "difficult": torch.rand(m, generator=stream) < 0.2,
            }
        )
        answers.append(
            {
                "boxes": boxes(n),
                "labels": torch.randint(3, (n,), generator=stream),
                "scores": torch.rand(n, generator=stream),
            }
        )
    got = voc_ap(answers, images, 3, iou=0.3)
    assert got.tolist() == pytest.approx([devkit(answers, images, label, 0.3) for label in range(3)])
    assert 0.05 < got.min() < got.max() < 0.9


def test_overlap_of_whole_pixels_is_the_devkits() -> None:
    # pixels 1..4 and 3..6 on one line of 1: 2 shared of 6; as half-open boxes [0, 4) and [2, 6)
    iou = box_iou(torch.tensor([[0.0, 0, 4, 1]]), torch.tensor([[2.0, 0, 6, 1], [0, 0, 0, 0]]))
    assert iou[0].tolist() == pytest.approx([2 / 6, 0])


def test_a_threshold_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"iou is 0"):
        voc_ap([], [], 1, iou=0)
