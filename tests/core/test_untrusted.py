"""Tests of the checks of paths: folders and archives."""

import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from ssl_lightning.core.untrusted import check_folder


def test_a_folder_passes_and_an_absent_one_is_named(tmp_path: Path) -> None:
    check_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^folder \S+/gone does not exist; data\.dir must hold it$"):
        check_folder(tmp_path / "gone", "; data.dir must hold it")
    (tmp_path / "list.txt").touch()
    with pytest.raises(NotADirectoryError, match=r"list\.txt is a file; a folder is needed$"):
        check_folder(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("kind", "ending"), [("zip", "zip"), ("tar", "tar"), ("gztar", "tar.gz"), ("xztar", "tar.xz")]
)
def test_the_command_that_unpacks_an_archive_works(
    kind: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree/train/cats").mkdir(parents=True)
    (tmp_path / "tree/train/cats/1.png").write_bytes(b"picture")
    shutil.make_archive(str(tmp_path / "my photos"), kind, tmp_path / "tree")
    with pytest.raises(
        NotADirectoryError, match=f"my photos.{ending} is a file.* then give .*my photos: "
    ) as error:
        check_folder(tmp_path / f"my photos.{ending}" / "train")
    python, flag, module, *arguments = shlex.split(str(error.value).rpartition("photos: ")[2])
    assert (python, flag) == ("python", "-m")
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    runpy.run_module(module, run_name="__main__")
    check_folder(tmp_path / "my photos" / "train" / "cats")
