"""Contract of every data set, on generated images."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from ssl_lightning.config.types import accepted
from ssl_lightning.core.seeding import generator
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.data.fake import Fake
from ssl_lightning.data.io.augment import CropFlip
from ssl_lightning.data.io.sources import ArraySource
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.rotation import Rotation
from tests._composed import CONF


def keys(loader) -> list[bytes]:
    """Return the bytes of each image, as its identity."""
    return [image.numpy().tobytes() for images, _ in loader for image in images]


def test_heldout_is_stratified_disjoint_from_pretraining_and_the_same_for_every_seed():
    data = Fake(num_train=80, heldout=20, batch_size=1)
    pretrain = set(keys(data.train_dataloader()))
    heldout = set(keys(data.val_dataloader()))
    assert (len(pretrain), len(heldout)) == (60, 20)
    assert not pretrain & heldout
    assert set(keys(data.downstream("heldout"))) == heldout
    assert set(keys(data.downstream("train"))) == pretrain
    labels = torch.cat([y for _, y in data.downstream("heldout")])
    assert labels.bincount().tolist() == [5, 5, 5, 5]
    assert set(keys(Fake(num_train=80, heldout=20, seed=9).val_dataloader())) == heldout
    test = keys(data.downstream("test"))
    assert len(test) == 64
    assert not set(test) & (pretrain | heldout)


def test_max_labels_cuts_both_parts_in_proportion_and_leaves_the_pretext_alone():
    data = Fake(num_train=80, heldout=20, max_labels=40, batch_size=1)
    whole = Fake(num_train=80, heldout=20)
    for split, size in (("train", 30), ("heldout", 10)):
        labels = torch.cat([y for _, y in data.downstream(split)])
        assert len(labels) == size
        assert labels.bincount().max() - labels.bincount().min() <= 1
        assert set(keys(data.downstream(split))) < set(keys(whole.downstream(split)))
    assert len(keys(data.val_dataloader())) == 20
    assert len(keys(data.train_dataloader())) == 60


def test_pretrain_size_takes_a_fixed_part():
    first, second = (Fake(pretrain_size=50, batch_size=5, seed=seed) for seed in (0, 1))
    assert len(first.train_dataloader()) == 10
    assert set(keys(first.train_dataloader())) == set(keys(second.train_dataloader()))
    assert len(keys(first.downstream("train"))) == 256  # probes keep all labels


def test_spec_and_sample():
    data = Fake(channels=1, image_size=20)
    with pytest.raises(RuntimeError, match="call setup"):
        _ = data.spec
    data.prepare_data()
    data.setup()
    data.setup("fit")
    spec = data.spec
    assert (spec.channels, spec.image_size, spec.num_classes, spec.pretrain_labels) == (1, 20, 4, True)
    sample = data.train_sample(256)
    assert sample.shape == (256, 1, 20, 20)
    assert sample.dtype == torch.uint8
    assert torch.equal(sample[:3], Fake(channels=1, image_size=20, seed=5).train_sample(3))
    values = data.train_sample(256).float() / 255
    assert spec.mean[0] == pytest.approx(values.mean().item(), abs=1e-4)
    assert spec.std[0] == pytest.approx(values.std().item(), abs=1e-4)
    given = Fake(mean=[0.1, 0.2, 0.3], std=[1, 1, 1])
    given.setup()
    assert given.spec.mean == (0.1, 0.2, 0.3)


def test_loaders_take_their_part_from_the_process_group(monkeypatch):
    whole = keys(Fake().downstream("test", batch_size=10))
    parts: list[list[list[bytes]]] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        parts.append([[x.numpy().tobytes() for x in images] for images, _ in Fake().downstream("test", 10)])
    assert [image for pair in zip(*parts, strict=True) for part in pair for image in part] == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heldout": 320}, r"data.heldout is 320; allowed for fake is 0 to 319"),
        ({"heldout": -1}, "data.heldout is -1; it must be at least 0"),
        ({"max_labels": 4}, "data.max_labels is 4; allowed for fake is at most 320"),
        ({"batch_size": 257}, "data.batch_size is 257; allowed for fake is 1 to 256"),
        ({"channels": 2}, "data.channels is 2"),
        ({"mean": [0.5, 0.5, 0.5]}, "must both be given"),
        ({"image_size": 0}, "data.image_size is 0"),
        ({"crop_padding": 40}, "crop_padding is 40"),
        ({"num_classes": 1}, "data.num_classes is 1"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Fake(**changes).setup()


def test_limits_above_the_number_of_images_have_no_effect_and_are_said(caplog):
    whole, limited = Fake(), Fake(max_labels=400, pretrain_size=1000)
    for data in (whole, limited):
        data.setup()
    for split in ("pretrain", "val", "train", "heldout"):
        assert torch.equal(getattr(limited._splits, split), getattr(whole._splits, split))
    assert [record.getMessage() for record in caplog.records] == [
        "data.max_labels is 400; 320 is used, since fake has 320 labelled images",
        "data.pretrain_size is 1000; 256 is used, since fake has 256 pretraining images",
    ]


@pytest.mark.parametrize(("images", "batch", "heldout"), [(320, 32, 64), (70, 4, 64), (64, 32, 6), (5, 4, 1)])
def test_defaults_that_nobody_chose_fit_few_images(images, batch, heldout, caplog):
    data = Fake(num_train=images)
    data.free = frozenset({"batch_size", "heldout"})
    data.setup()
    assert (data.batch_size, len(data._splits.val)) == (batch, heldout)
    assert [len(x) for x, _ in data.train_dataloader()] == [batch] * ((images - heldout) // batch)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert ("data.batch_size is 32" in said, "data.heldout is 64" in said) == (batch < 32, heldout < 64)


def test_a_budget_that_nobody_chose_has_an_image_of_every_class(caplog):
    data = Fake(max_labels=4)
    data.free = frozenset({"max_labels"})
    data.setup()
    assert data.label_counts == {"train": 4, "heldout": 1, "test": 64, "rarest": 1}
    assert caplog.messages == [
        "data.max_labels is 4; 5 is used, since each of 4 classes has 1 training image"
    ]


@pytest.mark.parametrize("images", [4, 5, 9, 10, 36])
def test_without_a_number_a_tenth_but_at_least_one_image_is_held_out(images):
    data = Fake(num_train=images, heldout=None, batch_size=1)
    data.setup()
    assert len(data._splits.val) == max(1, images // 10)
    assert len(data._splits.pretrain) == images - len(data._splits.val)


@pytest.mark.parametrize("path", sorted(CONF.glob("data/*.yaml")), ids=lambda path: path.stem)
def test_a_constructor_takes_the_keys_of_its_config_and_no_other(path: Path) -> None:
    config = OmegaConf.load(path)
    taken, anything = accepted(get_class(config._target_))
    assert not anything
    assert {"_target_", *taken} == set(config)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'val'; allowed are train, heldout, test"):
        Fake().downstream("val")


def test_a_share_of_the_labels_is_fixed_stratified_and_augmented() -> None:
    data = Fake(num_train=120, heldout=40, batch_size=8, flip=True)
    data.setup()
    half, quarter = (set(data.labelled_indices(fraction).tolist()) for fraction in (0.5, 0.25))
    assert (len(half), len(quarter)) == (40, 20)
    assert quarter < half
    assert not half & set(data._splits.val.tolist())
    assert data._loaded.train is not None
    assert data._loaded.train.labels[sorted(quarter)].bincount().tolist() == [5] * 4
    loader = data.labelled(0.25, 8)
    assert loader.augment
    assert loader.shuffle
    assert [len(x) for x, _ in loader] == [8, 8]
    assert [len(x) for x, _ in data.labelled(0.05, 8)] == [4]  # a share with fewer images than a batch
    with pytest.raises(ValueError, match=r"a fraction 0\.001 .* is 0 images"):
        data.labelled(0.001, 8)


def test_heldout_images_may_be_trained_on() -> None:
    data = Fake(num_train=120, heldout=40, batch_size=8, flip=True)
    data.setup()
    assert data.labelled_indices(1.0, heldout=True).tolist() == list(range(120))
    half = data.labelled_indices(0.5, heldout=True)
    assert data._loaded.train is not None
    assert data._loaded.train.labels[half].bincount().tolist() == [15] * 4
    plain = data.labelled(1.0, 8, augment=False, heldout=True)
    batch, _ = next(iter(plain))
    indices = plain.batch_indices(0)
    assert torch.equal(batch, data._loaded.train.images[indices].permute(0, 3, 1, 2))  # type: ignore[attr-defined]


def test_no_image_need_be_held_out() -> None:
    data = Fake(num_train=80, heldout=0, batch_size=8, max_labels=40)
    data.setup()
    assert data.label_counts == {"train": 40, "heldout": 0, "test": 64, "rarest": 10}
    assert data.pretrain_images == 80
    for loader in (data.val_dataloader(), data.downstream("heldout")):
        assert list(loader) == []
        assert len(loader) == 0


def test_unlabelled_images_are_all_or_a_fixed_draw_in_order() -> None:
    data, other = (Fake(num_train=120, heldout=40, batch_size=8, seed=seed) for seed in (0, 1))
    data.setup()
    other.setup()
    whole = data.unlabelled()
    assert torch.equal(whole.indices, data._splits.pretrain)
    some = data.unlabelled(30)
    assert torch.equal(some.indices, other.unlabelled(30).indices)
    assert len(some.indices.unique()) == 30
    assert torch.isin(some.indices, data._splits.pretrain).all()
    assert len(data.unlabelled(10_000).indices) == 80


def test_single_images_of_a_loader_and_their_names() -> None:
    data = Fake(num_train=120, num_test=30, heldout=40, batch_size=8)
    loader = data.downstream("test", 7)
    images = torch.cat([x for x, _ in loader])
    places = torch.tensor([29, 0, 3, 3])
    assert torch.equal(loader.take(places), images[places])
    assert loader.image_names == [f"test/{number}" for number in range(30)]


class Strangers(PairedDataModule):
    """A data set with given labels."""

    name = "strangers"

    def __init__(self, train: list, test: list | None, targets: str = "classes") -> None:
        super().__init__(batch_size=1, image_size=8, heldout=1)
        self.given, self.targets = (train, test), targets

    def load(self) -> Pairing:
        train, test = (
            None if labels is None else ArraySource(
                torch.randint(256, (len(labels), 8, 8, 3), dtype=torch.uint8, generator=generator(0)),
                torch.tensor(labels), CropFlip(0, False),
            )
            for labels in self.given
        )  # fmt: skip
        return Pairing(train, train, test, ("cat", "dog", "owl"), overlap=torch.arange(len(train)))


ALL = [0, 1, 2, 0, 1, 2]
ONE_CLASS = [
    ([1, 1, 1, 1], ALL, "training images of one class only, dog"),
    (ALL, [0, 0], "test images of one class only, cat"),
    ([2, 2, 2, 2], None, "training images of one class only, owl"),
]


@pytest.mark.parametrize(("train", "test", "message"), ONE_CLASS)
def test_labelled_images_of_one_class_are_refused(train: list, test: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"data strangers has {message}; .* cat, dog, owl are needed"):
        Strangers(train, test).setup()


NO_IMAGE = [
    ("classes", [0, 1, 0, 1], ALL, "no training image of 1 of its 3 classes: owl"),
    ("classes", ALL, [2, 0], "no test image of 1 of its 3 classes: dog"),
    ("multilabel", [[1, 0, 0], [1, 0, -1]], [[1, 1, 1]], "no training image of 2 of its 3 classes: dog, owl"),
    ("multilabel", [[1, 1, 1]] * 4, [[1, 0, 1]], "no test image of 1 of its 3 classes: dog"),
]


@pytest.mark.parametrize(("targets", "train", "test", "message"), NO_IMAGE)
def test_a_class_without_an_image_is_told_once(
    targets: str, train: list, test: list, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = Strangers(train, test, targets)
    data.setup()
    data.setup()
    assert [record.getMessage() for record in caplog.records] == [f"data strangers has {message}"]


def test_classes_with_images_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    Strangers(ALL, ALL).setup()
    Strangers(ALL, None).setup()
    assert not caplog.records


@pytest.mark.parametrize("option", [{"overfit_batches": 1}, {"reload_dataloaders_every_n_epochs": 1}])
def test_a_trainer_that_changes_the_order_is_refused(option: dict, tmp_path: Path) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **quiet, **option)
    with pytest.raises(ValueError, match=f"{next(iter(option))}=1.* does not work with Fake; "):
        trainer.fit(Rotation(ConvNet(widths=(4,), strides=(4,))), Fake(batch_size=8))
