"""Folders of image files: with labels, without, overlapping, broken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_lightning.data.folder import Folder
from ssl_lightning.data.io.folders import BadImagesError
from ssl_lightning.data.io.sources import FileSource


def tree(root: Path, names: list[str], seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return root


def folder(tmp_path: Path, **settings: Any) -> Folder:
    common: dict[str, Any] = {"root": str(tmp_path / "cache"), "image_size": 16, "batch_size": 4}
    return Folder(
        num_workers=0, **(common | {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()})
    )


def labelled(root: Path, count: int, seed: int) -> Path:
    return tree(root, [f"{name}/{number}.png" for name in ("ant", "bee") for number in range(count)], seed)


def test_without_labels_a_part_of_the_pretraining_images_is_held_out(tmp_path):
    data = folder(tmp_path, pretrain_dir=tree(tmp_path / "p", [f"{i:02}.jpg" for i in range(20)]), heldout=6)
    assert not data.has_downstream
    data.prepare_data()
    data.setup()
    assert data.spec.class_names is None
    assert not data.spec.pretrain_labels
    batches = list(data.train_dataloader())
    assert [tuple(x.shape) for x, _ in batches] == [(4, 3, 16, 16)] * 3  # 14 images, 2 dropped
    assert all((y == -1).all() for _, y in batches)
    assert sum(len(x) for x, _ in data.val_dataloader()) == 6
    assert not set(data._splits.pretrain.tolist()) & set(data._splits.val.tolist())
    with pytest.raises(ValueError, match="no labelled images, so there is no test split"):
        data.downstream("test")
    folder(tmp_path, pretrain_dir=tmp_path / "p", max_labels=5).setup()  # it has no effect


def test_separate_labelled_folders(tmp_path):
    data = folder(
        tmp_path,
        pretrain_dir=tree(tmp_path / "p", [f"{i}.png" for i in range(8)]),
        train_dir=labelled(tmp_path / "train", 5, 1),
        test_dir=labelled(tmp_path / "test", 3, 2),
        heldout=4,
        channels=1,
    )
    data.setup()
    assert data.has_downstream
    assert data.spec.class_names == ("ant", "bee")
    assert not data.spec.pretrain_labels
    assert len(data.train_dataloader()) == 2
    for split, each in (("train", 3), ("heldout", 2), ("test", 3)):
        batches = list(data.downstream(split))
        assert torch.cat([y for _, y in batches]).bincount().tolist() == [each, each]
        assert batches[0][0].shape[1:] == (1, 16, 16)


def test_heldout_and_test_images_are_not_pretrained_on_where_folders_overlap(tmp_path):
    labelled(tmp_path / "all" / "train", 5, 1)
    labelled(tmp_path / "all" / "test", 3, 2)
    train, test = tmp_path / "all" / "train", tmp_path / "all" / "test"
    data = folder(tmp_path, pretrain_dir=tmp_path / "all", train_dir=train, test_dir=test, heldout=4)
    data.setup()
    sources = data._loaded
    assert isinstance(sources.pretrain, FileSource)
    assert isinstance(sources.train, FileSource)
    pretrain = {sources.pretrain.paths[i] for i in data._splits.pretrain.tolist()}
    heldout = {sources.train.paths[i] for i in data._splits.val.tolist()}
    assert (len(pretrain), len(heldout)) == (6, 4)
    assert not pretrain & heldout
    assert all("/test/" not in path for path in pretrain)
    assert data.spec.pretrain_labels  # all remaining images have labels
    for images, labels in data.train_dataloader():
        assert len(images) == 4
        assert set(labels.tolist()) <= {0, 1}


def test_no_link_to_a_heldout_image_is_pretrained_on(tmp_path):
    train, test = labelled(tmp_path / "train", 5, 1), labelled(tmp_path / "test", 3, 2)
    links = tmp_path / "links"
    for path in sorted(train.rglob("*.png")):
        for number in range(2):
            link = links / f"{number} {path.parent.name} {path.name}"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path)
    data = folder(tmp_path, pretrain_dir=links, train_dir=train, test_dir=test, heldout=4)
    data.setup()
    assert isinstance(data._loaded.pretrain, FileSource)
    assert isinstance(data._loaded.train, FileSource)
    pretrain = [os.path.realpath(data._loaded.pretrain.paths[i]) for i in data._splits.pretrain.tolist()]
    heldout = {os.path.realpath(data._loaded.train.paths[i]) for i in data._splits.val.tolist()}
    assert (len(pretrain), len(heldout)) == (12, 4)
    assert not heldout & set(pretrain)


def test_few_labelled_images_without_a_test_folder_are_cross_validated(tmp_path):
    train = labelled(tmp_path / "train", 10, 1)
    data = folder(tmp_path, pretrain_dir=train, train_dir=train, heldout=4)
    data.setup()
    assert data.has_downstream
    assert len(data._splits.pretrain) == 16  # pretraining sees tested images, but not the held-out ones
    folds = data.test_folds
    names = [name for fold in folds for name in fold.downstream("test").image_names]
    assert sorted(names) == sorted(map(str, train.rglob("*.png")))
    for fold in folds:
        assert sum(fold.label_counts[split] for split in ("train", "heldout", "test")) == 20
        assert torch.cat([y for _, y in fold.downstream("test")]).bincount().tolist() == [2, 2]
    assert not data.spec.pretrain_labels  # the supervised control would learn the labels of tested images


def test_cross_validated_images_can_be_left_out_of_pretraining(tmp_path):
    train = labelled(tmp_path / "all" / "labelled", 10, 1)
    tree(tmp_path / "all", [f"{i}.png" for i in range(8)], 2)
    data = folder(tmp_path, pretrain_dir=tmp_path / "all", train_dir=train, near_duplicates="drop")
    data.setup()
    assert len(data._splits.pretrain) == 8
    assert {each.of for each in data.duplicates_found} == {"test"}


def test_of_many_labelled_images_a_fifth_is_the_test(tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_lightning.data.folder.ENOUGH", 4)
    train = labelled(tmp_path / "train", 10, 1)
    data = folder(tmp_path, pretrain_dir=train, train_dir=train, heldout=4)
    with pytest.warns(UserWarning, match="4 pretraining images are test images in .*train"):
        data.setup()
    assert data.test_folds == []
    counts = data.label_counts
    assert (counts["train"], counts["heldout"], counts["test"]) == (12, 4, 4)
    names = [set(data.downstream(split).image_names) for split in ("train", "heldout", "test")]
    assert len(set.union(*names)) == 20
    seen = {data._loaded.pretrain.paths[i] for i in data._splits.pretrain.tolist()}
    assert seen == names[0]
    again = folder(tmp_path, pretrain_dir=tmp_path, train_dir=train)
    assert set(again.downstream("test").image_names) == names[2]  # the draw is fixed


def test_folders_that_do_not_fit_are_refused(tmp_path):
    pretrain = tree(tmp_path / "p", ["1.png", "2.png"])
    train, test = labelled(tmp_path / "train", 2, 1), labelled(tmp_path / "test", 2, 2)
    with pytest.raises(ValueError, match=r"test_dir is .*test and data\.train_dir is null"):
        folder(tmp_path, pretrain_dir=pretrain, test_dir=test)
    with pytest.raises(ValueError, match=r"class ant of .*train has 2 images; without data\.test_dir"):
        folder(tmp_path, pretrain_dir=pretrain, train_dir=train).setup()
    one = labelled(tmp_path / "one", 1, 1)
    with pytest.raises(ValueError, match=r"class ant of .*one has 1 image; without data\.test_dir"):
        folder(tmp_path, pretrain_dir=pretrain, train_dir=one).setup()
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        folder(tmp_path, pretrain_dir=tmp_path / "gone").prepare_data()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no image"):
        folder(tmp_path, pretrain_dir=tmp_path / "empty").setup()
    with pytest.raises(ValueError, match="have no label"):
        folder(tmp_path, pretrain_dir=pretrain, train_dir=pretrain, test_dir=test).setup()
    with pytest.raises(ValueError, match="4 training images are also test images"):
        folder(tmp_path, pretrain_dir=pretrain, train_dir=train, test_dir=train).setup()
    tree(test, ["cow/1.png"])
    with pytest.raises(ValueError, match=r"only in the second: \['cow'\]"):
        folder(tmp_path, pretrain_dir=pretrain, train_dir=train, test_dir=test).setup()
    with pytest.raises(ValueError, match=r"data.max_bad is 1\.5"):
        folder(tmp_path, pretrain_dir=pretrain, max_bad=1.5)


def test_a_broken_file_is_named_and_skipped_until_there_are_too_many(tmp_path):
    images = tree(tmp_path / "p", [f"{i}.jpg" for i in range(12)])
    broken = images / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    with pytest.raises(BadImagesError, match=r"1 of 12 images .* max_bad 0\.01"):
        folder(tmp_path, pretrain_dir=images).setup()
    data = folder(tmp_path, pretrain_dir=images, max_bad=0.1)
    with pytest.warns(UserWarning, match=r"(?s)1 of 12 images .* skipped.*3\.jpg: .*[Tt]runcated"):
        data.setup()
    assert len(data._splits.pretrain) + len(data._splits.val) == 11
    assert sum(len(x) for x, _ in data.train_dataloader()) == 8


def views(data: Folder) -> list[torch.Tensor]:
    """Return two epochs of training images, and the images of the probes."""
    data.prepare_data()
    data.setup()
    passes = [data.train_dataloader(), *(data.downstream(split) for split in ("train", "heldout", "test"))]
    return [images for loader in [passes[0], *passes] for images, _ in loader]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_packed_cache_changes_pixels_of_downsized_pictures_only_and_needs_no_files(tmp_path, channels):
    train, test = labelled(tmp_path / "train", 5, 1), labelled(tmp_path / "test", 3, 2)
    settings = {
        "pretrain_dir": train,
        "train_dir": train,
        "test_dir": test,
        "heldout": 4,
        "channels": channels,
        "image_size": 8,
    }
    direct = folder(tmp_path, **settings)
    expected = views(direct)
    data = folder(tmp_path, **settings, cache=True)  # of 20 x 30 pixels, and 8 / sqrt(0.2) is 17.9
    assert data.cache_side == 18
    packs = tmp_path / "cache" / "packed"
    close = views(data)
    assert not all(torch.equal(a, b) for a, b in zip(close, expected, strict=True))
    error = torch.cat([(a.float() - b.float()).abs() for a, b in zip(close, expected, strict=True)])
    # Measured 9.9 on noise, the worst case, with crops of whole pixels; two pictures differ by 31
    assert error.mean() < 12
    full = folder(tmp_path, **settings, cache=True, cache_side=20)
    assert all(torch.equal(a, b) for a, b in zip(views(full), expected, strict=True))
    assert full.spec == direct.spec
    assert len(list(packs.glob("*.bin"))) == 4  # two sides of train, also used for pretraining, and of test
    for path in (*train.rglob("*.png"), *test.rglob("*.png")):
        size, times = path.stat().st_size, path.stat()
        path.write_bytes(bytes(size))  # not a picture any more, with the same size and time
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = folder(tmp_path, **settings, cache=True, cache_side=20)
    assert all(torch.equal(a, b) for a, b in zip(views(again), expected, strict=True))


def test_the_side_of_cached_pictures_follows_from_the_views(tmp_path):
    images = tree(tmp_path / "p", ["1.png"])
    for settings, side in (
        ({"image_size": 64}, 144),
        ({"image_size": 64, "crop_scale": [0.8, 1.0], "crop_ratio": 0.5}, 128),
        ({"image_size": 64, "crop_scale": [1.0, 1.0], "crop_ratio": 1.0}, 64),
        ({"image_size": 64, "cache_side": 96}, 96),
    ):
        assert folder(tmp_path, pretrain_dir=images, cache=True, **settings).cache_side == side
    with pytest.raises(ValueError, match=r"data\.cache_side is 63; .* data\.image_size 64 or more"):
        folder(tmp_path, pretrain_dir=images, image_size=64, cache_side=63)
