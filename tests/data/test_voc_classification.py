"""VOC classification on a small tree in VOC's layout: labels, ignored classes, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_lightning.data.io.folders import BadImagesError
from ssl_lightning.data.io.splits import rarest_class
from ssl_lightning.data.voc_classification import VOCClassification, read_labels

NAMES = ("cat", "dog", "sofa")
OBJECT = "<object><name>{}</name><difficult>{}</difficult><part><name>head</name></part></object>"


def annotate(path: Path, *objects: tuple[str, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{''.join(OBJECT.format(*item) for item in objects)}</annotation>")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make 30 training and 9 test pictures; every third also has a sofa, every seventh a difficult cat."""
    random = np.random.default_rng(0)
    folder = tmp_path / "VOC2007"
    for part in ("JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for split, numbers in (("trainval", range(30)), ("test", range(30, 39))):
        for number in numbers:
            objects = [(NAMES[number % 2], 0)]
            objects += [("sofa", 0)] * (number % 3 == 0) + [("cat", 1)] * (number % 7 == 0)
            annotate(folder / f"Annotations/{number:06}.xml", *objects)
            Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(
                folder / f"JPEGImages/{number:06}.jpg"
            )
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(f"{n:06}" for n in numbers) + "\n")
    return folder


def make(tree: Path, **options: Any) -> VOCClassification:
    common: dict[str, Any] = {"root": str(tree / "cache"), "image_size": 16, "batch_size": 4, "heldout": 6}
    common |= {"class_names": NAMES, "num_workers": 0}
    return VOCClassification(dir=str(tree), **(common | options))


def expected(number: int) -> list[int]:
    cat = 1 if number % 2 == 0 else -1 if number % 7 == 0 else 0
    return [cat, number % 2, int(number % 3 == 0)]


def test_labels_of_every_split(tree: Path) -> None:
    data = make(tree)
    data.prepare_data()
    data.setup()
    assert data.targets == "multilabel"
    assert data.spec.class_names == NAMES
    assert not data.spec.pretrain_labels
    labels = torch.cat([y for _, y in data.downstream("test", 4)])
    assert labels.tolist() == [expected(number) for number in range(30, 39)]
    loader = data.downstream("train")
    found = torch.cat([y for _, y in loader])
    numbers = [int(Path(name).stem) for name in loader.image_names]
    assert found.tolist() == [expected(number) for number in numbers]
    fewest = min(sum(expected(number)[k] == 1 for number in numbers) for k in range(len(NAMES)))
    assert data.label_counts == {"train": 24, "heldout": 6, "test": 9, "rarest": fewest}
    images, none = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 16, 16)
    assert none.tolist() == [-1] * 4
    assert data.pretrain_images == 24


def test_shares_have_their_part_of_the_rare_classes(tree: Path) -> None:
    data = make(tree)
    data.setup()
    labels = data._loaded.train.labels
    assert (labels[data._splits.val] == 1).any(0).all()
    assert (labels[data.labelled_indices(0.25)] == 1).any(0).all()
    assert len(data.labelled_indices(0.25)) == 6
    assert rarest_class(labels).bincount().tolist() == [10, 10, 10]


def test_other_images_may_be_pretrained_on_but_not_the_test_images(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for number in range(5):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(other / f"{number}.png")
    data = make(tree, pretrain_dir=str(other))
    data.setup()
    assert data.pretrain_images == 5
    both = make(tree, pretrain_dir=str(tree / "JPEGImages"))
    with pytest.warns(UserWarning, match="9 pretraining images are test images"):
        both.setup()
    assert both.pretrain_images == 24  # held-out images are left out too


def test_a_class_with_difficult_objects_only_is_ignored(tmp_path: Path) -> None:
    path = annotate(tmp_path / "1.xml", ("dog", 1), ("cat", 1), ("dog", 0), ("dog", 1))
    assert read_labels(path, NAMES) == [-1, 1, 0]
    assert read_labels(annotate(tmp_path / "2.xml"), NAMES) == [0, 0, 0]  # no objects


def test_annotations_that_cannot_be_used_are_named(tree: Path) -> None:
    annotate(tree / "Annotations/000003.xml", ("horse", 0))
    with pytest.raises(
        ValueError, match=r"000003\.xml: an object is 'horse'; data\.class_names has cat, dog"
    ):
        make(tree).setup()
    (tree / "Annotations/000003.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"000003\.xml: no element found"):
        make(tree).setup()
    (tree / "Annotations/000003.xml").unlink()
    with pytest.raises(ValueError, match=r"1 of 30 annotations do not exist; the first is .*000003\.xml"):
        make(tree).setup()
    with pytest.raises(FileNotFoundError, match=r"trainval\.txt does not exist"):
        make(tree / "Annotations").prepare_data()
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        make(tree, pretrain_dir=str(tree / "gone")).prepare_data()
    with pytest.raises(ValueError, match=r"data\.class_names is \['cat'\]"):
        make(tree, class_names=["cat"])


def test_pictures_are_named_by_their_annotations(tree: Path) -> None:
    (tree / "JPEGImages/000003.jpg").rename(tree / "JPEGImages/IMG 3.JPG")
    xml = tree / "Annotations/000003.xml"
    xml.write_text(xml.read_text().replace("<annotation>", "<annotation><filename>IMG 3.JPG</filename>"))
    data = make(tree)
    data.setup()
    train = data._loaded.train
    assert train.paths[3].endswith("IMG 3.JPG")
    assert train.labels[3].tolist() == expected(3)


def test_a_broken_picture_is_named_before_work(tree: Path) -> None:
    (tree / "JPEGImages/000003.jpg").write_bytes(b"no picture")
    with pytest.raises(BadImagesError, match=r"1 of 30 images .*\n.*000003\.jpg"):
        make(tree).setup()
    data = make(tree, max_bad=0.1)
    with pytest.warns(UserWarning, match="1 of 30 images"):
        data.setup()
    assert data._loaded.train.labels[3].tolist() == expected(4)
