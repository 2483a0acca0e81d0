"""Near-duplicates between the splits of data sets: found, named, told and left out of pretraining."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_lightning.data._near_duplicates import match_grids
from ssl_lightning.data.fake import Fake
from ssl_lightning.data.folder import Folder
from ssl_lightning.data.io.image_hash import grey_grids
from ssl_lightning.data.objects.image_data import ImageData
from ssl_lightning.run.parts import build_parts
from ssl_lightning.run.writer import RunWriter
from tests._composed import composed
from tests.data._landscapes import landscapes

IMAGES = landscapes(80).permute(0, 2, 3, 1).numpy()


def save(path: Path, image: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """40 pretraining, 20 training and 20 test images; four pairs show the same."""
    for number, image in enumerate(IMAGES):
        where = (
            f"pretrain/{number:02}" if number < 40 else f"{'train' if number < 60 else 'test'}/{number % 2}/"
        )
        save(tmp_path / f"{where}{number if number >= 40 else ''}.png", image)
    test = IMAGES[60:]
    save(tmp_path / "pretrain/compressed.jpg", test[0], quality=60)
    save(tmp_path / "pretrain/mirrored.png", np.ascontiguousarray(test[1][:, ::-1]))
    save(tmp_path / "pretrain/dark.png", (test[2] * 0.7).astype(np.uint8))
    save(tmp_path / "train/1/63.png", test[3])
    for number in range(3):  # plain images all have one hash
        flat = np.full((64, 64, 3), 60 * number + 9, np.uint8)
        save(tmp_path / f"{('pretrain', 'train/0', 'test/0')[number]}/flat.png", flat)
    return tmp_path


def folder(root: Path, **options: Any) -> Folder:
    data = Folder(
        pretrain_dir=str(root / "pretrain"), train_dir=str(root / "train"), test_dir=str(root / "test"),
        root=str(root / "cache"), batch_size=4, num_workers=0, heldout=4, **options,
    )  # fmt: skip
    data.setup()
    return data


def test_copies_of_test_images_are_found_and_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = folder(root, near_duplicates="report")
    found = {(each.split, Path(each.name).name): each for each in data.duplicates_found if each.of == "test"}
    names = {"compressed.jpg": "60.png", "mirrored.png": "61.png", "dark.png": "62.png"}
    pretrain = {name: Path(each.twin).name for (split, name), each in found.items() if split == "pretrain"}
    assert pretrain == names
    assert found["pretrain", "mirrored.png"].mirrored
    assert not found["pretrain", "dark.png"].mirrored
    in_train = [name for split, name in found if split == "train"]
    assert in_train == ["63.png"]  # unless it is held out: the draw of the held-out images is fixed
    assert "3 pretraining images of test images, 1 training image of test images" in caplog.text
    assert "data.near_duplicates=drop leaves them out of pretraining" in caplog.text
    assert data.pretrain_images == 44


def test_they_are_left_out_of_pretraining(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = folder(root, near_duplicates="drop")
    assert "; pretraining leaves them out" in caplog.text
    names = {Path(name).name for name in data.unlabelled().image_names}
    assert len(names) == data.pretrain_images == 41
    assert not names & {"compressed.jpg", "mirrored.png", "dark.png"}
    assert len(data.downstream("train").indices) == 18  # labelled images stay


def test_by_default_no_image_is_read_for_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_lightning.data.base.find_near_duplicates", None)
    assert folder(root).duplicates_found == []


def test_without_labels_the_heldout_images_are_new(tmp_path: Path) -> None:
    twice = np.concatenate([IMAGES, IMAGES])
    plain = ImageData(twice, heldout=16, batch_size=8)
    plain.setup()
    data = ImageData(twice, heldout=16, batch_size=8, near_duplicates="drop")
    data.setup()
    heldout = {i % 80 for i in data.val_dataloader().indices.tolist()}
    assert any(i % 80 in heldout for i in plain.unlabelled().indices.tolist())
    assert not any(i % 80 in heldout for i in data.unlabelled().indices.tolist())
    assert {(each.split, each.of) for each in data.duplicates_found} == {("pretrain", "heldout")}


def test_images_that_are_all_copies_are_refused() -> None:
    data = ImageData(
        IMAGES[:20], (IMAGES[20:60], [0, 1] * 20), ((IMAGES[:20] * 0.9).astype(np.uint8), [0, 1] * 10),
        batch_size=4, near_duplicates="drop",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"all pretraining images .* set data\.near_duplicates=report"):
        data.setup()


def test_the_first_of_equally_near_images_and_the_plain_match_win() -> None:
    images = landscapes(6)
    both = torch.cat([images, images.flip(3), images])
    places, twins, bits, mirrored = match_grids(grey_grids(images), grey_grids(both))
    assert places.tolist() == twins.tolist() == list(range(6))
    assert bits.tolist() == [0] * 6
    assert not mirrored.any()


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.near_duplicates is 'yes'; allowed are ignore, report, drop"):
        Fake(near_duplicates="yes")


def test_a_run_lists_them_in_its_folder(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"data.{split}_dir={root / split}" for split in ("pretrain", "train", "test")]
    given += [f"data.root={root / 'cache'}", "data.num_workers=0", "data.batch_size=4", "data.heldout=4"]
    run = tmp_path / "run"
    run.mkdir()
    options = ["data=folder", *given, "data.near_duplicates=drop", "trainer=cpu", "probe=[]", "callbacks=[]"]
    parts = build_parts(composed(options, run), run)
    writer = RunWriter(parts, 0.0)
    writer.list_near_duplicates()
    writer.print_header()
    lines = (run / "near_duplicates.txt").read_text().splitlines()
    assert len(lines) == len(parts.data.duplicates_found)
    split, name, of, twin, bits = lines[0].split("\t")
    assert (split, Path(name).name, of, Path(twin).name) == ("pretrain", "compressed.jpg", "test", "60.png")
    assert bits.endswith("of 64 bits differ")
    assert f"listed in {run}/near_duplicates.txt" in capsys.readouterr().out
