"""Search and decoding of image files, with broken ones skipped."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_lightning.data.io import folders
from ssl_lightning.data.io.folders import BadImagesError, classes_of, decode, describe_bad, good_images, scan


def picture(path: Path, width: int = 6, height: int = 4, colour=(200, 100, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)
    return path


def truncated(path: Path) -> Path:
    """Write a JPEG whose second half is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, "jpeg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_scan_is_sorted_and_takes_images_only(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.webp", "c/d/3.TIFF", ".hidden/4.png", "._5.png"):
        picture(tmp_path / name) if not name.startswith("._") else (tmp_path / name).write_text("x")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in scan(tmp_path)]
    assert names == ["a.webp", "b/1.png", "b/2.JPG", "c/d/3.TIFF"]


def test_scan_tells_missing_empty_and_file_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        scan(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no image; looked for bmp gif"):
        scan(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"a\.png is a file"):
        scan(picture(tmp_path / "a.png"))


def test_classes_are_the_first_folders(tmp_path):
    for name in ("dog/x/1.png", "cat/2.png", "dog/3.png"):
        picture(tmp_path / name)
    assert classes_of(tmp_path, scan(tmp_path)) == (["cat", "dog"], [0, 1, 1])
    picture(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"1 images lie in .* have no label: stray\.png"):
        classes_of(tmp_path, scan(tmp_path))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_type_becomes_grey_or_rgb(tmp_path, mode, channels):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    image = decode(path, channels, 100)
    assert image.mode == ("L" if channels == 1 else "RGB")
    assert np.asarray(image).min() >= 254


def test_sixteen_bits_keep_their_range(tmp_path):
    values = np.array([[0, 257 * 100, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.asarray(decode(tmp_path / name, 1, 100)).tolist() == [[0, 100, 255]]


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (6, 4))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its left side; rotate clockwise to show
    image.save(tmp_path / "a.png", exif=exif)
    upright = decode(tmp_path / "a.png", 3, 100)
    assert upright.size == (4, 6)
    assert upright.getpixel((3, 0)) == (255, 0, 0)


def test_too_many_pixels_are_refused(tmp_path):
    path = picture(tmp_path / "a.png", 20, 30)
    with pytest.raises(ValueError, match="20 x 30 pixels are more than max_pixels 599"):
        decode(path, 3, 599)
    assert decode(path, 3, 600).size == (20, 30)


def check(folder: Path, cache: Path, max_bad: float = 0.01):
    return good_images(folder, scan(folder), max_pixels=10_000, max_bad=max_bad, cache=cache)


def test_a_truncated_file_among_good_ones_is_named_and_skipped(tmp_path):
    for number in range(99):
        picture(tmp_path / "images" / f"{number:02}.jpg")
    broken = truncated(tmp_path / "images" / "broken.jpg")
    good, bad = check(tmp_path / "images", tmp_path / "cache")
    assert len(good) == 99
    assert list(bad) == [broken]
    assert "truncated" in bad[broken]


def test_too_many_bad_files_stop_with_one_error_that_names_ten(tmp_path):
    picture(tmp_path / "images" / "good.png")
    for number in range(12):
        (tmp_path / "images" / f"{number:02}.png").write_text("no picture")
    with pytest.raises(BadImagesError, match="12 of 13 images") as caught:
        check(tmp_path / "images", tmp_path / "cache")
    message = str(caught.value)
    assert "09.png" in message
    assert "10.png" not in message
    assert "and 2 more" in message


def test_good_files_are_decoded_once_and_changed_ones_again(tmp_path, monkeypatch):
    images = tmp_path / "images"
    for name in ("a.png", "b.png"):
        picture(images / name)
    decoded = []
    real = folders.examine

    def counting(image, *pixels):
        decoded.append(Path(image.filename).name)
        return real(image, *pixels)

    monkeypatch.setattr(folders, "examine", counting)
    check(images, tmp_path / "cache")
    assert sorted(decoded) == ["a.png", "b.png"]
    check(images, tmp_path / "cache")
    assert len(decoded) == 2
    picture(images / "b.png", 9, 9)
    os.utime(images / "b.png", ns=(1, 1))
    check(images, tmp_path / "cache")
    assert decoded[2:] == ["b.png"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "file").write_text("")
    good, bad = check(tmp_path / "images", tmp_path / "file" / "cache")
    assert (len(good), len(bad)) == (1, 0)


def warned(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


def test_endings_that_are_not_read_are_counted_by_kind(tmp_path):
    for number in range(12):
        picture(tmp_path / "cat" / f"{number}.jpg")
    for name in ("a.jfif", "b.JFIF", "cat/c.heic", "README", ".hidden.heic"):
        (tmp_path / name).write_text("x")
    (line,) = warned(lambda: scan(tmp_path))
    assert f"4 files in {tmp_path} are not read: 2 .jfif, " in line
    assert "1 .heic" in line
    assert "1 without ending" in line
    assert "; 12 files have endings that are read (bmp gif" in line
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no image; looked for .*; it holds 2 \.jfif, "):
        scan(tmp_path)


def test_class_folders_without_an_image_are_named(tmp_path):
    for name in ("dog/1.png", "cat/2.png"):
        picture(tmp_path / name)
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu" / "1.heic").write_text("x")
    (tmp_path / ".cache").mkdir()
    paths = sorted(tmp_path.rglob("*.png"))
    (line,) = warned(lambda: classes_of(tmp_path, paths))
    assert line == f"1 folders in {tmp_path} hold no image and are no class: emu"


def test_one_reason_of_many_files_is_one_line(tmp_path):
    bad = {tmp_path / f"{number}.tif": "it has 4 channels" for number in range(12)}
    assert describe_bad(bad) == f"  {tmp_path / '0.tif'} and 11 more: it has 4 channels"
