"""Boxes in VOC's layout: lists, custom classes, pictures without objects, errors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ssl_lightning.data.voc_detection import VOCDetection
from tests.data._ready import ready

LISTS = {"train": range(6), "val": range(6, 9), "test": range(9, 13)}


def annotate(tree: Path, i: int, objects: list[tuple[str, tuple[int, int, int, int]]]) -> None:
    rows = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    (tree / "Annotations" / f"{i:06}.xml").write_text(f"<annotation>{rows}</annotation>")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "cells"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i in range(13):
        Image.new("RGB", (20, 10), (10 * i, 0, 0)).save(root / "JPEGImages" / f"{i:06}.jpg")
        annotate(root, i, [] if i == 2 else [("red", (1, 1, 10, 5)), ("white", (11, 6, 20, 10))])
    for split, numbers in LISTS.items():
        lines = "".join(f"{i:06}  1\n" for i in numbers)  # VOC's lists by class have a second column
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
    return root


def data(tree: Path, **options: Any) -> VOCDetection:
    values: dict[str, Any] = {
        "class_names": ["red", "white"],
        "image_size": 8,
        "size": [20, 40],
        "batch_size": 4,
    }
    return ready(VOCDetection, tree, **values | options)


def test_lists_and_boxes(tree: Path) -> None:
    made = data(tree)
    assert made.label_counts == {"train": 6, "heldout": 3, "test": 4}
    assert made.pretrain_images == 6
    assert made.spec.class_names == ("red", "white")
    images, targets = next(iter(made.downstream("train")))
    assert images.shape == (6, 3, 20, 40)
    assert targets[0]["boxes"].tolist() == [[0, 0, 20, 10], [20, 10, 40, 20]]
    assert targets[0]["labels"].tolist() == [0, 1]
    assert targets[2]["boxes"].shape == (0, 4)
    squares, labels = next(iter(made.train_dataloader()))
    assert (squares.shape, labels.tolist()) == ((4, 3, 8, 8), [-1] * 4)


def test_without_a_list_of_validation_pictures_a_part_is_drawn(tree: Path) -> None:
    (tree / "ImageSets" / "Main" / "val.txt").unlink()
    assert data(tree, heldout=2).label_counts == {"train": 4, "heldout": 2, "test": 4}


def test_what_is_wrong_is_named(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"'red'; data\.class_names has aeroplane"):
        data(tree, class_names=None)
    annotate(tree, 4, [("red", (30, 1, 40, 5))])
    with pytest.raises(ValueError, match=r"000004\.xml: the box .* of 'red' has no pixel .*20 x 10"):
        data(tree)
    (tree / "Annotations" / "000004.xml").unlink()
    with pytest.raises(ValueError, match=r"1 of 6 annotations do not exist.*000004\.xml"):
        data(tree)
    (tree / "ImageSets" / "Main" / "test.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"test\.txt is empty"):
        data(tree)


def test_a_picture_for_training_and_for_test_is_refused(tree: Path) -> None:
    (tree / "ImageSets" / "Main" / "test.txt").write_text("000009\n000007\n")
    with pytest.raises(ValueError, match=r"1 pictures are in both train and test.*000007"):
        data(tree)


def test_every_pass_is_the_same(tree: Path) -> None:
    loader = data(tree).downstream("test")
    (first, _), (second, _) = (next(iter(loader)) for _ in range(2))
    assert torch.equal(first, second)
