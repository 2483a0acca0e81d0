"""VOC 2012's layout, with and without SBD, and its archive under torchvision's names."""

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from ssl_lightning.data.io.voc import obtain_voc
from ssl_lightning.data.voc_segmentation import VOCSegmentation
from tests.data._ready import ready

TRAIN, VAL = [f"2007_{i:06}" for i in range(12)], [f"2008_{i:06}" for i in range(3)]
PALETTE = [value for i in range(256) for value in (i, 255 - i, i // 2)]


def save_pair(root: Path, name: str, label: int) -> None:
    Image.new("RGB", (20, 16), (label, 0, 0)).save(root / "JPEGImages" / f"{name}.jpg")
    mask = np.full((16, 20), label, np.uint8)
    mask[0] = 255  # VOC's border
    image = Image.new("P", (20, 16))
    image.putpalette(PALETTE)
    image.putdata(mask.flatten().tolist())
    image.save(root / "SegmentationClass" / f"{name}.png")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(TRAIN + VAL):
        save_pair(root, name, i % 21)
    for split, names in (("train", TRAIN), ("val", VAL)):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def data(tree: Path, **options: Any) -> VOCSegmentation:
    values: dict[str, Any] = {"image_size": 8, "size": [16, 20], "batch_size": 4}
    return ready(VOCSegmentation, tree, **values | options)


def test_train_trains_and_val_tests(tree: Path) -> None:
    made = data(tree, heldout=2)
    assert made.label_counts == {"train": 10, "heldout": 2, "test": 3}
    assert made.spec.class_names is not None
    assert made.spec.class_names[:2] == ("background", "aeroplane")
    _, masks = next(iter(made.downstream("test")))
    assert masks[:, 0].unique().tolist() == [255]
    assert [mask[1:].unique().tolist() for mask in masks] == [[12], [13], [14]]


def test_sbd_adds_what_is_not_in_val_and_voc_s_own_masks_count(tree: Path, tmp_path: Path) -> None:
    sbd = tmp_path / "sbd"
    (sbd / "img").mkdir(parents=True)
    (sbd / "cls").mkdir()
    for name in ("2009_000001", "2009_000002", TRAIN[0], VAL[0]):
        Image.new("RGB", (20, 16)).save(sbd / "img" / f"{name}.jpg")
        inner = np.zeros((1, 1), dtype=[("Segmentation", object)])
        inner[0, 0]["Segmentation"] = np.full((16, 20), 20, np.uint8)
        savemat(sbd / "cls" / f"{name}.mat", {"GTcls": inner})
    made = data(tree, sbd_dir=str(sbd), heldout=1)
    train = made._loaded.train
    assert [path.stem for path in train.paths[12:]] == ["2009_000001", "2009_000002"]
    assert train.annotations[0].suffix == ".png"
    _, masks = next(iter(made.downstream("train", batch_size=20)))
    assert sum(mask.unique().tolist() == [20] for mask in masks) >= 1
    (sbd / "img" / "2009_000002.jpg").unlink()
    with pytest.raises(ValueError, match=r"no picture in .*2009_000002"):
        data(tree, sbd_dir=str(sbd))
    with pytest.raises(FileNotFoundError, match=r"cls does not exist"):
        data(tree, sbd_dir=str(tmp_path))


def test_what_is_missing_is_named(tree: Path) -> None:
    (tree / "SegmentationClass" / f"{TRAIN[3]}.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 12 images have no mask.*2007_000003"):
        data(tree)
    (tree / "JPEGImages" / f"{TRAIN[4]}.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 12 pictures do not exist.*2007_000004"):
        data(tree)
    (tree / "ImageSets" / "Segmentation" / "train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt does not exist"):
        data(tree)


def test_a_picture_for_training_and_for_test_is_refused(tree: Path) -> None:
    (tree / "ImageSets" / "Segmentation" / "val.txt").write_text(f"{VAL[0]}\n{TRAIN[2]}\n")
    with pytest.raises(ValueError, match=r"1 pictures are in both train and test.*2007_000002"):
        data(tree)


def test_an_archive_put_into_the_cache_is_unpacked(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    cache = tmp_path / "voc_cache"
    cache.mkdir()
    archive = cache / DATASET_YEAR_DICT["2012"]["filename"]
    with tarfile.open(archive, "w") as tar:
        tar.add(tree.parent, "VOCdevkit")
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(DATASET_YEAR_DICT["2012"], "md5", digest)
    folder = obtain_voc(cache, "2012")
    assert folder == cache / "voc2012"
    assert len(list((folder / "JPEGImages").iterdir())) == len(TRAIN + VAL)
    made = VOCSegmentation(
        root=str(cache), image_size=8, size=[16, 20], batch_size=4, heldout=2, num_workers=0
    )
    made.prepare_data()
    assert made.label_counts["test"] == 3


def test_pictures_and_masks_of_any_ending_are_found(tree: Path) -> None:
    for name, ending in ((TRAIN[0], "JPG"), (TRAIN[1], "png"), (VAL[0], "JPEG")):
        (tree / "JPEGImages" / f"{name}.jpg").rename(tree / "JPEGImages" / f"{name}.{ending}")
        (tree / "SegmentationClass" / f"{name}.png").rename(tree / "SegmentationClass" / f"{name}.PNG")
    assert data(tree, heldout=2).label_counts == {"train": 10, "heldout": 2, "test": 3}
