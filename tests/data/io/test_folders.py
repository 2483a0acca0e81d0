"""Decoding of image files, with broken ones skipped and good ones remembered."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_lightning.data.io import folders
from ssl_lightning.data.io.folders import BadImagesError, decode, describe_bad, good_images
from ssl_lightning.data.io.scan import scan


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
    assert list(bad) == [str(broken)]
    assert "truncated" in bad[str(broken)]


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
    real = folders.inspect_image

    def counting(image, *pixels):
        decoded.append(Path(image.filename).name)
        return real(image, *pixels)

    monkeypatch.setattr(folders, "inspect_image", counting)
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


def test_one_reason_of_many_files_is_one_line(tmp_path):
    bad = {str(tmp_path / f"{number}.tif"): "it has 4 channels" for number in range(12)}
    assert describe_bad(bad) == f"  {tmp_path / '0.tif'} and 11 more: it has 4 channels"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the files that are decoded."""
    names: list[str] = []
    real = folders.inspect_image

    def counting(image, *pixels):
        names.append(Path(image.filename).name)
        return real(image, *pixels)

    monkeypatch.setattr(folders, "inspect_image", counting)
    return names


def renamed(folder: Path) -> None:
    (folder / "cat" / "1.jpg").rename(folder / "cat" / "new.jpg")


def removed(folder: Path) -> None:
    (folder / "cat" / "1.jpg").unlink()


def added(folder: Path) -> None:
    picture(folder / "dog" / "new.jpg")


def replaced(folder: Path) -> None:
    picture(folder / "new.jpg", 7)
    os.replace(folder / "new.jpg", folder / "cat" / "1.jpg")


def rewritten(folder: Path) -> None:
    """Change a file in place, so that its folder keeps its time."""
    path = folder / "cat" / "1.jpg"
    times = os.stat(folder / "cat")
    path.write_bytes(path.read_bytes() + b"0")
    os.utime(folder / "cat", ns=(times.st_atime_ns, times.st_mtime_ns))


def same_size(folder: Path) -> None:
    """Change a file in place to one of the same size, a nanosecond later."""
    path = folder / "cat" / "1.jpg"
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-2] + b"00")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))


def broken(folder: Path) -> None:
    (folder / "cat" / "1.jpg").write_bytes(b"no picture")


CHANGES = {
    renamed: ["new.jpg"],
    removed: [],
    added: ["new.jpg"],
    replaced: ["1.jpg"],
    rewritten: ["1.jpg"],
    same_size: ["1.jpg"],
    broken: [],
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_folder_is_seen(tmp_path, decoded, change: Callable[[Path], None]):
    images = tmp_path / "images"
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "4.jpg"):
        picture(images / name)
    check(images, tmp_path / "cache", 0.5)
    check(images, tmp_path / "cache", 0.5)
    assert len(decoded) == 4
    decoded.clear()
    change(images)
    good, bad = check(images, tmp_path / "cache", 0.5)
    assert decoded == CHANGES[change]
    assert len(bad) == (change is broken)
    assert set(good) | set(bad) == {str(path) for path in images.rglob("*.jpg")}
    check(images, tmp_path / "cache", 0.5)
    assert decoded == CHANGES[change]


@pytest.mark.parametrize("spoil", ["cut", "text", "empty", "other", "bits", "short"])
def test_a_record_that_is_no_record_is_made_again(tmp_path, decoded, spoil):
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "images" / name)
    check(tmp_path / "images", tmp_path / "cache")
    (record,) = (tmp_path / "cache").glob("*.npz")
    whole = record.read_bytes()
    stored = dict(np.load(record))
    other = io.BytesIO()
    changes = {"other": {"format": np.array(99)}, "short": {"stamps": stored["stamps"][:1]}}
    np.savez(other, **(stored | changes.get(spoil, {})))
    middle = whole.index(b"a.jpg")
    contents = {
        "cut": whole[:-30],
        "text": b'{"a.jpg": 1}',
        "empty": b"",
        "bits": whole[:middle] + b"c" + whole[middle + 1 :],
    }
    record.write_bytes(contents.get(spoil, other.getvalue()))
    assert len(check(tmp_path / "images", tmp_path / "cache")[0]) == 2
    assert sorted(decoded) == ["a.jpg", "a.jpg", "b.jpg", "b.jpg"]
    assert dict(np.load(record)).keys() == stored.keys()
    check(tmp_path / "images", tmp_path / "cache")
    assert len(decoded) == 4


def test_facts_and_bad_files_are_remembered_for_their_files(tmp_path, decoded):
    images = tmp_path / "images"
    for number in range(6):
        picture(images / f"{number}.jpg")
    values = np.array([[0, 9, 300]], np.uint16)
    Image.fromarray(values).save(images / "2wide.png")
    (images / "0bad.jpg").write_text("x")
    for start in range(3):
        with pytest.warns(UserWarning, match=r"1 of (7|8) images have pixels .* with values from 0 to 300"):
            good, bad = check(images, tmp_path / "cache", 0.5)
        assert [Path(path).name for path in bad] == ["0bad.jpg"]
        if start == 1:
            picture(images / "1.5.jpg")  # shifts the rows after it
    assert len(decoded) == 8
    assert len(good) == 8


def test_lists_of_one_folder_share_a_record(tmp_path, decoded):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        picture(tmp_path / "images" / name)
    files = [str(tmp_path / "images" / name) for name in ("c.jpg", "a.jpg", "b.jpg")]
    for part in (files[:2], files[1:], files[:2], files):
        options = {"max_pixels": 10_000, "max_bad": 0, "cache": tmp_path / "cache"}
        good, _ = good_images(tmp_path / "images", folders.FileList.of(part), **options)
        assert list(good) == part
    assert sorted(decoded) == ["a.jpg", "b.jpg", "c.jpg"]


def jpeg(mode: str, **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(content, "jpeg", **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}),
        ("RGB", {"restart_marker_rows": 1}), ("RGB", {"subsampling": 0, "optimize": True}),
    ],
)  # fmt: skip
def test_a_check_at_an_eighth_raises_what_a_full_decoding_raises(mode, options):
    """Cut a JPEG at many places, and change many bytes, one at a time."""

    def outcome(content: bytes, read: Callable[..., object]) -> str:
        try:
            with folders.open_image(io.BytesIO(content), 10**6) as image:
                read(image, 3)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    whole = jpeg(mode, **options)
    places = range(2, len(whole), max(1, len(whole) // 250))
    damaged = [whole[:place] for place in places]
    damaged += [whole[:place] + bytes([255 - whole[place]]) + whole[place + 1 :] for place in places]
    # bytes of a memory object carry their address in some messages
    quick = [re.sub("0x[0-9a-f]+", "", outcome(content, folders.inspect_image)) for content in damaged]
    full = [re.sub("0x[0-9a-f]+", "", outcome(content, folders.eight_bit)) for content in damaged]
    assert quick == full
    assert outcome(whole, folders.inspect_image) == ""
    assert len(set(full)) > 2
