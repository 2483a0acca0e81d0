"""CamVid's folders: masks, the published validation split, images of pretext and probes."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_lightning.data.camvid import CamVid
from tests.data._ready import ready

COUNTS = {"train": 8, "val": 3, "test": 4}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "camvid"
    draw = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for kind in (split, f"{split}annot"):
            (root / kind).mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{split}_{i}.png")
            ids = draw.choice([0, 1, 2, 11], (24, 32)).astype(np.uint8)
            Image.fromarray(ids).save(root / f"{split}annot" / f"{split}_{i}.png")
    return root


def data(tree: Path, **options: Any) -> CamVid:
    values: dict[str, Any] = {"image_size": 16, "size": [24, 32], "batch_size": 4}
    return ready(CamVid, tree, **values | options)


def test_the_published_validation_part_is_held_out_and_never_pretrained_on(tree: Path) -> None:
    made = data(tree)
    assert made.label_counts == {"train": 8, "heldout": 3, "test": 4}
    assert made.pretrain_images == 8
    names = [Path(made._loaded.train.paths[i]).name for i in made.downstream("heldout").indices]
    assert names == ["val_0.png", "val_1.png", "val_2.png"]
    seen = {Path(made._loaded.pretrain.paths[i]).name for i in made._splits.pretrain}
    assert seen == {f"train_{i}.png" for i in range(8)}
    assert made.spec.class_names is not None
    assert len(made.spec.class_names) == 11
    assert not made.spec.pretrain_labels  # so task=supervised refuses data with masks


def test_a_training_picture_that_shows_a_test_picture_is_not_pretrained_on(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw = np.random.default_rng(1)
    for path in sorted(tree.glob("*/*.png")):  # twice as wide as high: the views of pretext and probes differ
        if path.parent.name.endswith("annot"):
            picture = Image.fromarray(draw.choice([0, 1, 2], (24, 48)).astype(np.uint8))
        else:
            coarse = Image.fromarray(draw.integers(0, 256, (8, 16, 3), dtype=np.uint8))
            picture = coarse.resize((48, 24), Image.Resampling.BICUBIC)
        picture.save(path)
    shutil.copy(tree / "test" / "test_1.png", tree / "train" / "train_2.png")
    made = data(tree, size=[24, 24], near_duplicates="drop")
    seen = {Path(made._loaded.pretrain.paths[i]).name for i in made._splits.pretrain}
    assert {each.split for each in made.duplicates_found} == {"train"}  # not by the views of the pretext
    assert seen == {f"train_{i}.png" for i in range(8) if i != 2}
    assert "1 training image of test images; pretraining leaves them out" in caplog.text


def test_the_pretext_sees_squares_and_the_probes_whole_pictures_with_masks(tree: Path) -> None:
    made = data(tree)
    images, labels = next(iter(made.train_dataloader()))
    assert (images.shape, labels.tolist()) == ((4, 3, 16, 16), [-1] * 4)
    images, labels = next(iter(made.val_dataloader()))
    assert (images.shape, labels.tolist()) == ((3, 3, 16, 16), [-1] * 3)
    images, masks = next(iter(made.downstream("test")))
    assert (images.shape, masks.shape) == ((4, 3, 24, 32), (4, 24, 32))
    truth = np.asarray(Image.open(tree / "testannot" / "test_1.png"))
    assert np.array_equal(masks[1].numpy(), np.where(truth == 11, 255, truth))
    picture = np.asarray(Image.open(tree / "test" / "test_1.png"))
    assert np.array_equal(images[1].permute(1, 2, 0).numpy(), picture)


def test_a_number_is_held_out_of_both_parts(tree: Path) -> None:
    made = data(tree, heldout=2)
    assert made.label_counts == {"train": 9, "heldout": 2, "test": 4}
    assert made.pretrain_images == 9


def test_without_a_validation_part_a_tenth_is_drawn(tree: Path) -> None:
    shutil.rmtree(tree / "val")
    for i in range(8, 20):
        shutil.copy(tree / "train" / "train_0.png", tree / "train" / f"train_{i}.png")
        shutil.copy(tree / "trainannot" / "train_0.png", tree / "trainannot" / f"train_{i}.png")
    assert data(tree).label_counts == {"train": 18, "heldout": 2, "test": 4}


def test_fewer_labels_for_the_probes(tree: Path) -> None:
    assert sum(data(tree, max_labels=6).label_counts.values()) == 6 + 4


def test_custom_classes(tree: Path) -> None:
    made = data(tree, class_names=["a", "b", "c", "d"], void=[11])
    assert made.spec.num_classes == 4
    with pytest.raises(ValueError, match=r"ids \[11\]"):
        data(tree, class_names=["a", "b", "c", "d"], void=[])
    with pytest.raises(ValueError, match=r"data\.void is \[1\]"):
        data(tree, void=[1])
    with pytest.raises(ValueError, match=r"different names"):
        data(tree, class_names=["a", "a"])
    with pytest.raises(ValueError, match=r"\['a'\]; 2 to 255 different names are needed"):
        data(tree, class_names=["a"])


def test_what_is_missing_or_broken_is_named(tree: Path) -> None:
    (tree / "trainannot" / "train_5.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 8 images have no mask in .*trainannot; .*train_5\.png"):
        data(tree)
    shutil.copy(tree / "trainannot" / "train_1.png", tree / "trainannot" / "train_5.png")
    (tree / "train" / "train_5.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match=r"train_5\.png"):
        data(tree)
    shutil.rmtree(tree / "testannot")
    with pytest.raises(FileNotFoundError, match=r"testannot does not exist"):
        data(tree)


@pytest.mark.parametrize("size", [[15, 32], [24], [24, 32, 3]])
def test_pictures_for_the_probes_are_not_below_the_views_of_the_pretext(tree: Path, size: list[int]) -> None:
    with pytest.raises(ValueError, match=r"data\.size is"):
        data(tree, size=size)
