"""Tests of the scripts in examples/: each runs as printed, on a few small images."""

import re
import runpy
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
README = (EXAMPLES.parent / "README.md").read_text()


def main(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `test`, each with two classes of pictures that a colour tells apart."""
    root, draw = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 8)):
        for number, colour in enumerate(("red", "green")):
            folder = root / split / colour
            folder.mkdir(parents=True)
            for image in range(count):
                pixels = draw.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                pixels[..., number] += 150
                Image.fromarray(pixels).save(folder / f"{image}.png")
    return root


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Lightning writes its logs there


def test_scripts_are_short() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    names = ["checkpoint", "elpv_folders", "folder", "new_task", "own_backbone"]
    assert [path.stem for path in scripts] == names
    assert all(len(path.read_text().splitlines()) <= 50 for path in scripts)


def test_a_folder(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = str(labelled / "train"), str(labelled / "test")
    main("folder")(train, train, test, image_size=32, batch_size=8, max_epochs=1)
    printed = capsys.readouterr().out
    assert "Test results in %, before → after, gain" in printed
    assert printed.count("stage1") == 1


@pytest.mark.slow
def test_the_block_of_the_readme(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs as printed, but for a single epoch."""
    blocks = re.findall(r"(?:^    .*\n|^\n)+", README, re.M)  # indented lines
    (block,) = (each for each in blocks if "from ssl_lightning" in each)
    code = textwrap.dedent(block)
    assert code.count("max_epochs=10") == 1
    Path("labelled").symlink_to(labelled)
    Path("photos").symlink_to(labelled / "train")
    exec(compile(code.replace("max_epochs=10", "max_epochs=1"), "README.md", "exec"), {})
    assert "Test results in %, before → after, gain" in capsys.readouterr().out


def test_an_own_backbone_and_loader(capsys: pytest.CaptureFixture[str]) -> None:
    main("own_backbone")(max_epochs=2)
    assert "tensor(0." in capsys.readouterr().out


def test_a_new_task(labelled: Path) -> None:
    main("new_task")(str(labelled / "train"), image_size=32, batch_size=8, max_epochs=1)
    (checkpoint,) = Path().glob("**/*.ckpt")
    assert checkpoint.stat().st_size > 0


def test_a_downloaded_checkpoint(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), "mobilenet.pth")
    train, test = str(labelled / "train"), str(labelled / "test")
    main("checkpoint")("mobilenet_v3_small", "mobilenet.pth", train, test, image_size=32)
    assert "linear" in capsys.readouterr().out


def test_solar_cells_become_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "site/elpv_dataset/data/images"
    images.mkdir(parents=True)
    (tmp_path / "site/elpv_dataset/__init__.py").touch()
    grades = [0.0] * 40 + [1.0] * 20
    lines = [f"images/cell{number}.png  {grade}  mono" for number, grade in enumerate(grades)]
    (images.parent / "labels.csv").write_text("\n".join(lines))
    for number in range(len(grades)):
        (images / f"cell{number}.png").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    main("elpv_folders")(tmp_path / "out")
    files = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.png")]
    assert len({file.name for file in files}) == len(files) == 60  # no photograph twice
    parents = [str(file.parent) for file in files]
    assert [parents.count(f"test/{grade}") for grade in ("sound", "defective")] == [10, 5]
    assert [parents.count(f"labelled/{grade}") for grade in ("sound", "defective")] == [2, 1]
