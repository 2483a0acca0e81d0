"""Boxes in VOC's layout: lists, custom classes, pictures without objects, errors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ssl_lightning.data.io import folders
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


def renamed(tree: Path, i: int, name: str, stated: str | None = None) -> None:
    """Rename a picture, and name it in its annotation."""
    (tree / "JPEGImages" / f"{i:06}.jpg").rename(tree / "JPEGImages" / name)
    if stated is not None:
        xml = tree / "Annotations" / f"{i:06}.xml"
        xml.write_text(xml.read_text().replace("<annotation>", f"<annotation><filename>{stated}</filename>"))


def test_pictures_of_any_ending_are_found(tree: Path) -> None:
    expected = [boxes["boxes"].tolist() for boxes in next(iter(data(tree).downstream("train")))[1]]
    renamed(tree, 0, "000000.JPG")
    renamed(tree, 1, "IMG_1.JPEG", "IMG_1.JPEG")  # named by the annotation
    renamed(tree, 2, "shot 2.png", "C:\\photos\\shot 2.png")
    renamed(tree, 3, "DSC3.JPG", "dsc3.jpg")
    renamed(tree, 4, "000004.Png", "000004.jpg")
    renamed(tree, 5, "five.v2.webp", "photos/five.v2")
    (tree / "Annotations" / "000003.xml").rename(tree / "Annotations" / "000003.XML")
    made = data(tree)
    names = ["000000.JPG", "IMG_1.JPEG", "shot 2.png", "DSC3.JPG", "000004.Png", "five.v2.webp"]
    assert [path.name for path in made._loaded.train.paths[:6]] == names
    assert [boxes["boxes"].tolist() for boxes in next(iter(made.downstream("train")))[1]] == expected


def test_names_in_lists_may_have_spaces_endings_and_a_byte_order_mark(tree: Path) -> None:
    renamed(tree, 9, "photo 9 1.jpg")
    (tree / "Annotations" / "000009.xml").rename(tree / "Annotations" / "photo 9 1.xml")
    lines = "\ufeffphoto 9 1 -1\r\n000010.jpg 0\r\n000011\r\n"
    (tree / "ImageSets" / "Main" / "test.txt").write_text(lines, newline="")
    made = data(tree)
    assert [path.stem for path in made._loaded.test.paths] == ["photo 9 1", "000010", "000011"]


def test_a_name_of_two_pictures_needs_a_file_name(tree: Path) -> None:
    Image.new("RGB", (20, 10)).save(tree / "JPEGImages" / "000004.png")
    with pytest.raises(ValueError, match=r"1 of 6 pictures .*000004, which may be 000004\.jpg, 000004\.png"):
        data(tree)
    xml = tree / "Annotations" / "000004.xml"
    xml.write_text(xml.read_text().replace("<annotation>", "<annotation><filename>000004.png</filename>"))
    assert data(tree)._loaded.train.paths[4].name == "000004.png"


def test_missing_pictures_are_counted_with_the_endings_that_are_read(tree: Path) -> None:
    renamed(tree, 3, "000003.heic", "000003.heic")
    with pytest.raises(ValueError, match=r"1 of 6 pictures do not exist; the first is .*000003; .*\.jpeg"):
        data(tree)


def test_annotations_of_another_size_are_counted(tree: Path) -> None:
    for i, size in ((0, (20, 10)), (1, (10, 20)), (3, (0, 0))):
        xml = tree / "Annotations" / f"{i:06}.xml"
        stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size></annotation>"
        xml.write_text(xml.read_text().replace("</annotation>", stated))
    with pytest.warns(UserWarning, match=r"1 of 6 annotations .* 000001\.xml states 10 x 20, and .* 20 x 10"):
        data(tree)


def test_good_pictures_of_all_lists_are_remembered(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data(tree)
    decoded: list[object] = []
    monkeypatch.setattr(folders, "inspect_image", lambda *given: decoded.append(given))
    data(tree)
    assert not decoded
