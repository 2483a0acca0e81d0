"""The wheel holds the code, every config and the files that the code reads."""

import email
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.launch.test_cli import SMALL

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, without downloading anything."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    for name in ("ssl_lightning", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-c", BUILD, str(place)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = place.glob("*.whl")
    return file


def files(folder: str, *patterns: str) -> set[str]:
    """Return paths below a folder of the repository, relative to it."""
    found = {path for pattern in patterns for path in (ROOT / folder).rglob(pattern)}
    return {path.relative_to(ROOT / folder).as_posix() for path in found if path.is_file()}


@pytest.mark.slow
def test_it_holds_the_package_and_the_configs_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = files("ssl_lightning", "*.py", "py.typed", "*.json", "templates/*")
    assert names == {f"ssl_lightning/{name}" for name in package} | {
        f"ssl_lightning/conf/{name}" for name in files("conf", "*")
    }


@pytest.mark.slow
def test_its_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert b"ssl-lightning = ssl_lightning.__main__:main" in archive.read(f"{info}/entry_points.txt")


@pytest.mark.slow
def test_a_run_of_the_unpacked_wheel_is_its_own_and_not_malicious(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "outputs/rotation/fake/convnet/one"
    for arguments in (
        ["train", "name=one", *SMALL],
        ["train", f"resume={folder}", "trainer.max_epochs=2"],
        ["evaluate", f"run={folder}", "probe=[knn]", "probe.knn.ks=[3]"],
        ["report"],
    ):
        command = [sys.executable, "-P", "-m", "ssl_lightning", *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    text = (folder / ".hydra/hydra.yaml").read_text()
    assert str(tmp_path / "site/ssl_lightning/conf") in text
    assert str(ROOT) not in text
