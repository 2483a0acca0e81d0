"""What a run prints before it starts."""

from pathlib import Path

from PIL import Image

from ssl_lightning.data.folder import Folder
from ssl_lightning.run.writer import labelled_images


def test_the_numbers_of_labelled_images_add_up(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(20):
            place = tmp_path / split / "ab"[number % 2] / f"{split}{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (10 * number, 0, 99)).save(place)
    train, test = f"{tmp_path}/train", f"{tmp_path}/test"
    said = []
    for given in ({}, {"train_dir": train}, {"train_dir": train, "test_dir": test}):
        data = Folder(
            pretrain_dir=train,
            **given,
            root=str(tmp_path / "cache"),
            image_size=16,
            batch_size=4,
            num_workers=0,
        )
        data.setup()
        said.append(labelled_images(data))
    assert said == ["none", "20", "18 train, 2 held out, 20 test"]
