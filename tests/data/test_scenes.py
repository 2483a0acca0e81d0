"""Generated scenes: masks and boxes match the pixels, and every draw is the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.data.io.annotations import Boxes
from ssl_lightning.data.io.paint import cut_out, paint_scenes
from ssl_lightning.data.scenes import Scenes


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make small caches of both sets: black photographs, and blocks as clothes."""
    root = tmp_path_factory.mktemp("cache")
    draw = np.random.default_rng(0)
    for name, shape in (("cifar10", (32, 32, 3)), ("fashion_mnist", (28, 28, 1))):
        (root / name).mkdir()
        for split in ("train", "test"):
            images = np.zeros((20, *shape), np.uint8)
            if name == "fashion_mnist":
                images[:, 4:24, 6:22] = draw.integers(1, 256, (20, 20, 16, 1))
            np.save(root / name / f"{split}_images.npy", images)
            np.save(root / name / f"{split}_labels.npy", np.arange(20) % 10)
    return root


def paint(
    objects: tuple[int, int] = (1, 3), seed: int = 0, count: int = 40
) -> tuple[Tensor, Tensor, list[Boxes]]:
    clothes = torch.zeros(30, 28, 28, dtype=torch.uint8)
    clothes[:, 4:24, 6:22] = 200
    return paint_scenes(
        torch.zeros(5, 32, 32, 3, dtype=torch.uint8),
        clothes,
        torch.arange(30) % 10,
        count,
        size=48,
        objects=objects,
        object_size=(0.3, 0.6),
        draw=generator("scenes", seed),
    )


def test_masks_are_exactly_the_pixels_of_the_objects() -> None:
    images, masks, _ = paint()
    assert torch.equal(images.any(3), masks > 0)  # all pixels that are not black
    assert images.shape == (40, 48, 48, 3)
    assert masks.max() <= 10


def test_a_box_holds_exactly_what_is_to_be_seen_of_its_object() -> None:
    _, masks, boxes = paint((1, 1))
    for mask, of_scene in zip(masks, boxes, strict=True):
        ((left, top, right, bottom),) = of_scene.boxes.int().tolist()
        rows, columns = (mask > 0).any(1).nonzero(), (mask > 0).any(0).nonzero()
        assert [left, right - 1, top, bottom - 1] == [
            int(columns.min()),
            int(columns.max()),
            int(rows.min()),
            int(rows.max()),
        ]
        assert mask[mask > 0].unique().tolist() == [1 + int(of_scene.labels)]
        assert not of_scene.difficult.any()


def test_hidden_objects_are_difficult_or_gone() -> None:
    _, masks, boxes = paint((20, 20), count=60)
    difficult = torch.cat([b.difficult for b in boxes])
    assert 0.02 < difficult.float().mean() < 0.6
    assert sum(len(b.labels) for b in boxes) < 20 * 60  # some are completely hidden
    for mask, of_scene in zip(masks, boxes, strict=True):
        assert {1 + label for label in of_scene.labels.tolist()} == set(mask.unique().tolist()) - {0}
        assert (of_scene.boxes[:, 2:] > of_scene.boxes[:, :2]).all()
        assert of_scene.boxes.min() >= 0
        assert of_scene.boxes.max() <= 48


def test_scenes_may_have_no_object() -> None:
    _, masks, boxes = paint((0, 1))
    counts = [len(b.labels) for b in boxes]
    assert set(counts) == {0, 1}
    assert [bool((mask > 0).any()) for mask in masks] == [count > 0 for count in counts]


def test_the_same_draw_gives_the_same_scenes() -> None:
    one, two, other = paint(seed=1), paint(seed=1), paint(seed=2)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])
    more = paint(seed=1, count=600)  # more than one chunk
    assert torch.equal(more[0][:512], paint(seed=1, count=512)[0])


def test_dark_pixels_within_an_object_belong_to_it() -> None:
    ring = torch.zeros(1, 7, 7, dtype=torch.uint8)
    ring[0, 1:6, 1:6] = 90
    ring[0, 0, 0] = 3  # Fashion-MNIST has such specks
    ring[0, 2:5, 2:5] = 0
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[1:6, 1:6] = True
    assert torch.equal(cut_out(ring)[0], expected)
    cup = ring.clone()
    cup[0, 1] = 0  # open at the top: the inside is background
    assert torch.equal(cut_out(cup)[0], cup[0] > 25)


def test_masks_and_boxes_are_of_the_same_scenes(cache: Path) -> None:
    made = {}
    for targets in ("masks", "boxes"):
        data = Scenes(root=str(cache), targets=targets, num_train=30, num_test=10, heldout=5, batch_size=8)
        data.prepare_data()
        data.setup()
        assert data.targets == targets
        assert data.label_counts == {"train": 25, "heldout": 5, "test": 10}
        assert data.pretrain_images == 25
        made[targets] = data, next(iter(data.downstream("test")))
    (masks_data, (images, masks)), (boxes_data, (same, boxes)) = made["masks"], made["boxes"]
    assert torch.equal(images, same)
    assert (images.shape, images.dtype, masks.dtype) == ((10, 3, 64, 64), torch.uint8, torch.int64)
    for mask, target in zip(masks, boxes, strict=True):
        assert {1 + label for label in target["labels"].tolist()} == set(mask.unique().tolist()) - {0}
    assert masks_data.spec.num_classes == 11
    assert boxes_data.spec.num_classes == 10
    assert next(iter(masks_data.train_dataloader()))[1].tolist() == [-1] * 8
    assert next(iter(masks_data.val_dataloader()))[0].shape == (5, 3, 64, 64)


@pytest.mark.parametrize(
    "options",
    [
        {"targets": "classes"},
        {"objects": [2, 1]},
        {"objects": [0, 0]},
        {"object_size": [0.0, 0.5]},
        {"object_size": [0.5, 1.5]},
        {"num_test": 0},
    ],
)
def test_bad_values_are_refused(options: dict) -> None:
    with pytest.raises(
        ValueError, match=rf"data\.{'num_t' if 'num_test' in options else next(iter(options))}"
    ):
        Scenes(**options)
