"""Broken, odd or malicious image files, labels and masks, in tables.

Odd but valid pictures are read, and their pixels are compared with numpy. Other files are refused without
blocking, in one line that names the file.
"""

from __future__ import annotations

import os
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_lightning.core.untrusted import printable
from ssl_lightning.data.camvid import CamVid
from ssl_lightning.data.folder import Folder
from ssl_lightning.data.imagenet import ImageNet
from ssl_lightning.data.io import cifar10
from ssl_lightning.data.io.annotations import read_mask, read_voc_boxes
from ssl_lightning.data.io.folders import BadImagesError, decode, good_images
from ssl_lightning.data.io.scan import scan
from ssl_lightning.data.voc_classification import read_labels

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
GREY16 = np.array([[0, 256, 257, 32768, 65534, 65535]], np.uint16)
LUMA = (299, 587, 114)  # in thousandths, ITU-R BT.601


def luma(pixels: np.ndarray) -> np.ndarray:
    return np.round((pixels * np.array(LUMA) / 1000).sum(-1)).astype(np.uint8)


def png(width: int, height: int, kind: int = 2, pixels: bytes = b"", *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file built by hand; `kind` 0 is grey, 2 is RGB, both with 8 bits per channel."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in parts:
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out


def cmyk(path: Path) -> np.ndarray:
    inks = np.concatenate([RGB, RGB[:, :, :1] // 2], -1)
    Image.fromarray(inks, "CMYK").save(path, "tiff")
    inks = inks.astype(np.float64)
    return (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255


def palette(path: Path, **options: object) -> np.ndarray:
    colours = np.array([[255, 0, 0], [0, 128, 0], [7, 8, 9]], np.uint8)
    ids = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(ids, "P")
    image.putpalette(colours.tobytes())
    image.save(path, "png", **options)
    return colours[ids]


def grey_of_16_bits(path: Path) -> np.ndarray:
    Image.fromarray(GREY16).save(path, "png")
    return np.repeat((GREY16 // 257)[..., None], 3, -1)


def one_bit(path: Path) -> np.ndarray:
    bits = np.array([[True, False, True]])
    Image.fromarray(bits).save(path, "png")
    return np.repeat(bits[..., None] * 255, 3, -1)


def transparent(path: Path) -> np.ndarray:
    alpha = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    Image.fromarray(np.concatenate([RGB, alpha], -1)).save(path, "png")
    return RGB


def grey_and_alpha(path: Path) -> np.ndarray:
    Image.fromarray(RGB[..., :2].copy(), "LA").save(path, "png")
    return np.repeat(RGB[..., :1], 3, -1)


def animated(path: Path, kind: str) -> np.ndarray:
    first, second = (Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    options = {"lossless": True} if kind == "webp" else {}
    first.save(path, kind, save_all=True, append_images=[second], duration=100, loop=0, **options)
    with Image.open(path) as image:
        assert image.n_frames == 2
    return np.broadcast_to(np.array([255, 0, 0]), (4, 6, 3))


def turned(path: Path, orientation: int, undo: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(path, "png", exif=exif)
    return undo(RGB)


def another_ending(path: Path) -> np.ndarray:
    Image.fromarray(RGB).save(path, "png")
    return RGB


def plain(name: str) -> Callable[[Path], np.ndarray]:
    """Write a valid picture under an odd name."""

    def make(path: Path) -> np.ndarray:
        Image.fromarray(RGB).save(os.fsencode(path.parent) + b"/" + os.fsencode(name), "png")
        return RGB

    return make


def linked(path: Path) -> np.ndarray:
    (path.parent / "real").mkdir()
    Image.fromarray(RGB).save(path.parent / "real" / ".hidden", "png")
    path.symlink_to(path.parent / "real" / ".hidden")
    (path.parent / "real" / "loop").symlink_to(path.parent)
    return RGB


READ: dict[str, Callable[[Path], np.ndarray]] = {
    "CMYK": cmyk,
    "palette": palette,
    "palette with transparency": lambda path: palette(path, transparency=1),
    "grey of 16 bits": grey_of_16_bits,
    "1 bit": one_bit,
    "RGBA: the colour below": transparent,
    "grey and alpha": grey_and_alpha,
    "GIF of two pictures": lambda path: animated(path, "gif"),
    "WebP of two pictures": lambda path: animated(path, "webp"),
    "PNG of two pictures": lambda path: animated(path, "png"),
    "turned by EXIF, 3": lambda path: turned(path, 3, lambda x: x[::-1, ::-1]),
    "turned by EXIF, 6": lambda path: turned(path, 6, lambda x: np.rot90(x, -1)),
    "mirrored by EXIF, 2": lambda path: turned(path, 2, lambda x: x[:, ::-1]),
    "PNG that is called JPEG": another_ending,
    "a name that is not UTF-8": plain("\udcff\udcfe.jpg"),
    "a name of two lines": plain("a\nb.jpg"),
    "a link to a hidden file, and a loop of links": linked,
}


@pytest.mark.parametrize("case", READ)
def test_odd_pictures_are_read_as_documented(case: str, tmp_path: Path) -> None:
    expected = READ[case](tmp_path / "x.jpg")
    (path,) = scan(tmp_path)
    got = np.asarray(decode(path, 3, 1000)).astype(np.int64)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= (1 if case == "CMYK" else 0)  # Pillow rounds differently
    grey = np.asarray(decode(path, 1, 1000)).astype(np.int64)
    assert np.abs(grey - luma(got)).max() <= 1
    for _ in range(2):  # remembered, whatever the name
        good, bad = good_images(
            tmp_path, scan(tmp_path), max_pixels=1000, max_bad=0, cache=tmp_path / "cache"
        )
        assert (list(good), bad) == ([path], {})


def cut(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)).save(path, "jpeg")
    path.write_bytes(path.read_bytes()[:-300])


def flipped(path: Path) -> None:
    Image.fromarray(RGB).save(path, "png")
    data = bytearray(path.read_bytes())
    data[-20] ^= 255
    path.write_bytes(bytes(data))


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # socket names must be short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no byte": (lambda p: p.touch(), "cannot identify"),
    "text": (lambda p: p.write_text("no picture"), "cannot identify"),
    "cut short": (cut, "truncated"),
    "a bit flipped": (flipped, "broken data stream"),
    "65535 x 65535 pixels in a file of 70 bytes": (
        lambda p: p.write_bytes(png(65535, 65535)),
        "65535 x 65535 pixels are more than max_pixels|decompression bomb",
    ),
    "above max_pixels": (
        lambda p: p.write_bytes(png(40, 30)),
        "40 x 30 pixels are more than max_pixels 1000",
    ),
    "a picture of no pixels": (lambda p: p.write_bytes(png(0, 0)), "."),
    "a comment that unpacks to 200 MB": (
        lambda p: p.write_bytes(
            png(2, 2, 2, bytes(14), (b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 1)))
        ),
        "[Dd]ecompressed data too large|text chunk|MAX_TEXT",
    ),
    "PostScript, which Pillow gives to Ghostscript": (
        lambda p: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"),
        "cannot identify",
    ),
    "floating-point pixels": (
        lambda p: Image.fromarray(np.ones((2, 2), np.float32)).save(p, "tiff"),
        "no known range",
    ),
    "a link to nothing": (lambda p: p.symlink_to("gone"), "No such file"),
    "a link to itself": (lambda p: p.symlink_to(p), "symbolic links"),
    "a file that cannot be read": (lambda p: p.symlink_to("/proc/self/mem"), "Input/output error|Permission"),
    "a pipe": (os.mkfifo, "plain file"),
    "a socket": (unix_socket, "plain file"),
    "a device": (lambda p: p.symlink_to("/dev/zero"), "plain file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_named_without_blocking(case: str, tmp_path: Path) -> None:
    make, reason = REFUSED[case]
    make(tmp_path / "x.jpg")
    files = scan(tmp_path)
    assert len(files) == 1
    began = time.monotonic()
    with pytest.raises(BadImagesError, match=rf"(?s)1 of 1 images.*x\.jpg: .*({reason})"):
        good_images(tmp_path, files, max_pixels=1000, max_bad=0, cache=tmp_path / "cache")
    assert time.monotonic() - began < 5


def test_a_folder_with_the_name_of_a_picture_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    Image.fromarray(RGB).save(tmp_path / "x.jpg" / "y.png")
    assert list(scan(tmp_path)) == [str(tmp_path / "x.jpg" / "y.png")]


def test_names_are_printed_escaped() -> None:
    assert printable("a\x1b[2J\nb\udcffü.jpg", lines=False) == r"a\x1b[2J\nb\udcffü.jpg"


def tree(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RGB + np.uint8(number)).save(path)


def folder(root: Path, *names: str) -> Folder:
    tree(root, *names)
    return Folder(
        pretrain_dir=str(root), train_dir=str(root / "train"), test_dir=str(root / "test"),
        image_size=4, batch_size=1, num_workers=0, root=str(root / ".cache"),
    )  # fmt: skip


def imagenet(root: Path, listed: str) -> ImageNet:
    tree(root, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")
    (root / "1.txt").write_text(listed)
    return ImageNet(
        dir=str(root), one_percent=str(root / "1.txt"), image_size=4, batch_size=1, num_workers=0,
        root=str(root / ".cache"),
    )  # fmt: skip


def camvid(root: Path, mask: np.ndarray, mode: str | None = None) -> CamVid:
    for split in ("train", "test"):
        tree(root, *(f"{split}/{split}{number}.png" for number in range(3)))
        (root / f"{split}annot").mkdir()
        for number in range(3):
            Image.fromarray(mask, mode).save(root / f"{split}annot" / f"{split}{number}.png")
    return CamVid(dir=str(root), image_size=4, batch_size=1, num_workers=0, root=str(root / ".cache"))


BOTH = ("train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png")
LABELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a class that the test lacks": (
        lambda p: folder(p, *BOTH, "train/c/5.png"),
        r"only in the first: \['c'\]",
    ),
    "a class whose folder holds no picture": (
        lambda p: [(p / "test/c").mkdir(parents=True), folder(p, *BOTH, "train/c/5.png")][1],
        r"only in the first: \['c'\]",
    ),
    "one class": (lambda p: folder(p, "train/a/1.png", "test/a/2.png"), "one class only, a; at least 2"),
    "a picture without a class": (lambda p: folder(p, *BOTH, "train/5.png"), "have no label: 5.png"),
    "no picture": (lambda p: folder(p, "train/a/1.png", "test/a/x.txt.png", ".b/c.png"), "one class only"),
    "a list of other pictures": (lambda p: imagenet(p, "1.png\ngone.png\n"), "1 are not in train.*gone.png"),
    "a list of nothing": (lambda p: imagenet(p, "\n"), "lists 0 images"),
    "a mask of another size": (
        lambda p: camvid(p, np.zeros((5, 6), np.uint8)),
        "6 x 5 pixels.*has 6 x 4",
    ),
    "a mask with unknown ids": (
        lambda p: camvid(p, np.full((4, 6), 99, np.uint8)),
        r"the ids \[99\].*0\.\.10",
    ),
    "a mask of colours": (lambda p: camvid(p, RGB), "pixels of mode RGB; a mask has one class id"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_and_masks_that_do_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    make, message = LABELS[case]
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        make(tmp_path).setup()


LAUGHS = (
    '<!DOCTYPE a [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]><annotation><object><name>&i;</name></object></annotation>"
)
FILE = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><object><name>&a;</name></object>'
OBJECT = "<annotation><object><name>{}</name><bndbox>{}</bndbox></object></annotation>"
CORNERS = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
XML = {
    "cut short": ("<annotation><object>", "no element found"),
    "no byte": ("", "no element found"),
    "an unknown class": (
        OBJECT.format("dragon", CORNERS.format(1, 1, 2, 2)),
        "'dragon'; data.class_names has",
    ),
    "no number": (OBJECT.format("cat", CORNERS.format("one", 1, 2, 2)), "could not convert.*'one'"),
    "NaN": (OBJECT.format("cat", CORNERS.format("nan", 1, 2, 2)), "no pixel in the image of 6 x 4"),
    "infinite": (OBJECT.format("cat", CORNERS.format(1, 1, "inf", 2)), "no pixel in the image of 6 x 4"),
    "outside": (OBJECT.format("cat", CORNERS.format(7, 1, 9, 2)), "no pixel in the image of 6 x 4"),
    "turned round": (OBJECT.format("cat", CORNERS.format(4, 4, 1, 1)), "no pixel in the image"),
    "a billion laughs": (LAUGHS, "declares entities"),
    "an entity of another file": (FILE, "declares entities"),
    "an unknown encoding": ('<?xml version="1.0" encoding="x"?><annotation/>', "unknown encoding"),
    "20 MB": ("<annotation>" + " " * 20_000_000, "at most 8,000,000 bytes"),
}


@pytest.mark.parametrize("case", XML)
def test_errors_of_annotations_name_the_file(case: str, tmp_path: Path) -> None:
    text, message = XML[case]
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)a\.xml: .*{message}"):
        read_voc_boxes(tmp_path / "a.xml", (6, 4), ["cat", "dog"])
    if case in ("a billion laughs", "an entity of another file", "cut short"):  # its other reader
        with pytest.raises(ValueError, match=rf"(?s)a\.xml: .*{message}"):
            read_labels(tmp_path / "a.xml", ["cat", "dog"])


def test_boxes_are_clipped_to_the_image(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(OBJECT.format("cat", CORNERS.format(-3, 2, 99, 99)))
    assert read_voc_boxes(tmp_path / "a.xml", (6, 4), ["cat"]).boxes.tolist() == [[0, 1, 6, 4]]


def test_a_mask_is_no_larger_than_its_picture_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(13000, 13000, 0))
    with pytest.raises(ValueError, match="13000 x 13000 pixels, and its image has 6 x 4"):
        read_mask(tmp_path / "a.png", 3, (), (6, 4))
    (tmp_path / "b.mat").write_bytes(b"no matrix")
    with pytest.raises(ValueError, match=r"b\.mat is not a mask of SBD"):
        read_mask(tmp_path / "b.mat", 3, ())


def test_the_binary_archive_of_cifar10_by_hand(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (12, 32, 32, 3), np.uint8), random.integers(0, 10, 12)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for number, name in enumerate(names):
        data = b""
        for image, label in zip(images[2 * number :][:2], labels[2 * number :][:2], strict=True):
            data += bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
        (tmp_path / name).write_bytes(data)
    got = cifar10.decode_binary(tmp_path, rows=2)
    np.testing.assert_array_equal(got["train_images"], images[:10])
    np.testing.assert_array_equal(got["test_labels"], labels[10:])
    (tmp_path / names[2]).write_bytes(data + b"\0")
    with pytest.raises(ValueError, match=r"data_batch_3\.bin has 6,147 bytes, expected 6,146"):
        cifar10.decode_binary(tmp_path, rows=2)
    (tmp_path / names[2]).write_bytes(bytes([10]) + data[1:])
    with pytest.raises(ValueError, match="the label 10; allowed are 0 to 9"):
        cifar10.decode_binary(tmp_path, rows=2)
