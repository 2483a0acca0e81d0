"""Small trees in ImageNet's layout: train, val, and the published lists for few labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_lightning.data.imagenet import ImageNet, read_image_list

WNIDS = ("n01440764", "n01443537", "n02085620")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        for wnid in WNIDS:
            folder = tmp_path / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                name = (
                    f"{wnid}_{number}.JPEG"
                    if split == "train"
                    else f"ILSVRC2012_val_{wnid[-3:]}{number}.JPEG"
                )
                Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / name, "JPEG")
    return tmp_path


def make(tree: Path, **options: Any) -> ImageNet:
    common: dict[str, Any] = {"root": str(tree / "cache"), "image_size": 16, "batch_size": 4, "heldout": 6}
    return ImageNet(dir=str(tree), num_workers=0, verify=False, **(common | options))


def test_train_is_pretrained_and_probed_on_and_val_is_the_test(tree: Path) -> None:
    data = make(tree)
    data.prepare_data()
    data.setup()
    assert data.spec.class_names == WNIDS
    assert data.spec.pretrain_labels
    assert data.label_counts == {"train": 24, "heldout": 6, "test": 9, "rarest": 8}
    assert data.pretrain_images == 24
    images, labels = next(iter(data.downstream("test", 9)))
    assert images.shape == (9, 3, 16, 16)
    assert labels.bincount().tolist() == [3, 3, 3]
    assert not (tree / "cache").exists()  # no file is decoded in advance


def test_a_share_with_a_list_is_that_list_without_what_is_held_out(tree: Path) -> None:
    names = [f"{wnid}_{number}.JPEG" for wnid in WNIDS for number in (1, 4, 7)]
    (tree / "1percent.txt").write_text("\n".join([*names, ""]))
    data = make(tree, one_percent=str(tree / "1percent.txt"))
    data.setup()
    source: Any = data._loaded.train
    found = {Path(source.paths[index]).name for index in data.labelled_indices(0.01)}
    heldout = {Path(source.paths[index]).name for index in data._splits.val.tolist()}
    assert found == set(names) - heldout
    assert found < set(names)  # some of them are held out
    assert len(data.labelled_indices(0.5)) == 12  # other shares are drawn
    images, labels = next(iter(data.labelled(0.01, 100)))
    assert len(images) == len(found)
    assert set(labels.tolist()) == {0, 1, 2}


def test_lists_that_do_not_fit_are_refused(tree: Path) -> None:
    (tree / "list.txt").write_text("n01440764_1.JPEG\nn09_0.JPEG\n")
    with pytest.raises(ValueError, match=r"lists 2 images; 1 are not in train, such as n09_0\.JPEG"):
        make(tree, ten_percent=str(tree / "list.txt")).setup()
    (tree / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="lists 0 images"):
        read_image_list(tree / "empty.txt", [])
    with pytest.raises(FileNotFoundError, match=r"gone\.txt does not exist"):
        make(tree, one_percent=str(tree / "gone.txt")).prepare_data()


def test_a_list_may_have_folders_and_name_an_image_twice(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("b/2.JPEG\n1.JPEG\n2.JPEG\n")
    assert torch.equal(
        read_image_list(path, [Path("a/1.JPEG"), Path("a/3.JPEG"), Path("b/2.JPEG")]), torch.tensor([0, 2])
    )


def test_a_wrong_folder_is_told_at_once(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train does not exist; data\.dir must hold train and val"):
        make(tree / "train").prepare_data()
    (tree / "val" / "n09").mkdir()
    Image.new("RGB", (8, 8)).save(tree / "val/n09/x.png")
    with pytest.raises(ValueError, match=r"only in the second: \['n09'\]"):
        make(tree).setup()


def test_a_packed_cache_of_both_splits_changes_no_pixel_where_pictures_are_small(tree: Path) -> None:
    seen = []
    for cache in (False, True):
        data = make(tree, cache=cache)  # 20 pixels; 16 / sqrt(0.2) is more
        data.setup()
        seen.append([x for loader in (data.train_dataloader(), data.downstream("test")) for x, _ in loader])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert len(list((tree / "cache" / "packed").glob("*.bin"))) == 2
