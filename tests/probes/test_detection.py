"""Detection probe: scores worked by hand, overfitting, mirrored boxes, difficult objects, no objects."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.features import StagedNetwork
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes.detection import DetectionProbe, average_precisions, mirror

NAMES = ("red", "green")
SIZES = {"train": 8, "heldout": 4, "test": 4}
Splits = dict[str, list[tuple[Tensor, list[dict[str, Tensor]]]]]


def backbone() -> nn.Module:
    """Build a network of strides 4 and 8 that sees the colour of each cell."""
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
    ]
    return StagedNetwork(stages, [8, 8], [4, 8])


def splits() -> Splits:
    """Draw a bright rectangle of one of two colours on black, 32 x 48 pixels; every fourth image is empty."""
    made: Splits = {}
    for split, n in SIZES.items():
        stream = generator("detection", split)
        images, targets = torch.zeros(n, 3, 32, 48, dtype=torch.uint8), []
        for i in range(n):
            label = int(torch.randint(2, (), generator=stream))
            left, top = (8 * int(torch.randint(4, (), generator=stream)) for _ in range(2))
            top = min(top, 16)
            count = 0 if i % 4 == 3 else 1
            if count:
                images[i, label, top : top + 16, left : left + 16] = 255
            targets.append(
                {
                    "boxes": torch.tensor([[left, top, left + 16, top + 16]] * count).float().reshape(-1, 4),
                    "labels": torch.full((count,), label),
                    "difficult": torch.zeros(count, dtype=torch.bool),
                }
            )
        made[split] = [(images[:3], targets[:3]), (images[3:], targets[3:])]
    return made


def run(
    data: Splits, folder: Path, net: nn.Module | None = None, seed: int = 0, **options: Any
) -> list[Record]:
    small = {"width": 16, "box_width": 32, "anchor_scale": 3.0, "proposals": 30, "rois": 16, "batch_size": 4}
    probe = DetectionProbe(**{"steps": 3, "lr": 0.01, "evals": 1, "pictures": 0} | small | options)
    probe.check(SIZES)
    return run_probes(
        {"backbone": net or backbone()},
        lambda x: x - 0.5,
        {"detection": probe},
        data,  # type: ignore[arg-type]
        class_names=NAMES,
        folder=folder,
        seed=seed,
    )[0]


def test_a_handful_of_images_is_learned_by_heart(tmp_path: Path) -> None:
    data = splits()
    data = dict.fromkeys(data, data["train"])
    records = run(data, tmp_path, steps=240, evals=6, flip=False, pictures=2)
    figures = {record.metric: record.value for record in records}
    assert figures["ap50"] > 0.95
    assert figures["voc07_ap50"] > 0.95
    assert figures["ap50"] / 10 <= figures["coco_map"] <= figures["ap50"]  # ap50 is one of ten
    assert (tmp_path / "detection_backbone.png").stat().st_size > 1000
    protocol = records[0].protocol
    assert (records[0].stage, records[0].n) == ("stage2", 8)
    assert (protocol["stages"], protocol["strides"]) == (["stage1", "stage2"], [4, 8])
    assert protocol["backbone"] == "frozen"
    assert all(r.protocol["heldout"] == r.value for r in records)  # the same images here


def test_the_same_seed_gives_the_same_records_and_a_frozen_backbone_stays(tmp_path: Path) -> None:
    net = backbone().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (run(splits(), tmp_path, net, steps=10) for _ in range(2))
    assert first == second
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert net.training
    assert torch.equal(state, torch.get_rng_state())


def test_finetuning_trains_a_copy(tmp_path: Path) -> None:
    net = backbone()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    tuned = run(splits(), tmp_path, net, finetune=True, backbone_lr=0.01, steps=10)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert tuned[0].protocol["backbone"].startswith("fine-tuned, lr 0.01")


def test_nothing_to_be_found_is_refused(tmp_path: Path) -> None:
    data = splits()
    data["test"] = [
        (images, [{**t, "difficult": torch.ones_like(t["difficult"])} for t in targets])
        for images, targets in data["test"]
    ]
    with pytest.raises(ValueError, match=r"test images have no object"):
        run(data, tmp_path)


# --- scores ---

A, B = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]


def truth(*boxes: list[float], difficult: tuple[int, ...] = ()) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
        "difficult": torch.tensor([i in difficult for i in range(len(boxes))], dtype=torch.bool),
    }


def found(*rows: tuple[list[float], float]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([box for box, _ in rows]).reshape(-1, 4),
        "scores": torch.tensor([score for _, score in rows]),
        "labels": torch.zeros(len(rows), dtype=torch.int64),
    }


def test_a_perfect_detector_scores_one_in_all_three() -> None:
    figures = average_precisions([found((A, 0.9), (B, 0.8)), found()], [truth(A, B), truth()], NAMES)
    assert [figures[m] for m in ("coco_map", "ap50", "voc07_ap50")] == [1.0, 1.0, 1.0]
    assert figures["per_class"]["ap50"] == {"red": 1.0, "green": None}
    assert figures["per_class"]["voc07_ap50"] == {"red": 1.0, "green": None}


def test_figures_worked_by_hand() -> None:
    # IoU 0.72 with A: right at 0.5, 0.55, 0.6, 0.65, 0.7, wrong at the other five; B is missed.
    # COCO: precision 1 at the recalls 0, 0.01, ..., 0.5, which are 51 of 101; VOC: 6 of 11 points.
    close = [0.0, 0.0, 10.0, 7.2]
    figures = average_precisions([found((close, 0.9))], [truth(A, B)], NAMES)
    assert figures["ap50"] == pytest.approx(51 / 101)
    assert figures["coco_map"] == pytest.approx(0.5 * 51 / 101)
    assert figures["voc07_ap50"] == pytest.approx(6 / 11)


def test_difficult_objects_count_nowhere() -> None:
    answers = [found((B, 0.9), (A, 0.5))]
    hard = average_precisions(answers, [truth(A, B, difficult=(1,))], NAMES)
    assert [hard[m] for m in ("coco_map", "ap50", "voc07_ap50")] == [1.0, 1.0, 1.0]
    missed = average_precisions([found((A, 0.5))], [truth(A, B, difficult=(1,))], NAMES)
    assert missed["ap50"] == 1.0
    absent = average_precisions(answers, [truth(A)], NAMES)
    assert absent["ap50"] == pytest.approx(0.5)  # the first of two is wrong


def test_mirroring_moves_boxes_with_their_pixels() -> None:
    images = torch.zeros(2, 1, 4, 10, dtype=torch.uint8)
    images[:, 0, 1:3, 2:5] = 9
    targets = [{"boxes": torch.tensor([[2.0, 1, 5, 3]]), "labels": torch.tensor([1])}] * 2
    turned, moved = mirror(images, targets, torch.tensor([True, False]))
    for image, target in zip(turned, moved, strict=True):
        left, top, right, bottom = target["boxes"][0].int().tolist()
        inside = torch.zeros(4, 10, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal(image[0] == 9, inside)
    assert moved[0]["boxes"].tolist() == [[5.0, 1.0, 8.0, 3.0]]
    assert moved[1]["boxes"].tolist() == [[2.0, 1.0, 5.0, 3.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"probe\.detection\.width is 0"),
        ({"anchor_scale": 0.0}, r"anchor_scale is 0"),
        ({"pictures": -1}, r"pictures is -1"),
        ({"lr": 0.0}, r"probe\.detection\.lr is 0"),
    ],
)
def test_bad_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionProbe(**options)


def test_stages_whose_strides_do_not_double_are_refused(tmp_path: Path) -> None:
    net = backbone()
    net.feature_info._reductions = [2, 8]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"strides \[2, 8\]"):
        run(splits(), tmp_path, net, stages=[1, 2])
