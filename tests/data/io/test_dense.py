"""Masks and boxes: reading, checks, and resizing with their image."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from ssl_lightning.data.io.annotations import (
    VOID,
    Boxes,
    check_masks,
    image_sizes,
    match_by_stem,
    read_mask,
    read_voc_boxes,
)
from ssl_lightning.data.io.dense import PADDING, DenseFiles
from ssl_lightning.data.io.loader import BatchLoader

IDS = np.array([[0, 1, 2], [2, 11, 255]], np.uint8)
READ = [[0, 1, 2], [2, VOID, VOID]]


def save(path: Path, ids: np.ndarray, mode: str = "L") -> Path:
    image = Image.fromarray(ids)
    if mode == "P":
        image = image.copy()
        image.putpalette(list(range(256)) * 3)
    image.save(path)
    return path


def xml(*objects: str) -> str:
    size = "<size><width>9999</width><height>1</height></size>"  # wrong, as in real data
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def thing(name: str, left: float, top: float, right: float, bottom: float, more: str = "") -> str:
    box = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_are_ids_in_grey_or_with_a_palette(tmp_path: Path, mode: str) -> None:
    mask = read_mask(save(tmp_path / "m.png", IDS, mode), 3, [11])
    assert mask.tolist() == READ
    assert mask.dtype == np.uint8


def test_masks_of_sbd_are_read(tmp_path: Path) -> None:
    inner = np.zeros((1, 1), dtype=[("Segmentation", object)])
    inner[0, 0]["Segmentation"] = IDS
    savemat(tmp_path / "m.mat", {"GTcls": inner})
    assert read_mask(tmp_path / "m.mat", 3, [11]).tolist() == READ


def test_unknown_ids_and_colours_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", IDS)
    with pytest.raises(ValueError, match=r"m\.png has the ids \[2, 11\].*0\.\.1 and the void ids \[255\]"):
        read_mask(path, 2, [])
    Image.new("RGB", (2, 2)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match=r"colour\.png.*RGB"):
        read_mask(tmp_path / "colour.png", 2, [])


def test_every_bad_mask_is_named_before_any_work(tmp_path: Path) -> None:
    images = [save(tmp_path / f"{i}.jpg", np.zeros((2, 3), np.uint8)) for i in range(3)]
    good = save(tmp_path / "good.png", IDS)
    unknown = save(tmp_path / "unknown.png", IDS + 3)
    large = save(tmp_path / "large.png", np.zeros((4, 3), np.uint8))
    check_masks(images, [good] * 3, 3, [11], num_workers=2)
    with pytest.raises(ValueError, match=r"(?s)^2 masks.*unknown\.png.*large\.png has 3 x 4.*3 x 2"):
        check_masks(images, [good, unknown, large], 3, [11], num_workers=2)


def test_an_image_without_its_mask_is_named() -> None:
    images = [Path("a/x.jpg"), Path("a/y.jpg")]
    masks = [Path("b/x.png"), Path("b/y.png"), Path("b/z.png")]
    assert match_by_stem(images, masks, "mask", Path("b")) == masks[:2]
    with pytest.raises(ValueError, match=r"1 of 2 images have no mask in b; the first is a/y\.jpg"):
        match_by_stem(images, masks[:1], "mask", Path("b"))


def test_boxes_are_read_as_voc_counts(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    path = tmp_path / "a.xml"
    path.write_text(
        xml(
            thing("cat", 1, 1, 1, 1),  # the first pixel
            thing("dog", 3, 2, 10, 8, "<difficult>1</difficult>" + part),
            thing("cat", -4, 0, 30, 30),  # exceeds the image on all sides
        )
    )
    boxes = read_voc_boxes(path, (10, 8), ["dog", "cat"])
    assert boxes.boxes.tolist() == [[0, 0, 1, 1], [2, 1, 10, 8], [0, 0, 10, 8]]
    assert boxes.labels.tolist() == [1, 0, 1]
    assert boxes.difficult.tolist() == [False, True, False]


def test_a_file_without_objects_is_an_image_without_objects(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(xml())
    boxes = read_voc_boxes(tmp_path / "a.xml", (10, 8), ["cat"])
    assert (boxes.boxes.shape, boxes.labels.shape, boxes.difficult.shape) == ((0, 4), (0,), (0,))
    assert boxes.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xml(thing("cow", 1, 1, 2, 2)), r"'cow'; data\.class_names has cat, dog"),
        (xml(thing("cat", 11, 1, 20, 5)), r"no pixel in the image of 10 x 8"),
        (xml(thing("cat", 5, 1, 4, 5)), r"no pixel"),
        (xml(thing("cat", 1, -9, 5, 0)), r"no pixel"),
        (xml("<object><name>cat</name></object>"), r"could not convert"),
        ("<annotation>", r"a\.xml: no element found"),
    ],
)
def test_wrong_annotations_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_voc_boxes(path, (10, 8), ["cat", "dog"])
    assert str(path) in str(error.value)


def batches(source: DenseFiles, size: int = 2) -> list:
    loader = BatchLoader(source, range(len(source)), size, seed=0, shuffle=False)
    return list(loader)


def files(tmp_path: Path, annotations: list, size: tuple[int, int], workers: int = 0) -> DenseFiles:
    paths = []
    for i, (height, width) in enumerate([(8, 16), (16, 8), (8, 8)]):
        pixels = np.full((height, width, 3), 50 * (i + 1), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    return DenseFiles(
        paths, annotations, size=size, num_classes=5, channels=3, max_pixels=10**6, num_workers=workers
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_images_and_masks_are_fitted_alike(tmp_path: Path, workers: int) -> None:
    masks = []
    for i, shape in enumerate([(8, 16), (16, 8), (8, 8)]):
        masks.append(save(tmp_path / f"mask{i}.png", np.full(shape, i, np.uint8)))
    (images, ids), (last, last_ids) = batches(files(tmp_path, masks, (16, 16), workers))
    assert (images.shape, images.dtype) == ((2, 3, 16, 16), torch.uint8)
    assert (ids.shape, ids.dtype) == ((2, 16, 16), torch.int64)
    assert (last.shape, last_ids.shape) == ((1, 3, 16, 16), (1, 16, 16))
    covered = torch.zeros(3, 16, 16, dtype=torch.bool)
    covered[0, :8], covered[1, :, :8], covered[2] = True, True, True
    for i, (image, mask) in enumerate(zip([*images, *last], [*ids, *last_ids], strict=True)):
        assert torch.equal(mask, torch.where(covered[i], i, VOID))
        assert torch.equal(image[0], torch.where(covered[i], 50 * (i + 1), PADDING).byte())


def test_boxes_are_resized_with_their_image(tmp_path: Path) -> None:
    one = Boxes(torch.tensor([[2.0, 1, 6, 5]]), torch.tensor([3]), torch.tensor([False]))
    none = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    ((_, first), (_, second)) = batches(files(tmp_path, [one, none, one], (32, 32)))
    assert first[0]["boxes"].tolist() == [[4, 2, 12, 10]]  # 8 x 16 to 16 x 32
    assert first[1]["boxes"].shape == (0, 4)
    assert second[0]["boxes"].tolist() == [[8, 4, 24, 20]]
    assert second[0]["labels"].tolist() == [3]


def test_a_process_without_images_of_the_last_batch_gets_empty_targets(tmp_path: Path) -> None:
    mask = save(tmp_path / "m.png", np.zeros((8, 8), np.uint8))
    source = files(tmp_path, [mask] * 3, (8, 8))
    loader = BatchLoader(source, [2, 2, 2], 2, seed=0, shuffle=False, rank=1, world_size=2)
    assert [(images.shape[0], ids.shape) for images, ids in loader] == [(1, (1, 8, 8))]


def test_sizes_are_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "b.jpg")
    assert image_sizes([tmp_path / "a.jpg", tmp_path / "b.jpg"], 0) == [(4, 6), (6, 4)]


def test_masks_in_folders_are_matched_by_folder(tmp_path: Path) -> None:
    images = [tmp_path / "images" / part / "1.jpg" for part in ("a", "b")]
    masks = [tmp_path / "masks" / part / "1.png" for part in ("b", "a")]
    found = match_by_stem(images, masks, "mask", tmp_path / "masks", tmp_path / "images")
    assert found == masks[::-1]
    with pytest.raises(ValueError, match=r"2 of 2 images have no mask .*a/1\.jpg"):
        match_by_stem(images, [tmp_path / "masks" / "1.png"], "mask", tmp_path / "masks", tmp_path / "images")
    with pytest.raises(ValueError, match=r"2 of 2 images have several mask"):
        match_by_stem(images, masks, "mask", tmp_path / "masks")


def test_grey_masks_of_few_and_of_many_bits_hold_ids(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 3, 2]], np.uint8)
    for bits in (2, 4):
        rows = "".join(f"{each:0{bits}b}" for each in ids[0])
        data = zlib.compress(b"\0" + int(rows, 2).to_bytes(len(rows) // 8))
        chunks = ((b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
        parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
        (tmp_path / f"{bits}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        assert read_mask(tmp_path / f"{bits}.png", 4, []).tolist() == ids.tolist()
    Image.fromarray(ids.astype(np.uint16)).save(tmp_path / "16.png")
    assert read_mask(tmp_path / "16.png", 4, []).tolist() == ids.tolist()
    Image.fromarray(ids.astype(np.uint16) + np.uint16(999)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large\.png has the ids \[999, 1000, 1001, 1002\]"):
        read_mask(tmp_path / "large.png", 4, [])


def test_masks_of_black_and_white_have_no_class_but_the_background(tmp_path: Path) -> None:
    images = [save(tmp_path / f"{i}.jpg", np.zeros((2, 2), np.uint8)) for i in range(2)]
    masks = [save(tmp_path / f"{i}.png", np.array([[0, 255], [255, 0]], np.uint8)) for i in range(2)]
    with pytest.raises(ValueError, match=r"the 2 masks such as .*0\.png hold no class but 0, and void ids"):
        check_masks(images, masks, 2, [], num_workers=0)
    save(tmp_path / "1.png", np.array([[0, 255], [1, 0]], np.uint8))
    check_masks(images, masks, 2, [], num_workers=0)
