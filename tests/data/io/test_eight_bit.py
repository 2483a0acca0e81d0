"""Pixels of more than 8 bits and of four channels, and the facts that 8-bit pixels do not show.

tifffile writes the files and gives the second opinion on their pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from ssl_lightning.data.io.eight_bit import (
    Facts,
    check_value_range,
    describe_facts,
    eight_bit,
    examine,
    pillow_channels,
)
from ssl_lightning.data.io.folders import BadImagesError, decode, open_image, usable_images
from ssl_lightning.data.io.scan import scan

RANDOM = np.random.default_rng(0)
FOUR = RANDOM.integers(0, 256, (5, 7, 4), np.uint8)
TWELVE = np.concatenate([[0, 4095], RANDOM.integers(0, 4096, 33)]).reshape(5, 7).astype(np.uint16)
LIMIT = 10_000


def tiff(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, **options)
    assert np.array_equal(tifffile.imread(path), pixels)
    return path


def read(path: Path, channels: int = 1, value_range: tuple[float, float] | None = None) -> np.ndarray:
    return np.asarray(decode(path, channels, LIMIT, value_range))


def facts(path: Path, channels: int = 3, value_range: tuple[float, float] | None = None) -> Facts:
    with open_image(path) as image:
        return examine(image, channels, value_range)[1]


def said(folder: Path, cache: Path, **options: Any) -> list[str]:
    """Return what is said of a folder, the second time from the record."""
    found: list[list[str]] = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            usable_images(folder, max_pixels=LIMIT, max_bad=0.1, cache=cache, **options)
        found.append([str(warning.message) for warning in caught])
    assert found[0] == found[1]
    return found[0]


def test_twelve_bits_use_all_grey_levels_with_their_range(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", TWELVE)
    assert len(np.unique(read(path))) <= 16
    expected = np.round(TWELVE / 4095 * 255)
    assert np.array_equal(read(path, value_range=(0, 4095)), expected)
    part = np.round(((TWELVE - 100.0) / 1900).clip(0, 1) * 255)
    assert np.array_equal(read(path, value_range=(100, 2000)), part)
    Image.fromarray(TWELVE).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", value_range=(0, 4095)), expected)
    assert np.array_equal(read(tmp_path / "a.png", 3, (0, 4095))[..., 2], expected)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.float32])
def test_a_range_applies_to_every_wide_type(tmp_path: Path, dtype: Any) -> None:
    values = np.array([[-500 if np.dtype(dtype).kind != "u" else 0, 0, 1000, 2000, 9000]], dtype)
    path = tiff(tmp_path / "a.tif", values)
    assert read(path, value_range=(0, 2000)).tolist() == [[0, 0, 128, 255, 255]]
    assert facts(path, value_range=(0, 2000)).wide == (values.min(), 9000)


def test_eight_bits_are_not_rescaled(tmp_path: Path) -> None:
    Image.fromarray(FOUR[..., 0]).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png", value_range=(0, 4095)), FOUR[..., 0])


def test_a_file_that_names_its_range_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 7 5 4095\n" + TWELVE.astype(">u2").tobytes())
    for value_range in (None, (0.0, 100.0)):
        assert np.abs(read(path, value_range=value_range) - TWELVE / 4095 * 255).max() <= 1
    assert facts(path) == Facts()


def packed_twelve_bits(values: np.ndarray) -> bytes:
    """Return a TIFF of 12 bits a pixel, which tifffile needs another library for."""
    row = "".join(f"{value:012b}" for value in values.flatten().tolist())
    data = int(row, 2).to_bytes(len(row) // 8)
    height, width = values.shape
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    offset = 8 + len(data) + len(data) % 2
    entries = b"".join(
        tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, value in tags.items()
    )  # fmt: skip
    directory = len(tags).to_bytes(2, "little") + entries + bytes(4)
    return b"II*\0" + offset.to_bytes(4, "little") + data + bytes(len(data) % 2) + directory


def test_twelve_bits_in_twelve_bits_have_their_own_range(tmp_path: Path) -> None:
    values = np.array([[0, 4095, 2048, 100]], np.uint16)
    (tmp_path / "a.tif").write_bytes(packed_twelve_bits(values))
    assert read(tmp_path / "a.tif").tolist() == np.round(values / 4095 * 255).tolist()
    assert facts(tmp_path / "a.tif") == Facts()


def test_white_is_zero_in_a_tiff_of_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.array([[0, 65535]], np.uint16), photometric="miniswhite")
    assert read(path).tolist() == [[255, 0]]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("extra", ["unspecified", "assocalpha", "unassalpha"])
@pytest.mark.parametrize("bits", [8, 16])
def test_four_channels_of_a_tiff_enter_as_they_are(
    tmp_path: Path, bits: int, extra: str, compression: str | None
) -> None:
    pixels = FOUR if bits == 8 else FOUR.astype(np.uint16) * 256 + 7
    path = tiff(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=[extra], compression=compression)
    assert np.array_equal(read(path, 4), FOUR)
    for channels in (1, 3):
        with pytest.raises(ValueError, match=r"it has 4 channels; give data\.channels=4"):
            read(path, channels)


def test_a_fourth_channel_that_says_nothing_is_dropped(tmp_path: Path) -> None:
    opaque = FOUR.copy()
    opaque[..., 3] = 255
    path = tiff(tmp_path / "a.tif", opaque, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read(path, 3), FOUR[..., :3])


def test_resizing_keeps_the_four_channels_apart(tmp_path: Path) -> None:
    Image.fromarray(FOUR).save(tmp_path / "a.png")
    large = decode(tmp_path / "a.png", 4, LIMIT).resize((14, 10), Image.Resampling.BILINEAR)
    for channel in range(4):
        alone = Image.fromarray(FOUR[..., channel]).resize((14, 10), Image.Resampling.BILINEAR)
        assert np.array_equal(np.asarray(large)[..., channel], np.asarray(alone))


def test_four_channels_of_other_pictures(tmp_path: Path) -> None:
    Image.fromarray(FOUR).save(tmp_path / "rgba.png")
    assert np.array_equal(read(tmp_path / "rgba.png", 4), FOUR)
    Image.fromarray(FOUR, "CMYK").save(tmp_path / "cmyk.tif")
    assert np.array_equal(read(tmp_path / "cmyk.tif", 4), FOUR)
    Image.fromarray(FOUR[..., :2].copy(), "LA").save(tmp_path / "la.png")
    assert np.array_equal(read(tmp_path / "la.png", 4), FOUR[..., [0, 0, 0, 1]])
    for mode, held in (("RGB", "3 channels"), ("L", "1 channel"), ("P", "3 channels")):
        Image.new(mode, (3, 3)).save(tmp_path / "few.png")
        with pytest.raises(ValueError, match=rf"it has {held}, and data\.channels is 4; .* data\.channels="):
            read(tmp_path / "few.png", 4)


CHANNELS_REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "two": (
        lambda p: tiff(p, FOUR[..., :2], photometric="minisblack", planarconfig="contig"),
        "it has 2 channels, of which Pillow reads 1",
    ),
    "five": (
        lambda p: tiff(p, np.zeros((5, 7, 5), np.uint8), photometric="rgb", planarconfig="contig"),
        "it has 5 channels, of which Pillow reads 3",
    ),
    "thirteen": (
        lambda p: tiff(p, np.zeros((5, 7, 13), np.uint16), photometric="minisblack", planarconfig="contig"),
        "a TIFF of 13 channels of 16 bits",
    ),
    "64 bits": (lambda p: tiff(p, np.zeros((5, 7))), "a TIFF of 1 channels of 64 bits"),
}


@pytest.mark.parametrize("case", CHANNELS_REFUSED)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_numbers_of_channels_are_refused(
    case: str, channels: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, message = CHANNELS_REFUSED[case]
    make(tmp_path / "a.tif")
    with pytest.raises((ValueError, OSError), match=message):
        decode(tmp_path / "a.tif", channels, LIMIT)
    with pytest.raises((ValueError, OSError), match=message):
        decode(BytesIO((tmp_path / "a.tif").read_bytes()), channels, LIMIT)
    assert not caplog.records


def test_colours_of_sixteen_bits_are_counted_and_not_rescaled(tmp_path: Path) -> None:
    values = FOUR[..., :3].astype(np.uint16) * 8  # up to 2040
    path = tiff(tmp_path / "x" / "a.tif", values, photometric="rgb")
    assert np.array_equal(read(path, 3), values >> 8)
    assert facts(path) == Facts(upper=int(values.max() >> 8))
    (line,) = said(tmp_path / "x", tmp_path / "cache")
    assert line.endswith(
        "1 of 1 images have colours of 16 bits, of which the upper 8 are read; they reach "
        f"{values.max() >> 8} of 255; convert the files to 8 bits over the range that they use"
    )
    with pytest.raises(ValueError, match=r"colours of 16 bits.*data\.value_range=null"):
        read(path, 3, (0, 2040))


def test_what_is_read_differently_is_said_once_with_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "twelve"
    for number in range(3):
        tiff(folder / f"{number}.tif", TWELVE + np.uint16(number))
    Image.fromarray(FOUR[..., :3]).save(folder / "plain.png")
    levels = len(np.unique(np.arange(4098) // 257))
    assert said(folder, tmp_path / "cache") == [
        f"{folder}: 3 of 4 images have pixels of more than 8 bits, with values from 0 to 4097: 0 to 65535 "
        f"are read as 0 to 255, which leaves {levels} of 256 grey levels; data.value_range=[0,4097] uses all "
        "of them"
    ]
    assert said(folder, tmp_path / "cache", value_range=(0.0, 4097.0)) == []
    (line,) = said(folder, tmp_path / "cache", value_range=(5.0, 4000.0))
    assert line.endswith("from 0 to 4097: those outside data.value_range=[5,4000] are cut off")


def test_values_outside_sixteen_bits_are_said_to_be_cut_off(tmp_path: Path) -> None:
    tiff(tmp_path / "x" / "a.tif", np.array([[-7, 70_000]], np.int32))
    (line,) = said(tmp_path / "x", tmp_path / "cache")
    assert "from -7 to 70000" in line
    assert "256 of 256 grey levels; values outside are cut off; data.value_range=[-7,70000]" in line


def test_floats_have_one_range_for_all_and_then_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "floats"
    for number, high in enumerate((0.5, 2.0)):
        tiff(folder / f"{number}.tif", np.linspace(-1, high, 35, dtype=np.float32).reshape(5, 7))
    advice = "these have values from -1 to 2: give data.value_range=[-1,2]"
    with pytest.raises(BadImagesError) as caught:
        said(folder, tmp_path / "cache")
    assert str(caught.value).count("\n") == 1
    assert advice in str(caught.value)
    assert said(folder, tmp_path / "cache", value_range=(-1.0, 2.0)) == []
    assert read(folder / "1.tif", value_range=(-1, 2)).flatten()[[0, 17, -1]].tolist() == [0, 128, 255]
    tifffile.imwrite(folder / "2.tif", np.full((2, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        read(folder / "2.tif", value_range=(-1, 2))


def test_transparency_is_counted_only_if_something_is_transparent(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for name, alpha in (("opaque", 255), ("clear", 254)):
        Image.new("RGBA", (3, 3), (1, 2, 3, alpha)).save(folder / f"{name}.png")
    palette = Image.new("P", (3, 3))
    palette.save(folder / "palette.png", transparency=0)
    palette.save(folder / "unused.png", transparency=1)
    (line,) = said(folder, tmp_path / "cache")
    assert "2 of 4 images have transparent pixels" in line
    assert "data.channels=4" in line


def test_further_pictures_are_counted_without_copies_and_masks(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    frames = [Image.new("RGB", (3, 3), (shade, 0, 0)) for shade in (10, 90, 200)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "b.tif", save_all=True, append_images=frames[1:2])
    with tifffile.TiffWriter(folder / "c.tif") as pyramid:
        pyramid.write(np.zeros((8, 8, 3), np.uint8), photometric="rgb")
        pyramid.write(np.zeros((4, 4, 3), np.uint8), photometric="rgb", subfiletype=1)
    frames[0].save(folder / "d.png")
    (line,) = said(folder, tmp_path / "cache")
    assert line.endswith("2 of 4 files hold several pictures, 5 in all; the first of each is read")
    assert read(folder / "b.tif", 3)[0, 0].tolist() == [10, 0, 0]


def test_a_picture_in_memory_stays_at_its_place(tmp_path: Path) -> None:
    frames = [Image.new("L", (3, 3), shade) for shade in (10, 90)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.tif") as image:
        image.seek(1)
        picture, found = examine(image, 1)
        assert (np.asarray(picture)[0, 0], found.pictures, image.tell()) == (90, 1, 1)


def test_bad_ranges_are_refused() -> None:
    assert check_value_range([0, 4095]) == (0.0, 4095.0)
    for bad in ([0], [1, 1], [2, 1], [0, np.inf], [np.nan, 1]):
        with pytest.raises(ValueError, match=r"data\.value_range is .*such as \[0,4095\]"):
            check_value_range(bad)


def test_plain_pictures_have_nothing_to_say(tmp_path: Path) -> None:
    for mode in ("1", "L", "P", "RGB", "CMYK"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (4, 4)).save(path)
        assert facts(path) == Facts()
        assert pillow_channels(mode) == (1 if mode in "1L" else 3)
        assert np.array_equal(np.asarray(eight_bit(Image.open(path), 3)), read(path, 3))
    assert describe_facts([Facts()] * 3, 3) == []
    assert len(scan(tmp_path)) == 5


def test_opacity_of_sixteen_bits_is_no_colour(tmp_path: Path) -> None:
    dark = np.full((2, 2, 4), 256, np.uint16)
    dark[..., 3] = 65535
    path = tiff(tmp_path / "a.tif", dark, photometric="rgb", extrasamples=["unassalpha"])
    assert facts(path) == Facts(upper=1)
