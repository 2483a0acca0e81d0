"""Search for image files: which, in which order, with which classes and states."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_lightning.data.io.file_list import MISSING, FileList, stamp
from ssl_lightning.data.io.scan import EXTENSIONS, classes_of, scan

NAMES = (
    "b/1.png",
    "a.webp",
    "b-c/2.JPG",
    "b/d/3.png",
    "b c/4.jpeg",
    "ü/😀.png",
    "ü/\udcff.png",
    "b/a\nb.png",
)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(path)
    return path


def walked(root: Path) -> list[str]:
    """List images by os.walk and pathlib, one at a time."""
    found, seen = [], set()
    for parent, folders, names in os.walk(root, followlinks=True):
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return [str(path) for path in sorted(found, key=lambda path: path.relative_to(root).as_posix())]


def warned(call: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


def test_scan_is_sorted_and_takes_images_only(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a.webp", "c/d/3.TIFF", ".hidden/4.png", "._5.png"):
        picture(tmp_path / name) if not name.startswith("._") else (tmp_path / name).write_text("x")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert list(scan(tmp_path).names()) == ["a.webp", "b/1.png", "b/2.JPG", "c/d/3.TIFF"]


def test_scan_tells_missing_empty_and_file_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        scan(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no image; looked for bmp gif"):
        scan(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"a\.png is a file"):
        scan(picture(tmp_path / "a.png"))


def test_classes_are_the_first_folders(tmp_path: Path) -> None:
    for name in ("dog/x/1.png", "cat/2.png", "dog/3.png"):
        picture(tmp_path / name)
    names, labels = classes_of(tmp_path, scan(tmp_path))
    assert (names, labels.tolist()) == (["cat", "dog"], [0, 1, 1])
    picture(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"1 images lie in .* have no label: stray\.png"):
        classes_of(tmp_path, scan(tmp_path))


def test_endings_that_are_not_read_are_counted_by_kind(tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / "cat" / f"{number}.jpg")
    for name in ("a.jfif", "b.JFIF", "cat/c.heic", "README", ".hidden.heic"):
        (tmp_path / name).write_text("x")
    (line,) = warned(lambda: scan(tmp_path))
    assert f"4 files in {tmp_path} are not read: 2 .jfif, " in line
    assert "1 .heic" in line
    assert "1 without ending" in line
    assert "; 12 files have endings that are read (bmp gif" in line
    (tmp_path / "notes").mkdir()
    picture(tmp_path / "notes" / "1.jpg")
    (tmp_path / "notes" / "notes.txt").write_text("x")
    (line,) = warned(lambda: scan(tmp_path / "notes"))
    assert f"1 file in {tmp_path}/notes is not read: 1 .txt; " in line
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no image; looked for .*; it holds 2 \.jfif, "):
        scan(tmp_path)


def test_class_folders_without_an_image_are_named(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png"):
        picture(tmp_path / name)
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu" / "1.heic").write_text("x")
    (tmp_path / ".cache").mkdir()
    paths = sorted(map(str, tmp_path.rglob("*.png")))
    (line,) = warned(lambda: classes_of(tmp_path, paths))
    assert line == f"1 folders in {tmp_path} hold no image and are no class: emu"


@pytest.mark.parametrize("stamps", [False, True])
def test_files_order_and_states_are_those_of_a_plain_walk(tmp_path: Path, stamps: bool) -> None:
    for name in NAMES:
        picture(tmp_path / name)
    (tmp_path / "b-c" / "again").symlink_to(tmp_path / "b")  # comes before b itself
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "5.png").symlink_to(tmp_path / "a.webp")
    (tmp_path / "6.png").symlink_to("nowhere")
    found = scan(tmp_path, stamps=stamps)
    paths = walked(tmp_path)
    assert list(found) == paths == [found[row] for row in range(len(found))]
    assert [found[-1], *found[1:3]] == [paths[-1], *paths[1:3]]
    assert list(map(tuple, found.stamps().tolist())) == [stamp(path) for path in paths]
    assert tuple(found.stamps()[paths.index(str(tmp_path / "6.png"))]) == MISSING
    assert list(found.real_paths()) == [str(Path(path).resolve()) for path in paths]
    assert list(FileList.of(paths).real_paths()) == list(found.real_paths())
    some = found.take(np.array([3, 0]))
    assert list(some) == [paths[3], paths[0]]
    assert np.array_equal(some.stamps(), found.stamps()[[3, 0]])
    assert list(pickle.loads(pickle.dumps(found))) == paths


def test_paths_relative_to_the_working_folder_are_those_of_pathlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "cat" / "1.png")
    monkeypatch.chdir(tmp_path)
    for folder, path in ((".", "cat/1.png"), ("cat", "cat/1.png"), ("./cat/", "cat/1.png")):
        assert list(scan(folder)) == [path]
        assert list(scan(folder).absolute()) == [str(tmp_path / path)]
    assert classes_of(".", scan("."))[0] == ["cat"]


def test_a_list_takes_less_than_a_hundred_bytes_a_file() -> None:
    count = 10_000
    files = FileList.of(
        f"/data/photographs/train/class{row % 100:04}/image{row:08}.jpg" for row in range(count)
    )
    states = np.zeros((count, 2), np.int64)
    arrays = files.block, files._ends, states
    assert sum(map(sys.getsizeof, arrays)) < 100 * count
    assert len(pickle.dumps(files)) < 100 * count
